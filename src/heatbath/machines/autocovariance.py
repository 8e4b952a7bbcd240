"""Covariance of a machine with itself a moment later: C = (1/k) Σ_j x_j x_{j+1}ᵀ over undriven reads one lag apart.

For cells that relax as e^{−Ât/τ} with a stationary covariance Σ, E C = Σ e^{−Ât/τ} with t the lag. The reads are those of the
covariance read-out (`covariance`), k + 1 of them for k pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.coloured import ColouredLaw
from heatbath.machines.converters import normal, quantize
from heatbath.machines.covariance import HEADROOM, autoregressive, converts_each_read
from heatbath.machines.exact import ExactLaw
from heatbath.machines.frontend import read_range, within_rails
from heatbath.machines.machine import Machine
from heatbath.machines.programmed import Programmed
from heatbath.machines.signals import Watch, count
from heatbath.machines.spec import MachineSpec
from heatbath.work import Job, Work


@dataclass(frozen=True, eq=False)
class LaggedReading:
    """What came back from watching the noise with a lag.

    Args:
        covariance: C over 1/β, `[*stack, n, n]`, not symmetrized.
        diverged: voltages ran away, bool `[*stack]`.
        read_clipped: readings beyond full scale, int64 `[*stack]`.
        tier: name of the emulation tier.
        work: one job for each machine.
    """

    covariance: Tensor
    diverged: Tensor
    read_clipped: Tensor
    tier: str
    work: Work


def read_autocovariance(
    machine: Machine,
    programmed: Programmed,
    *,
    pairs: int,
    lag: float,
    burn_in: float,
    generator: torch.Generator | None = None,
) -> LaggedReading:
    """Watch the undriven machines and estimate their covariance at a lag.

    Args:
        machine: the machine.
        programmed: from `machine.program` without a schedule.
        pairs: k.
        lag: seconds between reads.
        burn_in: seconds from the cold start to the first read.
        generator: source of randomness; None: torch's own.

    Raises:
        ValueError: a machine without noise, no pairs, a lag that is not positive, or a law that does not know its modes.
    """
    spec, law = machine.spec, programmed.law
    if spec.noise == 0:
        raise ValueError(f"machine {spec.name!r} has no noise to watch; give it a temperature or noise_volts_rms")
    if pairs < 1 or not lag > 0:
        raise ValueError(f"an autocovariance needs pairs >= 1 and lag > 0 s, got {pairs} and {lag}")
    if not isinstance(law, ExactLaw | ColouredLaw):
        raise ValueError(f"an autocovariance needs a law that knows its modes, got the {law.tier}; program without a schedule")
    exact, colour = (law, None) if isinstance(law, ExactLaw) else (law.exact, law.colour)
    tau, n = spec.time_constant, programmed.size
    offset = None if programmed.offset is None else programmed.offset.unsqueeze(-2)
    watch = Watch(pairs + 1, lag / tau, burn_in / tau, spec.noise, offset, spec.inertia, spec.coupling is not None)
    drive = None if offset is None else offset @ exact.modes
    reads = autoregressive(exact.rates, watch, drive=drive, colour=colour, generator=generator)
    products, clipped = _lagged_products(_converted(reads, exact.modes.mT, spec, generator))
    bits = spec.read_bits or 8 * products.element_size()
    job = Job(
        spec.name,
        n,
        drives=1,
        read_bits=float(n * bits * (pairs + 1)),
        settle_seconds=burn_in,
        read_seconds=lag * pairs,
        conversions_out=n * (pairs + 1),
    )
    return LaggedReading(
        covariance=programmed.cells.read_products(products / pairs) / spec.noise,
        diverged=~programmed.definite,
        read_clipped=clipped,
        tier=programmed.tier,
        work=Work.of(job, max(programmed.stack.numel(), 1)),
    )


def _converted(
    chunks: Iterator[Tensor], lift: Tensor, spec: MachineSpec, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Voltages `[*stack, c, n]` as the converters report them, and how many clipped, from reads in the modes."""
    full_scale: Tensor | None = None
    for chunk in chunks:
        rows = chunk.to(lift) @ lift
        if not converts_each_read(spec):
            yield rows, torch.zeros(rows.shape[:-2], dtype=torch.int64, device=rows.device)
            continue
        rows = within_rails(rows, spec)
        if spec.read_noise > 0:
            rows = rows + math.sqrt(spec.read_noise) * normal(tuple(rows.shape), rows, generator)
        if full_scale is None:
            full_scale = read_range(HEADROOM * rows.square().mean(-2).sqrt().amax(-1)[..., None, None], spec)
        rows, over = quantize(rows, spec.read_bits, full_scale)
        yield rows, count(over)


def _lagged_products(chunks: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Σ_j x_j x_{j+1}ᵀ and the number of clipped readings."""
    total: Tensor | None = None
    last: Tensor | None = None
    clips: Tensor | None = None
    for rows, clipped in chunks:
        joined = rows if last is None else torch.cat([last, rows], -2)
        part = joined[..., :-1, :].mT @ joined[..., 1:, :]
        total = part if total is None else total + part
        clips = clipped if clips is None else clips + clipped
        last = rows[..., -1:, :]
    assert total is not None
    assert clips is not None
    return total, clips
