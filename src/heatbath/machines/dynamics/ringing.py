"""Cells that ring: RLC networks.

A series RLC cell with resistive coupling obeys LC v̈ + RC v̇ + Âv = b̂ + noise; with τ = RC and μ = L/(R²C), time in units of
τ, each mode is

    μ ÿ + ẏ + λ y = b + sqrt(2/β) ξ(t),        stationary: y ~ N(b/λ, 1/βλ), ẏ ~ N(0, 1/βμ)

the same stationary law as without inertia (μ → 0), reached with ringing when 4λμ > 1. The state z = (y, ẏ, ∫y or Σy) is linear:
over a step it goes to Φz + γb + N(0, Q/β), Q = ∫ e^{Fs} D e^{Fᵀs} ds (Van Loan, IEEE Trans. Autom. Control 23 (1978) 395).
Van Loan's one exponential is accurate for short times only, so a step of at most 1/16 of the fastest time is taken from its
series, and doubled:

    Φ−1 → 2(Φ−1) + (Φ−1)²,    γ → 2γ + (Φ−1)γ,    Q → Q + ΦQΦᵀ

which loses no digits to a 1 however stiff the cell is. Measured cells start at rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heatbath.machines.dynamics.transition import GaussianTransition


def advance(drift: Tensor, push: Tensor, diffusion: Tensor, time: float) -> GaussianTransition:
    """The exact transition of dz = (F z + g b) dt + B dW with BBᵀ = D, over `time`.

    Args:
        drift: F, `[*, d, d]`.
        push: g, `[*, d, 1]`.
        diffusion: D, `[*, d, d]`.
        time: in the same units.
    """
    fastest = max(float(drift.abs().sum(-1).max()) * time, 1e-300)
    halvings = max(0, math.ceil(math.log2(16 * fastest)))
    step = time / 2**halvings
    change, gain, covariance = drift * step, push * step, diffusion * step  # Φ − 1, γ, Q
    power, kick, spread = change, gain, covariance
    for k in range(2, 15):
        power = power @ drift * (step / k)
        kick = drift @ kick * (step / k)
        spread = (drift @ spread + spread @ drift.mT) * (step / k)
        change, gain, covariance = change + power, gain + kick, covariance + spread
    for _ in range(halvings):
        half = change @ covariance
        covariance = 2 * covariance + half + half.mT + half @ change.mT
        gain = 2 * gain + change @ gain
        change = 2 * change + change @ change
    eye = torch.eye(drift.shape[-1], dtype=drift.dtype, device=drift.device)
    return GaussianTransition(eye + change, gain.squeeze(-1), covariance)


def oscillator(rates: Tensor, inertia: float, time: float, *, integral: bool) -> GaussianTransition:
    """The exact transition of (y, ẏ, I) of each mode over `time`; I is the integral of y, or stands still.

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


def resonator(rates: Tensor, inertia: float | None, time: float) -> GaussianTransition:
    """The exact transition of capacitively coupled cells, (x, I) or (x, q, I), over `time`; I stands still.

    The machine that was built (Melanson et al. 2023, arXiv 2312.04836, eqs. 4, 5) holds the matrix as capacitances C₀Â
    between nodes that each have R and L to ground: λ ẋ = −x − q/μ + sqrt(2/β) ξ, q̇ = x, for each mode λ of Â, with μ =
    L/(R²C₀). Stationary: x ~ N(0, 1/βλ), so the covariance is the inverse; a constant drive flows off through R and L, so the
    mean is not a solution.

    Args:
        rates: λ, `[*stack, n]`.
        inertia: μ, or None without inductors.
        time: in units of τ = R C₀.
    """
    d = 2 if inertia is None else 3
    drift = torch.zeros(*rates.shape, d, d, dtype=rates.dtype, device=rates.device)
    drift[..., 0, 0] = -1 / rates
    if inertia is not None:
        drift[..., 0, 1] = -1 / (inertia * rates)
        drift[..., 1, 0] = 1.0
    push, diffusion = torch.zeros_like(drift[..., :1]), torch.zeros_like(drift)
    push[..., 0, 0] = 1 / rates
    diffusion[..., 0, 0] = 2 / rates.square()
    return advance(drift, push, diffusion, time)
