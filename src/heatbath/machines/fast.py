"""The fast law: one Cholesky factorization, valid when the slowest mode has forgotten its start and is averaged over.

With u = λ_min T and e^{−λ_min t₀} both far on the safe side, no eigenvectors are needed:

    burnt in, averaged over T     x̄ = Â⁻¹[b̂ + c(ξ − Â⁻¹ξ/2T)],             c = sqrt(2/βT)
    averaged over T from x₀ on    x̄ = Â⁻¹[b̂ + (x₀ − Â⁻¹b̂)/T + c(ξ − ¾Â⁻¹ξ/T)]
    burnt in, k reads dt apart    x̄ = Â⁻¹b̂ + L⁻ᵀξ/√(βk),                   when e^{−λ_min dt} ≪ 1 or k = 1

The noise terms are square roots of law (e) to second order in 1/u: the variance of the slowest mode errs by about 1/4u² (0.28
% at u = 10, 0.03 % at 30), of a cold start by 9/16u². `error` returns the exact figures. With capacitance mismatch P the same
holds for M = P^{1/2} Â P^{1/2} and z = P^{−1/2} x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from heatbath.machines.converters import normal
from heatbath.machines.covariance import CHUNK, converts_each_read, gram_of_reads, wishart_root
from heatbath.machines.frontend import measure
from heatbath.machines.law import Derivation, Law
from heatbath.machines.signals import Answer, Cells, Clock, Excitation, Measurement, Watch
from heatbath.machines.spec import MachineSpec
from heatbath.operators import product, tree


@tree
@dataclass(frozen=True, eq=False)
class FastLaw(Law):
    """Tier B+.

    Args:
        inverse: M⁻¹, `[*stack, n, n]`.
        factor: L with L Lᵀ = M (rows of noise times L⁻¹ have covariance M⁻¹), `[*stack, n, n]`.
        root: P^{1/2}, `[*stack, n]`, or None.
        clock: the schedule that will be run, or None.
        stated: errors of variance and mean for that schedule, two of `[*stack]`, or None.
        slowest: `[*stack]`; NaN where the matrix is not positive definite.
        spread: `[*stack, n]`.
    """

    inverse: Tensor
    factor: Tensor
    root: Tensor | None
    clock: Clock | None
    stated: tuple[Tensor, Tensor] | None
    slowest: Tensor
    spread: Tensor

    @property
    def tier(self) -> str:
        return "fast law"

    @property
    def derivation(self) -> Derivation:
        return type(self)

    @classmethod
    def of(cls, held: Tensor, cells: Cells, clock: Clock | None) -> Self:
        matrix, speed = held, cells.speed
        root = None if speed is None else speed.sqrt()
        if root is not None:
            matrix = root[..., :, None] * matrix * root[..., None, :]
        factor, info = torch.linalg.cholesky_ex(matrix)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        factor = torch.where((info == 0)[..., None, None], factor, eye)  # on the CPU the inverse of a singular one would raise
        inverse = torch.cholesky_inverse(factor)
        slowest = torch.where(info == 0, _slowest(inverse), torch.nan)
        spread = inverse.diagonal(dim1=-2, dim2=-1)
        stated = None if clock is None else _stated(slowest, clock)
        return cls(inverse, factor, root, clock, stated, slowest, spread if speed is None else spread * speed)

    def measure(
        self, excitation: Excitation, clock: Clock, spec: MachineSpec, *, keep_end: bool, generator: torch.Generator | None
    ) -> Measurement:
        answer = self.answer(excitation, clock, keep_end=keep_end, generator=generator)
        return measure(answer, self.spread, clock, spec, generator=generator)

    def answer(self, excitation: Excitation, clock: Clock, *, keep_end: bool, generator: torch.Generator | None) -> Answer:
        """Draw one reading for every row of the excitation, before any range or converter."""
        drive, offset = self._inward(excitation.drive), self._inward(excitation.offset)
        cold = _cold(clock)
        assert drive is not None
        signal = self._mean(drive, clock, cold)
        rest = None if offset is None else self._mean(offset, clock, cold).expand_as(signal)
        if cold and excitation.guess is not None:
            signal = signal + self._remains(excitation.guess, clock)
        if cold and excitation.start is not None:
            remains = self._remains(excitation.start, clock)
            rest = remains if rest is None else rest + remains
        end_signal = drive @ self.inverse if keep_end else None
        end_rest = (offset @ self.inverse).expand_as(signal) if keep_end and offset is not None else None
        if clock.noise > 0:
            noise, end_noise = self._noise(signal, clock, cold, keep_end, generator)
            rest = noise if rest is None else rest + noise
            if keep_end:
                end_rest = end_noise if end_rest is None else end_rest + end_noise
        outward = [None if rows is None else self._outward(rows) for rows in (signal, rest, end_signal, end_rest)]
        return Answer(*outward)  # type: ignore[arg-type]  # the signal is never None

    def watch(self, watch: Watch, spec: MachineSpec, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Tier C′: reads taken as independent."""
        if not converts_each_read(spec) and watch.offset is None and watch.reads >= self.factor.shape[-1]:
            rows = self._outward(self._colour(wishart_root(self.factor, watch.reads, generator)))
            return watch.noise * (rows.mT @ rows), torch.zeros_like(self.slowest, dtype=torch.int64)
        offset = self._inward(watch.offset)
        mean = None if offset is None else self._outward(offset @ self.inverse)
        eye = torch.eye(self.factor.shape[-1], dtype=self.factor.dtype, device=self.factor.device).expand_as(self.factor)
        return gram_of_reads(self._reads(mean, watch, generator), eye, watch.reads, spec, generator)

    def _reads(self, mean: Tensor | None, watch: Watch, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Independent stationary reads about `mean` `[*stack, 1, n]`, in chunks `[*stack, c, n]`."""
        for begin in range(0, watch.reads, CHUNK):
            shape = (*self.factor.shape[:-2], min(CHUNK, watch.reads - begin), self.factor.shape[-1])
            rows = self._outward(math.sqrt(watch.noise) * self._colour(normal(shape, self.factor, generator)))
            yield rows if mean is None else rows + mean

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        return self.stated if self.stated is not None and clock == self.clock else _stated(self.slowest, clock)

    def _mean(self, drive: Tensor, clock: Clock, cold: bool) -> Tensor:
        settled = product(drive, self.inverse)
        return settled - product(settled, self.inverse) / clock.duration if cold else settled

    def _remains(self, start: Tensor, clock: Clock) -> Tensor:
        """What an average from the start on keeps of the start, z₀ → M⁻¹z₀/T."""
        return (start if self.root is None else start / self.root.unsqueeze(-2)) @ self.inverse / clock.duration

    def _noise(
        self, like: Tensor, clock: Clock, cold: bool, keep_end: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Noise of the reading and, correlated with it, of the end state."""
        xi = normal(tuple(like.shape), like, generator)
        sigma = math.sqrt(clock.noise)
        if clock.reads is not None:
            reading = self._colour(xi) * (sigma / math.sqrt(clock.reads))
            if clock.reads == 1 and clock.duration == 0:
                return reading, reading
            return reading, self._colour(normal(tuple(like.shape), like, generator)) * sigma if keep_end else reading
        once = product(xi, self.inverse)
        weight = (0.75 if cold else 0.5) / clock.duration
        reading = (once - weight * product(once, self.inverse)) * (sigma * math.sqrt(2 / clock.duration))
        if not keep_end:
            return reading, reading
        own = self._colour(normal(tuple(like.shape), like, generator))
        own = own - own @ self.inverse / (4 * clock.duration)
        return reading, sigma * (own + once / math.sqrt(2 * clock.duration))

    def _colour(self, xi: Tensor) -> Tensor:
        """Rows of white noise to rows of covariance M⁻¹: ξ L⁻¹."""
        return torch.linalg.solve_triangular(self.factor, xi, upper=False, left=False)

    def _inward(self, rows: Tensor | None) -> Tensor | None:
        return rows if rows is None or self.root is None else rows * self.root.unsqueeze(-2)

    def _outward(self, rows: Tensor) -> Tensor:
        return rows if self.root is None else rows * self.root.unsqueeze(-2)


def _cold(clock: Clock) -> bool:
    """Whether reading begins at the start, so that the average includes the relaxation."""
    return clock.burn_in == 0 and clock.reads is None


def _stated(slowest: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
    """Relative errors at the slowest mode, where they are largest; 0 variance error for a machine without noise."""
    rates = slowest.double().unsqueeze(-1)
    exact = clock.moments(rates)
    mean = exact.carry.abs()
    if _cold(clock):
        mean = (exact.gain * rates - (1 - 1 / (rates * clock.duration))).abs()
    if clock.noise == 0:
        return torch.zeros_like(slowest), mean.squeeze(-1).to(slowest)
    if clock.reads is None:
        weight = 1 - (0.75 if _cold(clock) else 0.5) / (rates * clock.duration)
        fast = 2 * clock.noise / (rates.square() * clock.duration) * weight.square()
    else:
        fast = clock.noise / (rates * clock.reads)
    variance = (fast / exact.variance - 1).abs()
    return variance.squeeze(-1).to(slowest), mean.squeeze(-1).to(slowest)


def _slowest(inverse: Tensor, products: int = 24) -> Tensor:
    """Smallest eigenvalue of M from power iterations on M⁻¹: an estimate, within a few per cent even for crowded spectra.

    The Rayleigh quotient θ falls short of the largest eigenvalue of M⁻¹; adding its residual ‖M⁻¹v − θv‖ mostly makes up
    for it.
    """
    v = (inverse.sum(-1) + inverse.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)  # a row: ten times faster than columns of a stack
    v = v + 0.01 * v.norm(dim=-1, keepdim=True) * torch.linspace(-1, 1, v.shape[-1]).to(v)
    theta = residual = v.sum(-1)
    for _ in range(products):
        v = v / v.norm(dim=-1, keepdim=True)
        after = v @ inverse
        theta = (v * after).sum(-1)
        residual = (after - theta.unsqueeze(-1) * v).norm(dim=-1)
        v = after
    return (1 / (theta + residual)).squeeze(-1)
