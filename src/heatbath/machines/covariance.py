"""The covariance route: watch the noise of the undriven machine, S = (1/k) Σ x xᵀ → Â⁻¹/β.

Tier C draws the reads themselves, an autoregressive sequence in each mode of the exact law (y ← r y + sqrt((1−r²)/βλ) ξ with
r = e^{−λ dt}; the pair (y, ẏ) for cells with inertia), exact for every start and interval. Tier C′ (fast law, λ_min dt ≫ 1)
takes the reads as independent; from k ≥ n on it draws the sum at once as a Wishart matrix by Bartlett's decomposition, at a
cost without k. Both are positive semidefinite by construction.

Error of an entry for independent reads: sqrt((S_ii S_jj + S_ij²)/k); with correlated reads k falls by law (d). A relative
error ε in the Frobenius norm takes (n+1)/ε² ≤ T/τ ≤ (n+1)κ/ε², at any temperature. Quantization adds LSB²/12 to the diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from heatbath.machines.converters import normal, quantize
from heatbath.machines.frontend import read_range, within_rails
from heatbath.machines.signals import Watch, count
from heatbath.machines.spec import MachineSpec
from heatbath.machines.walk import step

CHUNK = 256  # reads held at once
HEADROOM = 4.0  # full scale of the converter over the largest rms voltage, before rounding up to a power of two


def autoregressive(
    rates: Tensor, watch: Watch, *, drive: Tensor | None, colour: Tensor | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Reads of modes of these rates from a cold start at rest, in chunks `[*stack, c, n]`.

    Args:
        rates: λ, `[*stack, n]`, float64.
        watch: how to read.
        drive: offset in the modes, `[*stack, 1, n]`, or None.
        colour: covariance of the noise between modes, `[*stack, n, n]`, or None.
        generator: source of randomness.
    """
    first, each = (
        step(rates, time, noise=watch.noise, colour=colour, inertia=watch.inertia, capacitive=watch.capacitive)
        for time in (watch.burn_in, watch.interval)
    )
    state = first.push(1, drive, generator)
    assert state is not None  # there is noise
    for begin in range(0, watch.reads, CHUNK):
        size = min(CHUNK, watch.reads - begin)
        push = each.push(size, drive, generator)
        assert push is not None
        reads = []
        for j in range(size):
            reads.append(state[..., 0, :])
            state = each.move(state, push[..., j : j + 1, :, :])
        yield torch.cat(reads, -2)


def gram_of_reads(
    chunks: Iterator[Tensor], lift: Tensor, reads: int, spec: MachineSpec, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """S and the number of clipped readings, from reads in a law's own coordinates.

    Args:
        chunks: reads Y, `[*stack, c, n]` each.
        lift: x = y @ lift, `[*stack, n, n]`.
        reads: k.
        spec: the machine, whose converter takes each read on its own.
        generator: source of randomness.
    """
    each = converts_each_read(spec)
    total: Tensor | None = None
    clipped = torch.zeros(lift.shape[:-2], dtype=torch.int64, device=lift.device)
    full_scale: Tensor | None = None
    for chunk in chunks:
        rows = chunk.to(lift)
        if each:
            rows = within_rails(rows @ lift, spec)
            if spec.read_noise > 0:
                rows = rows + math.sqrt(spec.read_noise) * normal(tuple(rows.shape), rows, generator)
            if full_scale is None:
                full_scale = read_range(HEADROOM * rows.square().mean(-2).sqrt().amax(-1)[..., None, None], spec)
            rows, over = quantize(rows, spec.read_bits, full_scale)
            clipped = clipped + count(over)
        part = rows.mT @ rows
        total = part if total is None else total + part
    assert total is not None
    return (total if each else lift.mT @ total @ lift) / reads, clipped


def converts_each_read(spec: MachineSpec) -> bool:
    """Whether reads differ from the cells' voltages one by one."""
    return spec.read_bits is not None or spec.read_noise > 0 or spec.rail is not None


def wishart_root(like: Tensor, degrees: int, generator: torch.Generator | None) -> Tensor:
    """Root W `[*stack, n, n]` of a white sample covariance: WᵀW is (1/k) Σ ξ ξᵀ of k ≥ n white ξ, by Bartlett's decomposition.

    Args:
        like: of the wanted shape, dtype and device.
        degrees: k.
        generator: source of randomness.
    """
    n = like.shape[-1]
    lower = normal(tuple(like.shape), like, generator).tril(-1)
    shapes = (degrees - torch.arange(n, dtype=torch.float64)) / 2
    device = like.device if generator is None else generator.device
    shapes = shapes.expand(*like.shape[:-2], n).contiguous().to(device)
    chi = (2 * torch._standard_gamma(shapes, generator=generator)).sqrt().to(like)
    return (lower + torch.diag_embed(chi)).mT / math.sqrt(degrees)
