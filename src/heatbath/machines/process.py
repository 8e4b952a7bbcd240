"""Laws of the Ornstein–Uhlenbeck process, mode by mode.

One mode of the machine with rate λ, drive b and noise 1/β, time in units of τ:

    dy = −(λ y − b) dt + sqrt(2/β) dW,    y(0) = y₀ with variance v₀.

A reading ȳ is the average over [t₀, t₀+T], continuous or of k reads dt apart, and y₁ is the state at t₀+T. Both are Gaussian,
and linear in y₀ and b; with φ(u) = (1−e⁻ᵘ)/u, ψ(u) = 2(u−1+e⁻ᵘ)/u², ω(u) = (ψ−φ²)/u the continuous average has

    E ȳ = e^{−λt₀} φ(λT) y₀ + [t₀ φ(λt₀) + e^{−λt₀} T ψ(λT)/2] b
    Var ȳ = (T/β) ω(λT) + φ(λT)² [(2t₀/β) φ(2λt₀) + e^{−2λt₀} v₀]
    Cov(ȳ, y₁) = φ(λT) [((2t₀+T)/β) φ(λ(2t₀+T)) + e^{−λ(2t₀+T)} v₀]

which equal y* + e₀e^{−λt₀}φ and (1/βλ)[ψ − (1−βλv₀)e^{−2λt₀}φ²] with y* = b/λ, but lose no digits as λ → 0 and stay true for
λ < 0 (a machine that runs away). k reads are composed by doubling, again from sums of positive terms only.
References: Aifer et al. 2023 (arXiv 2308.05660); Gillespie, Phys. Rev. E 54 (1996) 2084.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from heatbath.operators import tree

RUNAWAY = 30.0  # growth e^30 of an unstable mode stands for anything larger


@tree
@dataclass(frozen=True, eq=False)
class Moments:
    """First two moments of a reading and of the state after it, for each mode; all `[*stack, n]`.

    Args:
        carry: weight of the start y₀ in the reading.
        gain: weight of the drive b in the reading, in units of τ.
        variance: variance of the reading.
        end_carry: weight of the start in the end state.
        end_gain: weight of the drive in the end state.
        end_variance: variance of the end state.
        covariance: covariance of the reading with the end state.
    """

    carry: Tensor
    gain: Tensor
    variance: Tensor
    end_carry: Tensor
    end_gain: Tensor
    end_variance: Tensor
    covariance: Tensor


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


def _series_or(u, coefficients, direct):  # type: ignore[no-untyped-def]  # three private lines
    small = u.abs() < 0.5
    v = torch.where(small, u, 0.0)
    series = torch.full_like(v, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        series = series * v + c
    return torch.where(small, series, direct(torch.where(small, 1.0, u)))


class Passage(Protocol):
    """What happens over a stretch of time, as a value that composes."""

    def then(self, late: Self) -> Self:
        """This stretch, then `late`."""


P = TypeVar("P", bound=Passage)


def repeated(passage: P, times: int) -> P:
    """A passage `times` ≥ 1 times over, by doubling: 2 log₂ `times` compositions at most."""
    power, total = passage, None
    while True:
        if times & 1:
            total = power if total is None else total.then(power)
        times >>= 1
        if not times:
            assert total is not None
            return total
        power = power.then(power)


def bounded(rates: Tensor, time: float) -> Tensor:
    """Rates that grow by e^`RUNAWAY` at most within `time`."""
    return rates.clamp(min=-RUNAWAY / time) if time > 0 else rates


def continuous_average(
    rates: Tensor, *, burn_in: float, duration: float, noise: float, start_variance: Tensor | float = 0.0
) -> Moments:
    """Laws (a) and (c): the average over [t₀, t₀+T] by an analog integrator, and the state at its end.

    Args:
        rates: λ, `[*stack, n]`, in units of 1/τ.
        burn_in: t₀ in units of τ.
        duration: T in units of τ.
        noise: 1/β.
        start_variance: v₀, a number or `[*stack, n]`.
    """
    rates = bounded(rates, burn_in + duration)
    u, both = rates * duration, 2 * burn_in + duration
    average = phi(u)
    fade = torch.exp(-rates * burn_in)
    return Moments(
        carry=fade * average,
        gain=burn_in * phi(rates * burn_in) + fade * duration * psi(u) / 2,
        variance=noise * duration * omega(u) + average.square() * _state_variance(rates, burn_in, noise, start_variance),
        covariance=average * (noise * both * phi(rates * both) + torch.exp(-rates * both) * start_variance),
        **_end(rates, burn_in + duration, noise, start_variance),
    )


def sampled_average(
    rates: Tensor, *, burn_in: float, duration: float, reads: int, noise: float, start_variance: Tensor | float = 0.0
) -> Moments:
    """Laws (b) and (c): the average of k reads at t₀ + j·T/k, j = 0 … k−1, and the state at t₀+T.

    Args:
        rates: λ, `[*stack, n]`, in units of 1/τ.
        burn_in: t₀ in units of τ.
        duration: T in units of τ.
        reads: k.
        noise: 1/β.
        start_variance: v₀, a number or `[*stack, n]`.
    """
    rates = bounded(rates, burn_in + duration)
    block = _reads(rates, duration / reads, reads)
    fade = torch.exp(-rates * burn_in)
    before = _state_variance(rates, burn_in, noise, start_variance)
    weight = block.weight / reads
    return Moments(
        carry=fade * weight,
        gain=block.gain / reads + weight * burn_in * phi(rates * burn_in),
        variance=noise * block.variance / reads**2 + weight.square() * before,
        covariance=noise * block.covariance / reads + weight * block.decay * before,
        **_end(rates, burn_in + duration, noise, start_variance),
    )


def _state_variance(rates: Tensor, time: float, noise: float, start_variance: Tensor | float) -> Tensor:
    return 2 * noise * time * phi(2 * rates * time) + torch.exp(-2 * rates * time) * start_variance


def _end(rates: Tensor, time: float, noise: float, start_variance: Tensor | float) -> dict[str, Tensor]:
    return {
        "end_carry": torch.exp(-rates * time),
        "end_gain": time * phi(rates * time),
        "end_variance": _state_variance(rates, time, noise, start_variance),
    }


@dataclass(frozen=True, eq=False)
class _Block:
    """m reads in a row from a known state, then one interval more; the sum of the reads, and the state after them."""

    decay: Tensor  # r^m
    weight: Tensor  # of the start in the sum: Σ r^j
    gain: Tensor  # of the drive in the sum
    variance: Tensor  # of the sum, per unit of noise
    covariance: Tensor  # of the sum with the end state
    end_gain: Tensor
    end_variance: Tensor

    def then(self, late: _Block) -> _Block:
        return _Block(
            decay=self.decay * late.decay,
            weight=self.weight + self.decay * late.weight,
            gain=self.gain + late.gain + late.weight * self.end_gain,
            variance=self.variance + late.variance + late.weight * (late.weight * self.end_variance + 2 * self.covariance),
            covariance=late.decay * (self.covariance + late.weight * self.end_variance) + late.covariance,
            end_gain=late.end_gain + late.decay * self.end_gain,
            end_variance=late.end_variance + late.decay.square() * self.end_variance,
        )


def _reads(rates: Tensor, interval: float, reads: int) -> _Block:
    """All k reads by repeated doubling: log₂ k compositions."""
    zero, one = torch.zeros_like(rates), torch.ones_like(rates)
    step_gain, step_variance = interval * phi(rates * interval), 2 * interval * phi(2 * rates * interval)
    return repeated(_Block(torch.exp(-rates * interval), one, zero, zero, zero, step_gain, step_variance), reads)


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

    Not valid from a cold start with fewer reads than a relaxation time spans.

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


def burnt_in_covariance(inverse: Tensor, *, duration: float, noise: float) -> Tensor:
    """Law (e): covariance of a burnt-in continuous average, (2/βT) Â⁻² − (2/βT²) Â⁻³, up to e^{−λ_min T}.

    Args:
        inverse: Â⁻¹, `[*stack, n, n]`.
        duration: T in units of τ.
        noise: 1/β.
    """
    square = inverse @ inverse
    return (2 * noise / duration) * (square - square @ inverse / duration)


def relative_error(inverse: Tensor, solution: Tensor, *, duration: float, noise: float) -> Tensor:
    """Predicted relative error of a burnt-in mean read over T: sqrt((2/βT) tr(Â⁻²)) / ‖Â⁻¹b̂‖, `[*stack, *batch]`."""
    spread = (2 * noise / duration) * inverse.square().sum((-2, -1))
    size = solution.square().sum(-1)
    return (spread.reshape(spread.shape + (1,) * (size.ndim - spread.ndim)) / size).sqrt()
