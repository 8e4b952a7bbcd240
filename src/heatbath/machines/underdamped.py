"""Cells with inertia: the RLC network of the machine that was built (Aifer et al. 2023, arXiv 2312.04836).

A series RLC cell obeys LC v̈ + RC v̇ + Âv = b̂ + noise; with τ = RC and μ = L/(R²C), time in units of τ, each mode is

    μ ÿ + ẏ + λ y = b + sqrt(2/β) ξ(t),        stationary: y ~ N(b/λ, 1/βλ), ẏ ~ N(0, 1/βμ)

the same stationary law as without inertia (μ → 0), reached with ringing when 4λμ > 1. The state z = (y, ẏ, ∫y or Σy) is linear:
over a step it goes to Φz + γb + N(0, Q/β). Steps compose, (Φ₂Φ₁, γ₂ + Φ₂γ₁, Q₂ + Φ₂Q₁Φ₂ᵀ), so Van Loan's matrix exponential
(IEEE Trans. Autom. Control 23 (1978) 395), which is accurate for short steps only, is taken for a step of at most 1/16 of the fastest
time and doubled from there. Measured cells start at rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.process import RUNAWAY, Moments


@dataclass(frozen=True, eq=False)
class Transition:
    """An exact step of a linear system: Φ `[*, d, d]`, γ `[*, d, 1]`, Q `[*, d, d]` (for 1/β = 1)."""

    carry: Tensor
    gain: Tensor
    covariance: Tensor

    def then(self, late: Transition) -> Transition:
        """This step, then `late`."""
        return Transition(
            late.carry @ self.carry,
            late.gain + late.carry @ self.gain,
            late.covariance + late.carry @ self.covariance @ late.carry.mT,
        )

    def repeat(self, times: int) -> Transition:
        """This step `times` times, by doubling."""
        power, total = self, None
        while True:
            if times & 1:
                total = power if total is None else total.then(power)
            times >>= 1
            if not times:
                assert total is not None
                return total
            power = power.then(power)


def advance(drift: Tensor, push: Tensor, diffusion: Tensor, time: float) -> Transition:
    """The exact transition of dz = (F z + g b) dt + B dW with BBᵀ = D, over `time`.

    Args:
        drift: F, `[*, d, d]`.
        push: g, `[*, d, 1]`.
        diffusion: D, `[*, d, d]`.
        time: in the same units.
    """
    d = drift.shape[-1]
    fastest = max(float(drift.abs().sum(-1).max()) * time, 1e-300)
    halvings = max(0, math.ceil(math.log2(16 * fastest)))
    step = time / 2**halvings
    block = torch.zeros(*drift.shape[:-2], 2 * d + 1, 2 * d + 1, dtype=drift.dtype, device=drift.device)
    block[..., :d, :d], block[..., :d, d : 2 * d], block[..., d : 2 * d, d : 2 * d] = drift, diffusion, -drift.mT
    exponential = torch.linalg.matrix_exp(block[..., : 2 * d, : 2 * d] * step)
    carry = exponential[..., :d, :d]
    affine = torch.zeros(*drift.shape[:-2], d + 1, d + 1, dtype=drift.dtype, device=drift.device)
    affine[..., :d, :d], affine[..., :d, d:] = drift, push
    gain = torch.linalg.matrix_exp(affine * step)[..., :d, d:]
    total = Transition(carry, gain, exponential[..., :d, d:] @ carry.mT)
    for _ in range(halvings):
        total = total.then(total)
    return total


def oscillator(rates: Tensor, inertia: float, time: float, *, integral: bool) -> Transition:
    """The exact transition of (y, ẏ, I) of each mode over `time`; I is the integral of y, or stays as it is.

    Args:
        rates: λ, `[*stack, n]`.
        inertia: μ.
        time: in units of τ.
        integral: whether I gathers ∫ y dt.
    """
    drift = torch.zeros(*rates.shape, 3, 3, dtype=rates.dtype, device=rates.device)
    drift[..., 0, 1] = 1.0
    drift[..., 1, 0] = -rates / inertia
    drift[..., 1, 1] = -1.0 / inertia
    drift[..., 2, 0] = float(integral)
    push, diffusion = torch.zeros_like(drift[..., :1]), torch.zeros_like(drift)
    push[..., 1, 0] = 1.0 / inertia
    diffusion[..., 1, 1] = 2.0 / inertia**2
    return advance(drift, push, diffusion, time)


def underdamped_average(
    rates: Tensor, *, burn_in: float, duration: float, noise: float, reads: int | None, inertia: float
) -> Moments:
    """Moments of a reading, continuous or of k reads, and of the end state, from a known start at rest.

    Args:
        rates: λ, `[*stack, n]`, in units of 1/τ.
        burn_in: t₀ in units of τ.
        duration: T in units of τ.
        noise: 1/β.
        reads: None for a continuous average, k for k reads.
        inertia: μ = L/(R²C).
    """
    span = burn_in + duration
    rates = rates.clamp(min=-RUNAWAY / span) if span > 0 else rates
    if reads is None:
        weight = duration
        during = oscillator(rates, inertia, duration, integral=True)
    else:
        weight = float(reads)
        step = oscillator(rates, inertia, duration / reads, integral=False)
        carry = step.carry.clone()
        carry[..., 2, :] += step.carry.new_tensor([1.0, 0.0, 0.0])  # a read, then a step
        during = Transition(carry, step.gain, step.covariance).repeat(reads)
    whole = oscillator(rates, inertia, burn_in, integral=False).then(during)
    return Moments(
        carry=whole.carry[..., 2, 0] / weight,
        gain=whole.gain[..., 2, 0] / weight,
        variance=noise * whole.covariance[..., 2, 2] / weight**2,
        end_carry=whole.carry[..., 0, 0],
        end_gain=whole.gain[..., 0, 0],
        end_variance=noise * whole.covariance[..., 0, 0],
        covariance=noise * whole.covariance[..., 2, 0] / weight,
    )
