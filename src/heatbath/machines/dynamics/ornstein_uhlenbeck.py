"""The Ornstein–Uhlenbeck process of overdamped cells, mode by mode, in closed form.

One mode of the machine with rate λ, drive b and noise 1/β, time in units of τ:

    dy = −(λ y − b) dt + sqrt(2/β) dW.

With φ(u) = (1−e⁻ᵘ)/u, ψ(u) = 2(u−1+e⁻ᵘ)/u², ω(u) = (ψ−φ²)/u, the state (y, I = ∫y dt) goes over a time t, u = λt, to

    y ↦ e⁻ᵘ y + t φ b,                  Var y = (2t/β) φ(2u)
    I ↦ I + t φ y + (t²ψ/2) b,          Var I = (t³/β) ω(u),      Cov(I, y) = (t²/β) φ(u)²

which lose no digits as λ → 0 and stay true for λ < 0 (a machine that runs away). Composed, they are the published laws of a
reading ȳ over [t₀, t₀+T]: mean y* + e₀e^{−λt₀}φ(λT), variance (1/βλ)[ψ − (1−βλv₀)e^{−2λt₀}φ²] with y* = b/λ, e₀ = y₀ − y*.
White noise of covariance (2/β) C between the modes: s = λ_i + λ_j,

    Cov(y_i, y_j) = (2/β) C_ij t φ(st),      Cov(I_i, I_j) = (2/β) C_ij t³ [1 − φ_i − φ_j + φ(u_i+u_j)]/(u_i u_j).

References: Aifer et al. 2023 (arXiv 2308.05660); Gillespie, Phys. Rev. E 54 (1996) 2084.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from heatbath.machines.dynamics.transition import GaussianTransition


def phi(u: Tensor) -> Tensor:
    """φ(u) = (1−e⁻ᵘ)/u, the average of e⁻ˢ over [0, u]."""
    return torch.where(u == 0, 1.0, -torch.expm1(-u) / torch.where(u == 0, 1.0, u))


def psi(u: Tensor) -> Tensor:
    """ψ(u) = 2(u−1+e⁻ᵘ)/u², the average of e^{−|s−s'|} over s, s' in [0, u]."""
    return _series_or(u, [2 * (-1) ** j / math.factorial(j + 2) for j in range(14)], lambda v: 2 * (1 - phi(v)) / v)


def omega(u: Tensor) -> Tensor:
    """ω(u) = (ψ(u)−φ(u)²)/u, the variance of an average that starts from a known state."""
    coefficients = [(-1) ** (m + 1) * (2**m - 4) / math.factorial(m) for m in range(3, 21)]
    return _series_or(u, coefficients, lambda v: (psi(v) - phi(v).square()) / v)


def _series_or(u: Tensor, coefficients: list[float], direct: Callable[[Tensor], Tensor]) -> Tensor:
    """A power series where u is small, else the formula itself."""
    small = u.abs() < 0.5
    v = torch.where(small, u, 0.0)
    series = torch.full_like(v, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        series = series * v + c
    return torch.where(small, series, direct(torch.where(small, 1.0, u)))


def relaxation(rates: Tensor, time: float, *, integral: bool, mixing: Tensor | None = None) -> GaussianTransition:
    """The transition of (y, I) over `time`, for 1/β = 1.

    Args:
        rates: λ, `[*stack, n]`, in units of 1/τ.
        time: t in units of τ.
        integral: whether I gathers ∫ y dt; else it stands still.
        mixing: C, `[*stack, n, n]`; None: the identity, and modes stay independent.
    """
    u = rates * time
    zero, one, average = torch.zeros_like(u), torch.ones_like(u), phi(u)
    gathered = [time * average, time**2 * psi(u) / 2] if integral else [zero, zero]
    carry = _blocks(torch.exp(-u), zero, gathered[0], one)
    gain = torch.stack([time * average, gathered[1]], -1)
    if mixing is None:
        both = time**2 * average.square() if integral else zero
        total = time**3 * omega(u) if integral else zero
        return GaussianTransition(carry, gain, _blocks(2 * time * phi(2 * u), both, both, total))
    total_rate = rates.unsqueeze(-1) + rates.unsqueeze(-2)
    ends, none = time * phi(total_rate * time), torch.zeros_like(total_rate)
    cross = time * _pair_cross(u, total_rate, time) if integral else none  # I_i with y_j
    both = time**3 * _pair_average(u) if integral else none
    pairs = _blocks(ends, cross.mT, cross, both)
    return GaussianTransition(carry, gain, 2 * mixing[..., None, None] * pairs)


def _blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b], [c, d]] as the last two dimensions."""
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


def _pair_average(u: Tensor) -> Tensor:
    """[1 − φ(u_i) − φ(u_j) + φ(u_i+u_j)]/(u_i u_j), by a double series where both are small."""
    a, b = u.unsqueeze(-1), u.unsqueeze(-2)
    small = (a + b).abs() < 0.5
    x, y = torch.where(small, a, 0.0), torch.where(small, b, 0.0)
    term, px, py = torch.full_like(x + y, 2.0), torch.ones_like(x + y), torch.ones_like(x + y)
    series = torch.zeros_like(term)
    for m in range(2, 20):  # term = ((x+y)^m − x^m − y^m)/(xy)
        series = series + (-1) ** m * term / math.factorial(m + 1)
        px, py = px * x, py * y
        term = (x + y) * term + px + py
    p, q = torch.where(small, 1.0, a), torch.where(small, 1.0, b)
    p, q = torch.where(p == 0, 1e-9, p), torch.where(q == 0, 1e-9, q)
    return torch.where(small, series, (1 - phi(p) - phi(q) + phi(p + q)) / (p * q))


def _pair_cross(u: Tensor, total: Tensor, duration: float) -> Tensor:
    """Covariance of the average of mode i with the end of mode j: [φ_j − e^{−u_j} φ_i]/s, in a form that stays true as s → 0.

    (1/T)∫₀ᵀ e^{−λ_j(T−s)} s φ((λ_i+λ_j)s) ds; the plain difference loses digits only where s T < 10⁻⁴, whose limit is T/2.
    """
    a, b = phi(u), torch.exp(-u)
    plain = (a.unsqueeze(-2) - b.unsqueeze(-2) * a.unsqueeze(-1)) / torch.where(total == 0, 1.0, total)
    return torch.where((total * duration).abs() < 1e-8, duration / 2, plain)


def read_correlation(decay: Tensor, reads: int) -> Tensor:
    """K(r) = Σ_{i,j<k} r^{|i−j|}: the variance of a sum of k stationary reads over that of one.

    Equals [k(1−r²) − 2r(1−rᵏ)]/(1−r)², but is summed by doubling, which loses no digits as r → 1.

    Args:
        decay: r, the correlation of neighbouring reads, in [0, 1].
        reads: k.
    """
    one = torch.ones_like(decay)
    weight, spread = torch.zeros_like(decay), torch.zeros_like(decay)  # Σ rʲ and K of the reads so far
    power, power_weight, power_spread = decay, one, one
    while reads:
        if reads & 1:
            spread = spread + power_spread + 2 * decay * weight * power_weight
            weight = power_weight + power * weight
        reads >>= 1
        power_spread = 2 * power_spread + 2 * decay * power_weight.square()
        power_weight, power = power_weight * (1 + power), power.square()
    return spread


def covariance_variance(rates: Tensor, *, interval: float, reads: int, noise: float) -> Tensor:
    """Law (d): variance of each entry of S = (1/k) Σ y yᵀ over k stationary reads, `[*stack, n, n]`, in the eigenbasis.

    Var S_ij = (1 + δ_ij) K(ρ_ij)/(β² λ_i λ_j k²), ρ_ij = e^{−(λ_i+λ_j)dt}. Not valid from a cold start with fewer reads than a
    relaxation time spans.

    Args:
        rates: λ > 0, `[*stack, n]`, in units of 1/τ.
        interval: dt in units of τ.
        reads: k.
        noise: 1/β.
    """
    pair = rates.unsqueeze(-1) + rates.unsqueeze(-2)
    one_plus = 1 + torch.eye(rates.shape[-1], dtype=rates.dtype, device=rates.device)
    product = rates.unsqueeze(-1) * rates.unsqueeze(-2)
    return one_plus * read_correlation(torch.exp(-pair * interval), reads) * noise**2 / (product * reads**2)
