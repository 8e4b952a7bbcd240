"""Cells whose noise differs: law (f).

With noise sources of covariance (2/β) D, D = diag(loudness), the modes of M = P^{1/2} Â P^{1/2} = V diag(λ) Vᵀ are no longer
independent: with C = VᵀDV and s = λ_i + λ_j, a state known at 0 has at t the covariance (2/β) C_ij t φ(st), and an average
over [t₀, t₀+T]

    Cov_ij = (2/β) C_ij { [1 − φ_i − φ_j + φ(sT)]/(λ_i λ_j T) + φ_i φ_j t₀ φ(s t₀) },      φ_i = φ(λ_i T).

The noise of readings and end states is drawn from one root of their joint covariance for each schedule, which costs an
eigendecomposition of size 2n; k reads are composed by doubling. The stationary state is *not* N(Â⁻¹b̂, Â⁻¹/β), only its mean
is: this drift does not obey detailed balance, and emulators that symmetrise it are wrong.

White sources that reach the cells through a second array of resistors have a programmed covariance R in the place of D, and
the stationary covariance Σ obeys Â Σ + Σ Â = (2/β) R: the machine as a solver of Lyapunov equations (Aifer et al. 2023, arXiv
2308.05660). R = Â makes it Σ = I/β, and then the covariance of x(t₀ + t) with x(t₀) is e^{−Ât}/β (Duffield et al. 2023, arXiv
2311.12759).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from heatbath.machines.converters import normal
from heatbath.machines.covariance import autoregressive, gram_of_reads
from heatbath.machines.exact import ExactLaw
from heatbath.machines.law import Derivation, Law
from heatbath.machines.process import bounded, phi, repeated
from heatbath.machines.signals import Cells, Clock, Excitation, Measurement, Watch
from heatbath.machines.spec import MachineSpec
from heatbath.machines.walk import psd_root
from heatbath.operators import tree


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Covariances between modes for C = 1, 2/β = 1, `[*stack, n, n]`: of readings, of readings i with end states j, of ends."""

    reading: Tensor
    cross: Tensor
    end: Tensor


def pair_moments(rates: Tensor, *, burn_in: float, duration: float, reads: int | None) -> PairMoments:
    """Law (f) for every pair of modes, from a known start, to be multiplied by (2/β) C_ij.

    Args:
        rates: λ, `[*stack, n]`, float64, in units of 1/τ.
        burn_in: t₀ in units of τ.
        duration: T in units of τ.
        reads: None for a continuous average, k for k reads.
    """
    rates = bounded(rates, burn_in + duration)
    total = rates.unsqueeze(-1) + rates.unsqueeze(-2)
    before = burn_in * phi(total * burn_in)
    if reads is None:
        u = rates * duration
        weight, decay = phi(u), torch.exp(-u)
        own = _Pairs(
            weight, decay, duration * _pair_average(u), _pair_cross(u, total, duration), duration * phi(total * duration)
        )
    else:
        own = _pair_reads(rates, total, duration / reads, reads)
    started = _Pairs(torch.zeros_like(rates), torch.ones_like(rates), torch.zeros_like(total), torch.zeros_like(total), before)
    whole = started.then(own)
    scale = 1.0 if reads is None else 1.0 / reads
    return PairMoments(whole.reading * scale**2, whole.cross * scale, whole.end)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """A stretch of time from a known state: weight of the start in the reading, decay, and covariances."""

    weight: Tensor  # [*stack, n]
    decay: Tensor  # [*stack, n]
    reading: Tensor  # [*stack, n, n]
    cross: Tensor  # reading i with end j
    end: Tensor

    def then(self, late: _Pairs) -> _Pairs:
        wi, wj, rj = late.weight.unsqueeze(-1), late.weight.unsqueeze(-2), late.decay.unsqueeze(-2)
        return _Pairs(
            self.weight + self.decay * late.weight,
            self.decay * late.decay,
            self.reading + late.reading + wi * wj * self.end + wj * self.cross + wi * self.cross.mT,
            rj * (self.cross + wi * self.end) + late.cross,
            late.end + late.decay.unsqueeze(-1) * rj * self.end,
        )


def _pair_reads(rates: Tensor, total: Tensor, interval: float, reads: int) -> _Pairs:
    """Some k reads, each followed by an interval, summed, by doubling."""
    zero = torch.zeros_like(total)
    once = _Pairs(torch.ones_like(rates), torch.exp(-rates * interval), zero, zero, interval * phi(total * interval))
    return repeated(once, reads)


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


