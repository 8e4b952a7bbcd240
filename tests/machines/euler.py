"""A reference for linear machines: small steps of the cells themselves, by Euler and Maruyama.

    x ← x + h (b̂ − Â x) + sqrt(2h/β) ξ

It has the right stationary mean for h < 2/λ_max, and the variance (1/βλ)·2/(2−hλ) of each mode: too large by hλ/2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def settle(
    matrix: Tensor, drive: Tensor, start: Tensor, *, noise: float, time: float, step: float, generator: torch.Generator
) -> Tensor:
    """Voltages after `time`, rows `[m, n]`, in equal steps of at most `step`; all in units of τ."""
    steps = max(1, int(-(-time // step)))
    h, x = time / steps, start
    for _ in range(steps):
        x = x + h * (drive - x @ matrix)
        x = x + (2 * h * noise) ** 0.5 * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    return x


def averaged(
    matrix: Tensor,
    drive: Tensor,
    *,
    noise: float,
    burn_in: float,
    duration: float,
    reads: int,
    step: float,
    generator: torch.Generator,
) -> Tensor:
    """The average of k reads, the first after the burn-in."""
    x = settle(matrix, drive, torch.zeros_like(drive), noise=noise, time=burn_in, step=step, generator=generator)
    total = torch.zeros_like(x)
    for _ in range(reads):
        total = total + x
        x = settle(matrix, drive, x, noise=noise, time=duration / reads, step=step, generator=generator)
    return total / reads
