"""How a matrix becomes what the cells hold (scale, clip, quantize, mismatch, write noise, stuck entries), and how it drifts."""

from __future__ import annotations

import torch
from torch import Tensor

from heatbath.machines.converters import normal, quantize, uniform
from heatbath.machines.imperfections import DRIFT, GAIN, STUCK_ENTRY, defects, mismatch_like
from heatbath.machines.signals import count
from heatbath.machines.spec import MachineSpec


def hold(matrix: Tensor, spec: MachineSpec, serial: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the cells hold of `matrix`.

    Args:
        matrix: A, `[*stack, n, n]`.
        spec: the machine.
        serial: serial number of the first machine of the stack.
        generator: source of randomness for stochastic rounding and write noise.

    Returns:
        Â `[*stack, n, n]` with entries up to 1, the scale s `[*stack]` with A ≈ s Â, and the number of clipped entries
        `[*stack]`.
    """
    stack, n = matrix.shape[:-2], matrix.shape[-1]
    size = matrix.abs()
    if spec.matrix_percentile is None:
        scale = size.amax((-2, -1))
    else:
        rank = max(1, round(spec.matrix_percentile / 100 * n * n))
        scale = size.reshape(*stack, n * n).kthvalue(rank, dim=-1).values
    scale = torch.where(scale > 0, scale, 1.0)
    held = (matrix + matrix.mT) * (0.5 / scale[..., None, None])
    clipped = torch.zeros(stack, dtype=torch.int64, device=matrix.device)
    if spec.matrix_percentile is not None:
        clipped = count(held.abs() > 1 + 1e-6)
        held = held.clamp(-1, 1)
    if spec.matrix_bits is not None:
        noise = None
        if spec.stochastic_rounding:
            noise = uniform(tuple(held.shape), held, generator)
            noise = noise.triu() + noise.triu(1).mT
        held = quantize(held, spec.matrix_bits, noise=noise)[0]
    if spec.gain_mismatch is not None:
        held = held * (1 + spec.gain_mismatch * mismatch_like(held, serial, GAIN, stack, (n, n)))
    if spec.write_noise is not None:
        error = normal(tuple(held.shape), held, generator)
        held = held + spec.write_noise * (error.triu() + error.triu(1).mT)
    stuck = defects(held, serial, STUCK_ENTRY, stack, (n, n), spec.stuck_entries)
    if stuck is not None:
        held = held.masked_fill(stuck, 0.0)
    return held, scale, clipped


def drift(held: Tensor, spec: MachineSpec, serial: int, *, age: float, seconds: float) -> Tensor:
    """What is left of the conductances after `seconds` more, `age` seconds after programming.

    G(t) = G(0) (1 + t/1 s)^{−ν}, the power law of phase-change memories, with an exponent ν of its own for each entry.
    """
    if spec.drift_exponent is None:
        return held
    exponent: Tensor | float = spec.drift_exponent
    if spec.drift_spread is not None:
        n = held.shape[-1]
        exponent = exponent * (1 + spec.drift_spread * mismatch_like(held, serial, DRIFT, held.shape[:-2], (n, n)))
    return held * ((1 + age + seconds) / (1 + age)) ** (-exponent)
