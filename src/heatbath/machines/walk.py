"""Exact transitions of the modes of a machine from one time to the next.

In the modes the state y (or the pair y, ẏ of a cell with inertia) goes over a time t to Φy + γb + R ξ. Noise sources of equal
strength keep the modes independent; sources that differ (colour C) mix them: R Rᵀ = (2/β) C_ij t φ((λ_i+λ_j)t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.converters import normal
from heatbath.machines.process import RUNAWAY, continuous_average, phi
from heatbath.machines.underdamped import oscillator, resonator


@dataclass(frozen=True, eq=False)
class Step:
    """One transition of states `[*stack, m, d, n]`, d = 1 (y) or 2 (y, ẏ).

    Args:
        carry: Φ, `[*stack, 1, d, d, n]`.
        gain: γ, `[*stack, 1, d, n]`.
        root: root of the noise of each mode, `[*stack, 1, d, d, n]`, or None.
        mix: root of the noise across modes, `[*stack, n, n]`, or None.
    """

    carry: Tensor
    gain: Tensor
    root: Tensor | None
    mix: Tensor | None

    def move(self, state: Tensor, noise: Tensor | None) -> Tensor:
        """The next state, given the noise and drive of `push`."""
        moved = (self.carry * state.unsqueeze(-3)).sum(-2)
        return moved if noise is None else moved + noise

    def push(self, rows: int, drive: Tensor | None, generator: torch.Generator | None) -> Tensor | None:
        """Noise and drive of `rows` transitions, `[*stack, rows, d, n]`; `drive` is in the modes, `[*stack, rows or 1, n]`."""
        shape = (*self.gain.shape[:-3], rows, *self.gain.shape[-2:])
        total = None if drive is None else self.gain * drive.unsqueeze(-2).to(self.gain)
        noise = None
        if self.mix is not None:
            noise = normal(shape, self.gain, generator).squeeze(-2) @ self.mix.mT
            noise = noise.unsqueeze(-2)
        elif self.root is not None:
            noise = (self.root * normal(shape, self.gain, generator).unsqueeze(-3)).sum(-2)
        return noise if total is None else total if noise is None else total + noise


def step(
    rates: Tensor,
    time: float,
    *,
    noise: float,
    colour: Tensor | None = None,
    inertia: float | None = None,
    capacitive: bool = False,
) -> Step:
    """The exact transition over `time`.

    Args:
        rates: λ, `[*stack, n]`, float64, in units of 1/τ.
        time: in units of τ.
        noise: 1/β.
        colour: C, `[*stack, n, n]`, or None for independent modes; not with inertia.
        inertia: μ, or None.
        capacitive: the matrix is held in capacitances.
    """
    rates = rates.clamp(min=-RUNAWAY / time) if time > 0 else rates
    if capacitive:
        whole = resonator(rates, inertia, time)
        carry, gain, covariance = whole.carry, whole.gain, noise * whole.covariance
    elif inertia is None:
        law = continuous_average(rates, burn_in=time, duration=0.0, noise=noise)
        carry, gain, covariance = (p[..., None, None] for p in (law.end_carry, law.end_gain, law.end_variance))
    else:
        whole = oscillator(rates, inertia, time, integral=False)
        carry, gain, covariance = whole.carry[..., :2, :2], whole.gain[..., :2, :], noise * whole.covariance[..., :2, :2]
    mix = None
    if colour is not None and noise > 0:
        total = rates.unsqueeze(-1) + rates.unsqueeze(-2)
        mix = psd_root(2 * noise * colour * time * phi(total * time))
    root = _small_root(covariance) if noise > 0 and mix is None else None
    return Step(
        carry.movedim(-3, -1).unsqueeze(-4),
        gain.squeeze(-1).mT.unsqueeze(-3),
        None if root is None else root.movedim(-3, -1).unsqueeze(-4),
        mix,
    )


def psd_root(covariance: Tensor) -> Tensor:
    """R with R Rᵀ = covariance, for matrices that may be singular."""
    values, vectors = torch.linalg.eigh(covariance.nan_to_num())
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2)


def _small_root(covariance: Tensor) -> Tensor:
    """R with R Rᵀ = covariance for 1×1 and 2×2 matrices that may be singular, `[*, d, d]`."""
    root = torch.zeros_like(covariance)
    root[..., 0, 0] = covariance[..., 0, 0].clamp(min=0).sqrt()
    if covariance.shape[-1] == 2:
        root[..., 1, 0] = covariance[..., 1, 0] / root[..., 0, 0].clamp(min=math.sqrt(torch.finfo(root.dtype).tiny))
        root[..., 1, 1] = (covariance[..., 1, 1] - root[..., 1, 0].square()).clamp(min=0).sqrt()
    return root