@tree
@dataclass(frozen=True, eq=False)
class ColouredLaw(Law):
    """Tier A for noise mismatch.

    Args:
        exact: the law of the same cells with equal noise.
        colour: C = VᵀDV, `[*stack, n, n]`, float64.
        root: root of the joint covariance of reading and end state for `clock`, `[*stack, 2n, 2n]`, or None.
        clock: the schedule that `root` belongs to, or None.
        spread: stationary variance of each cell over 1/β, `[*stack, n]`.
        slowest: `[*stack]`.
        source: R of sources that were given, `[*stack, n, n]`, or None.
    """

    exact: ExactLaw
    colour: Tensor
    root: Tensor | None
    clock: Clock | None
    spread: Tensor
    slowest: Tensor
    source: Tensor | None = None

    @property
    def tier(self) -> str:
        return "exact law, coloured noise"

    @property
    def derivation(self) -> Derivation:
        return type(self) if self.source is None else CorrelatedNoise(self.source)

    @classmethod
    def of(cls, held: Tensor, cells: Cells, clock: Clock | None) -> Self:
        return cls.driven_by(None, held, cells, clock)

    @classmethod
    def driven_by(cls, source: Tensor | None, held: Tensor, cells: Cells, clock: Clock | None) -> Self:
        """The law under noise sources of covariance R = `source`, `[*stack, n, n]`; None: I. Loudness scales either."""
        exact = ExactLaw.of(held, cells, clock)
        inner = exact.modes if exact.speed is None else exact.modes / exact.speed.sqrt().unsqueeze(-1)
        if cells.loudness is not None:
            inner = cells.loudness.sqrt().unsqueeze(-1) * inner
        colour = (inner.mT @ (inner if source is None else source @ inner)).double()
        pair = (exact.rates.unsqueeze(-1) + exact.rates.unsqueeze(-2)).clamp(min=1e-300)
        modes = exact.modes.double()
        spread = ((modes @ (2 * colour / pair)) * modes).sum(-1).to(held)
        root = None if clock is None else joint_root(exact.rates, colour, clock)
        return cls(exact, colour, root, clock, spread, exact.slowest, source)

    def measure(
        self, excitation: Excitation, clock: Clock, spec: MachineSpec, *, keep_end: bool, generator: torch.Generator | None
    ) -> Measurement:
        noises: tuple[Tensor | None, Tensor | None] = (None, None)
        if clock.noise > 0:
            root = (
                self.root if self.root is not None and clock == self.clock else joint_root(self.exact.rates, self.colour, clock)
            )
            n, like = self.colour.shape[-1], excitation.drive
            both = normal((*like.shape[:-1], 2 * n), like, generator) @ root.mT.to(like)
            noises = (both[..., :n], both[..., n:])
        return self.exact.convert(excitation, noises, clock, spec, spread=self.spread, keep_end=keep_end, generator=generator)

    def watch(self, watch: Watch, spec: MachineSpec, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        drive = None if watch.offset is None else watch.offset @ self.exact.modes
        reads = autoregressive(self.exact.rates, watch, drive=drive, colour=self.colour, generator=generator)
        return gram_of_reads(reads, self.exact.modes.mT, watch.reads, spec, generator)

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        return self.exact.error(clock)


@dataclass(frozen=True, eq=False)
class CorrelatedNoise:
    """Derives `ColouredLaw`s: `machine.program(matrix, law=CorrelatedNoise(R))`.

    Args:
        covariance: R, `[*stack, n, n]`, symmetric PSD, with entries up to 1 (full scale).

    Raises:
        ValueError: not square, or entries beyond full scale.
    """

    covariance: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.covariance.shape)
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"a noise covariance must be square, [*stack, n, n], got shape {shape}")
        if bool((self.covariance.abs() > 1 + 1e-6).any()):
            raise ValueError(
                f"entries of a noise covariance must be within full scale 1, got {float(self.covariance.abs().max()):.3g}; "
                "divide by the largest and scale the result"
            )

    def of(self, held: Tensor, cells: Cells, clock: Clock | None) -> ColouredLaw:
        """See `Law.of`."""
        return ColouredLaw.driven_by(self.covariance.to(held), held, cells, clock)


def joint_root(rates: Tensor, colour: Tensor, clock: Clock) -> Tensor:
    """Root of the joint covariance of reading and end state in the modes, `[*stack, 2n, 2n]`."""
    pairs = pair_moments(rates, burn_in=clock.burn_in, duration=clock.duration, reads=clock.reads)
    top = torch.cat([colour * pairs.reading, colour * pairs.cross], -1)
    bottom = torch.cat([(colour * pairs.cross).mT, colour * pairs.end], -1)
    return math.sqrt(2 * clock.noise) * psd_root(torch.cat([top, bottom], -2))
