"""The settled approximation: one Cholesky factorization, where the slowest mode has forgotten its start and is averaged.

With u = λ_min T and e^{−λ_min t₀} both far on the safe side, no eigenvectors are needed:

    burnt in, averaged over T     x̄ = Â⁻¹[b̂ + c(ξ − Â⁻¹ξ/2T)],             c = sqrt(2/βT)
    averaged over T from x₀ on    x̄ = Â⁻¹[b̂ + (x₀ − Â⁻¹b̂)/T + c(ξ − ¾Â⁻¹ξ/T)]
    burnt in, k reads dt apart    x̄ = Â⁻¹b̂ + L⁻ᵀξ/√(βk),                   when e^{−λ_min dt} ≪ 1 or k = 1

The noise terms are square roots of Cov = (2/βT) Â⁻² − (2/βT²) Â⁻³ to second order in 1/u: the variance of the slowest mode errs
by about 1/4u² (0.28 % at u = 10, 0.03 % at 30), of a cold start by 9/16u². `error` returns the exact figures. With capacitance
mismatch P the same holds for M = P^{1/2} Â P^{1/2} and z = P^{−1/2} x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from heatbath.machines.dynamics.base import READING, AnalogResponse, Clock, Dynamics, Excitation, average
from heatbath.machines.dynamics.cells import Cells
from heatbath.machines.dynamics.transition import CHUNK
from heatbath.machines.random import normal
from heatbath.operators import product, tree


@tree
@dataclass(frozen=True, eq=False)
class SettledApproximation(Dynamics):
    """The inverse of the held matrices, in the coordinates z.

    Args:
        inverse: M⁻¹, `[*stack, n, n]`.
        factor: L with L Lᵀ = M (rows of noise times L⁻¹ have covariance M⁻¹), `[*stack, n, n]`.
        root: P^{1/2}, `[*stack, n]`.
        noise: 1/β.
        clock: the schedule that was announced, or None.
        stated: errors of variance and mean for that schedule, two of `[*stack]`, or None.
        slowest: `[*stack]`; NaN where the matrix is not positive definite.
        spread: `[*stack, n]`.
    """

    inverse: Tensor
    factor: Tensor
    root: Tensor
    noise: float
    clock: Clock | None
    stated: tuple[Tensor, Tensor] | None
    slowest: Tensor
    spread: Tensor

    @property
    def name(self) -> str:
        return "settled approximation"

    @classmethod
    def of(cls, conductance: Tensor, cells: Cells, clock: Clock | None) -> Self:
        root = cells.mobility.sqrt()
        factor, info = torch.linalg.cholesky_ex(root.unsqueeze(-1) * conductance * root.unsqueeze(-2))
        eye = torch.eye(conductance.shape[-1], dtype=conductance.dtype, device=conductance.device)
        factor = torch.where((info == 0)[..., None, None], factor, eye)  # on the CPU the inverse of a singular one would raise
        inverse = torch.cholesky_inverse(factor)
        slowest = torch.where(info == 0, _slowest(inverse), torch.nan)
        spread = inverse.diagonal(dim1=-2, dim2=-1) * cells.mobility
        stated = None if clock is None else _stated(slowest, clock, cells.noise)
        return cls(inverse, factor, root, cells.noise, clock, stated, slowest, spread)

    def respond(
        self, excitation: Excitation, clock: Clock, *, keep_end: bool, generator: torch.Generator | None
    ) -> AnalogResponse:
        drive, offset = self._inward(excitation.drive), self._inward(excitation.offset)
        proportional, constant = self._mean(drive, clock), self._mean(offset, clock)
        if _cold(clock):
            proportional = proportional + self._remains(excitation.guess, clock)
            constant = constant + self._remains(excitation.start, clock)
        noise, end_noise = self._noise(proportional, clock, keep_end, generator)
        constant = constant + noise
        if not keep_end:
            return AnalogResponse(proportional, constant, proportional, constant)
        return AnalogResponse(proportional, constant, drive @ self.inverse, offset @ self.inverse + end_noise)

    def reads(self, excitation: Excitation, clock: Clock, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Independent stationary reads."""
        mean = self._inward(excitation.drive + excitation.offset) @ self.inverse
        rows, n = mean.shape[-2:]
        chunk, reads = max(1, CHUNK // rows), clock.reads or 1
        for done in range(0, reads, chunk):
            count = min(chunk, reads - done)
            xi = normal((*mean.shape[:-2], rows * count, n), mean, generator)
            noise = (math.sqrt(self.noise) * self._shaped(xi)).reshape(*mean.shape[:-1], count, n)
            yield (noise + mean.unsqueeze(-2)) * self.root.unsqueeze(-2).unsqueeze(-2)

    def gram_rows(self, reads: int, generator: torch.Generator | None) -> Tensor:
        """Voltages `[*stack, 1, n, n]`, n rows whose Σ x xᵀ is distributed as that of k ≥ n independent undriven reads.

        By Bartlett's decomposition of the Wishart distribution, at a cost without k.
        """
        n, like = self.factor.shape[-1], self.factor
        lower = normal(tuple(like.shape), like, generator).tril(-1)
        shapes = (reads - torch.arange(n, dtype=torch.float64)) / 2
        device = like.device if generator is None else generator.device
        shapes = shapes.expand(*like.shape[:-2], n).contiguous().to(device)
        chi = (2 * torch._standard_gamma(shapes, generator=generator)).sqrt().to(like)
        rows = math.sqrt(self.noise) * self._shaped((lower + torch.diag_embed(chi)).mT)
        return (rows * self.root.unsqueeze(-2)).unsqueeze(-3)

    def volts(self, rows: Tensor) -> Tensor:
        return rows * self.root.unsqueeze(-2)

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        return self.stated if self.stated is not None and clock == self.clock else _stated(self.slowest, clock, self.noise)

    def _mean(self, drive: Tensor, clock: Clock) -> Tensor:
        settled = product(drive, self.inverse)
        return settled - product(settled, self.inverse) / clock.duration if _cold(clock) else settled

    def _remains(self, start: Tensor, clock: Clock) -> Tensor:
        """What an average from the start on keeps of the start, z₀ → M⁻¹z₀/T."""
        return (start / self.root.unsqueeze(-2)) @ self.inverse / clock.duration

    def _noise(self, like: Tensor, clock: Clock, keep_end: bool, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Noise of the reading and, correlated with it, of the end state."""
        if self.noise == 0:
            zero = torch.zeros_like(like[..., :1, :])
            return zero, zero
        xi = normal(tuple(like.shape), like, generator)
        sigma = math.sqrt(self.noise)
        if clock.reads is not None:
            reading = self._shaped(xi) * (sigma / math.sqrt(clock.reads))
            if (clock.reads == 1 and clock.duration == 0) or not keep_end:
                return reading, reading
            return reading, self._shaped(normal(tuple(like.shape), like, generator)) * sigma
        once = product(xi, self.inverse)
        weight = (0.75 if _cold(clock) else 0.5) / clock.duration
        reading = (once - weight * product(once, self.inverse)) * (sigma * math.sqrt(2 / clock.duration))
        if not keep_end:
            return reading, reading
        own = self._shaped(normal(tuple(like.shape), like, generator))
        own = own - own @ self.inverse / (4 * clock.duration)
        return reading, sigma * (own + once / math.sqrt(2 * clock.duration))

    def _shaped(self, xi: Tensor) -> Tensor:
        """Rows of white noise to rows of covariance M⁻¹: ξ L⁻¹."""
        return torch.linalg.solve_triangular(self.factor, xi, upper=False, left=False)

    def _inward(self, rows: Tensor) -> Tensor:
        return rows * self.root.unsqueeze(-2)


def _cold(clock: Clock) -> bool:
    """Whether reading begins at the start, so that the average includes the relaxation."""
    return clock.burn_in == 0 and clock.reads is None


def _stated(slowest: Tensor, clock: Clock, noise: float) -> tuple[Tensor, Tensor]:
    """Relative errors at the slowest mode, where they are largest; 0 variance error for a machine without noise."""
    rates = slowest.double().unsqueeze(-1)
    exact = average(rates, clock, noise=noise)
    mean = exact.carry[..., READING, 0].abs()
    if _cold(clock):
        mean = (exact.gain[..., READING] * rates - (1 - 1 / (rates * clock.duration))).abs()
    if noise == 0:
        return torch.zeros_like(slowest), mean.squeeze(-1).to(slowest)
    if clock.reads is None:
        weight = 1 - (0.75 if _cold(clock) else 0.5) / (rates * clock.duration)
        fast = 2 * noise / (rates.square() * clock.duration) * weight.square()
    else:
        fast = noise / (rates * clock.reads)
    variance = (fast / exact.covariance[..., READING, READING] - 1).abs()
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
