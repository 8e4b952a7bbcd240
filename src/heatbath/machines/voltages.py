"""The voltages themselves, read one by one: samples of N(A⁻¹b, A⁻¹).

A machine that holds Â = A/s and is driven by b̂ is distributed, once settled, as N(Â⁻¹b̂, Â⁻¹/β). In units of x = c v with
c² = β/s that is N(A⁻¹b, A⁻¹) if b̂ = b/(cs): nothing may be rescaled to full scale as for a linear system, since the drive
stands against the noise. A machine whose noise is small against full scale therefore needs a fine drive converter; a drive
above full scale clips.

Reads an interval t apart from one chain are correlated as e^{−λt/τ} in the mode λ of Â; several chains (copies of the
machine, or one after the other) are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.coloured import ColouredLaw
from heatbath.machines.converters import quantize
from heatbath.machines.door import check_drive
from heatbath.machines.exact import ExactLaw
from heatbath.machines.machine import Machine
from heatbath.machines.programmed import Programmed
from heatbath.machines.schedule import Schedule
from heatbath.machines.signals import Excitation, count
from heatbath.work import Job, Work


@dataclass(frozen=True, eq=False)
class VoltageReading:
    """Samples as read.

    Args:
        samples: `[*stack, reads, chains, n]`, in units in which they follow N(A⁻¹b, A⁻¹).
        diverged: voltages ran away, bool `[*stack]`.
        drive_clipped: entries of the drive beyond full scale, int64 `[*stack]`.
        read_clipped: readings beyond full scale, int64 `[*stack]`.
        attenuated: reads at which the rails were exceeded and the emulated front end lowered the drive, so that the mean is
            wrong; int64 `[*stack]`.
        tier: name of the emulation tier.
        work: one job for each chain of each machine.
    """

    samples: Tensor
    diverged: Tensor
    drive_clipped: Tensor
    read_clipped: Tensor
    attenuated: Tensor
    tier: str
    work: Work


def read_voltages(
    machine: Machine,
    programmed: Programmed,
    drive: Tensor | None = None,
    *,
    reads: int,
    interval: float,
    burn_in: float,
    chains: int = 1,
    generator: torch.Generator | None = None,
) -> VoltageReading:
    """Read a driven, noisy machine again and again.

    Args:
        machine: the machine.
        programmed: from `machine.program` without a schedule (the exact law is needed).
        drive: b, `[*stack, n]`; None: no drive, mean 0.
        reads: samples of each chain.
        interval: seconds between reads.
        burn_in: seconds from the cold start to the first read.
        chains: independent chains.
        generator: source of randomness; None: torch's own.

    Raises:
        TypeError: a drive of another dtype.
        ValueError: a machine without noise, no reads or chains, a time that is not positive, a drive that does not fit, a
            law other than the exact one.
    """
    spec = machine.spec
    if spec.noise == 0:
        raise ValueError(f"machine {spec.name!r} has no noise to sample; give it a temperature or noise_volts_rms")
    if reads < 1 or chains < 1 or not interval > 0 or not burn_in > 0:
        raise ValueError(
            f"sampling needs reads and chains >= 1, interval and burn_in > 0 s, got {reads}, {chains}, {interval}, {burn_in}"
        )
    if not isinstance(programmed.law, ExactLaw | ColouredLaw):
        raise ValueError(f"samples need the exact law, got the {programmed.tier}; program without a schedule")
    stack, n = programmed.stack, programmed.size
    given = torch.zeros(*stack, n, dtype=programmed.held.dtype, device=programmed.held.device) if drive is None else drive
    check_drive(programmed, given, start=None, guess=None)
    unit = (1 / (spec.noise * programmed.scale))[..., None, None].sqrt()  # c
    wanted = given.detach().unsqueeze(-2) / (unit * programmed.scale[..., None, None])
    volts, over = quantize(wanted, spec.drive_bits)
    volts = volts.expand(*stack, chains, n).contiguous()
    cells, offset = programmed.cells, None if programmed.offset is None else programmed.offset.unsqueeze(-2)
    if cells.alive is not None:
        volts = volts * cells.alive.unsqueeze(-2)
    first, each = (machine.clock(Schedule(time, 0.0, 1)) for time in (burn_in, interval))
    end, rows = None, []
    clipped = lowered = torch.zeros(stack, dtype=torch.int64, device=volts.device)
    for read in range(reads):
        excitation = Excitation(volts, start=end, offset=offset)
        clock = each if read else first
        measured = programmed.law.measure(excitation, clock, spec, keep_end=True, generator=generator)
        end = measured.end
        rows.append(cells.read(measured.values))
        clipped = clipped + count(measured.clipped)
        lowered = lowered + count(measured.division > 1)
    bits = spec.read_bits or 8 * volts.element_size()
    job = Job(
        spec.name,
        n,
        drives=1,
        drive_bits=float(n * (spec.drive_bits or 8 * volts.element_size())),
        read_bits=float(n * bits * reads),
        settle_seconds=burn_in,
        read_seconds=interval * (reads - 1),
        conversions_in=n,
        conversions_out=n * reads,
    )
    return VoltageReading(
        torch.stack(rows, -3) * unit.unsqueeze(-3),
        ~programmed.definite,
        count(over),
        clipped,
        lowered,
        programmed.tier,
        Work.of(job, max(stack.numel(), 1) * chains),
    )
