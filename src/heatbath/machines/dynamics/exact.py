"""Exact dynamics: one eigendecomposition of the held matrix, then any schedule, start and number of drives.

With M = P^{1/2} Â P^{1/2} = V diag(λ) Vᵀ and U = P^{1/2} V, x = U y decouples into modes dy = −(λy − Uᵀb̂)dt + noise, whose
readings `ornstein_uhlenbeck` and `ringing` give in closed form. P = diag(1/c_i) is the capacitance mismatch, whose noise
matches it. Cost: about 9n³ once, then 2 products n² a drive (3 with the end state). Exact for every schedule, start and λ, the
negative ones included.

Noise sources that differ, D, or that are correlated, R, mix the modes by C = Vᵀ D^{1/2} R D^{1/2} V. The noise of readings
and end states is then drawn from one root of their joint covariance, an eigendecomposition of size 2n for each schedule. The
stationary state is *not* N(Â⁻¹b̂, Â⁻¹/β), only its mean is: this drift does not obey detailed balance, and emulators that
symmetrise it are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from heatbath.machines.dynamics.base import END, READING, AnalogResponse, Clock, Dynamics, Excitation, average, transition
from heatbath.machines.dynamics.cells import Cells
from heatbath.machines.dynamics.transition import GaussianTransition, psd_root, walk
from heatbath.machines.random import normal
from heatbath.operators import tree


@tree
@dataclass(frozen=True, eq=False)
class ExactDynamics(Dynamics):
    """The modes of the held matrices.

    Args:
        modes: U, `[*stack, n, n]`.
        rates: λ ascending, `[*stack, n]`, float64.
        mobility: P, `[*stack, n]`.
        mixing: C, `[*stack, n, n]`, float64, or None for independent modes.
        noise: 1/β.
        inertia: μ, or None.
        capacitive: the matrix is held in capacitances.
        clock: the schedule that was announced, or None.
        prepared: the modes' transitions for that schedule, or None.
        root: root of the joint covariance of reading and end for that schedule, `[*stack, 2n, 2n]`, or None.
        slowest: `[*stack]`.
        spread: `[*stack, n]`.
        name: what reports call it.
    """

    modes: Tensor
    rates: Tensor
    mobility: Tensor
    mixing: Tensor | None
    noise: float
    inertia: float | None
    capacitive: bool
    clock: Clock | None
    prepared: GaussianTransition | None
    root: Tensor | None
    slowest: Tensor
    spread: Tensor
    name: str = "exact dynamics"

    @classmethod
    def of(cls, conductance: Tensor, cells: Cells, clock: Clock | None) -> Self:
        return cls.under_noise(None, conductance, cells, clock)

    @classmethod
    def under_noise(cls, source: Tensor | None, conductance: Tensor, cells: Cells, clock: Clock | None) -> Self:
        """Under noise sources of covariance R = `source` `[*stack, n, n]`; None: the identity. Intensities scale either."""
        rates, modes, slowest = decompose(conductance, cells.mobility)
        mixing = None
        if source is None and cells.isotropic:
            spread = (modes.square() / rates.to(modes).clamp(min=torch.finfo(modes.dtype).tiny).unsqueeze(-2)).sum(-1)
        else:
            inner = (cells.noise_intensity / cells.mobility).sqrt().unsqueeze(-1) * modes
            mixing = (inner.mT @ (inner if source is None else source @ inner)).double()
            pair = (rates.unsqueeze(-1) + rates.unsqueeze(-2)).clamp(min=1e-300)
            wide = modes.double()
            spread = ((wide @ (2 * mixing / pair)) * wide).sum(-1).to(modes)
        bare = cls(
            modes,
            rates,
            cells.mobility,
            mixing,
            cells.noise,
            cells.inertia,
            cells.capacitive,
            None,
            None,
            None,
            slowest,
            spread,
        )
        return bare if clock is None or cells.capacitive else bare._prepare(clock)

    def _prepare(self, clock: Clock) -> Self:
        prepared = self.average(clock)
        root = None if self.mixing is None else _joint_root(prepared)
        return type(self)(**{**vars(self), "clock": clock, "prepared": prepared, "root": root})

    def respond(
        self, excitation: Excitation, clock: Clock, *, keep_end: bool, generator: torch.Generator | None
    ) -> AnalogResponse:
        prepared = self.average(clock)
        drive, offset = excitation.drive @ self.modes, excitation.offset @ self.modes
        start, guess = self._project(excitation.start), self._project(excitation.guess)
        noises = self._noises(prepared, clock, drive, keep_end, generator)
        parts = []
        for place, noise in zip((READING, END) if keep_end else (READING,), noises, strict=True):
            carry, gain = (_row(c[..., place], drive) for c in (prepared.carry[..., 0], prepared.gain))
            parts += [gain * drive + carry * guess, gain * offset + carry * start + noise]
        return AnalogResponse(*parts, *(() if keep_end else parts))

    def reads(self, excitation: Excitation, clock: Clock, generator: torch.Generator | None) -> Iterator[Tensor]:
        first, each = (
            transition(
                self.rates,
                time,
                noise=self.noise,
                inertia=self.inertia,
                capacitive=self.capacitive,
                mixing=self.mixing,
            ).of_state()
            for time in (clock.burn_in, clock.interval)
        )
        drive = (excitation.drive + excitation.offset) @ self.modes
        start = self._project(excitation.start + excitation.guess)
        for chunk in walk(first, each, start, drive, clock.reads or 1, generator):
            yield chunk.to(drive) @ self.modes.mT.unsqueeze(-3)

    def volts(self, rows: Tensor) -> Tensor:
        return rows @ self.modes.mT

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(self.slowest)
        return zero, zero

    def average(self, clock: Clock) -> GaussianTransition:
        """Transitions of the modes to a reading, from the store if this is the schedule that was announced."""
        if self.prepared is not None and clock == self.clock:
            return self.prepared
        return average(self.rates, clock, noise=self.noise, inertia=self.inertia, mixing=self.mixing)

    def _noises(
        self, prepared: GaussianTransition, clock: Clock, like: Tensor, keep_end: bool, generator: torch.Generator | None
    ) -> list[Tensor]:
        """Noise of the readings, and of the ends if they are kept, in the modes."""
        shape = tuple(like.shape)
        if self.noise == 0:
            return [torch.zeros_like(like)] * (1 + keep_end)
        if self.mixing is not None:
            root = self.root if self.root is not None and clock == self.clock else _joint_root(prepared)
            both = normal((*shape[:-1], 2 * shape[-1]), like, generator) @ root.mT.to(like)
            return list(both.split(shape[-1], -1))[: 1 + keep_end]
        covariance = prepared.covariance
        deviation = covariance[..., READING, READING].clamp(min=0).sqrt()
        first = normal(shape, like, generator)
        noises = [_row(deviation, like) * first]
        if keep_end:
            shared = covariance[..., READING, END] / deviation.clamp(min=1e-300)
            own = (covariance[..., END, END] - shared.square()).clamp(min=0).sqrt()
            noises.append(_row(shared, like) * first + _row(own, like) * normal(shape, like, generator))
        return noises

    def _project(self, volts: Tensor) -> Tensor:
        """Voltages to modes: y = Vᵀ P^{−1/2} x = Uᵀ P⁻¹ x."""
        return (volts / self.mobility.unsqueeze(-2)) @ self.modes


def _joint_root(prepared: GaussianTransition) -> Tensor:
    """Root of the joint covariance of reading and end state in the modes, `[*stack, 2n, 2n]`."""
    q = prepared.covariance
    top = torch.cat([q[..., READING, READING], q[..., READING, END]], -1)
    bottom = torch.cat([q[..., END, READING], q[..., END, END]], -1)
    return psd_root(torch.cat([top, bottom], -2))


def decompose(conductance: Tensor, mobility: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rates λ (float64, ascending), modes U with x = U y, and the slowest rate, of P^{1/2} Â P^{1/2}.

    Matrices that are not finite get NaN rates.
    """
    finite = torch.isfinite(conductance).all(-1).all(-1)
    eye = torch.eye(conductance.shape[-1], dtype=conductance.dtype, device=conductance.device)
    root = mobility.sqrt()
    matrix = root.unsqueeze(-1) * torch.where(finite[..., None, None], conductance, eye) * root.unsqueeze(-2)
    rates, modes = torch.linalg.eigh(matrix)
    rates = torch.where(finite[..., None], rates.double(), torch.nan)
    return rates, root.unsqueeze(-1) * modes, rates[..., 0].to(conductance)


def _row(coefficients: Tensor, like: Tensor) -> Tensor:
    """A weight for each mode, `[*stack, n]`, as a row that multiplies `[*stack, m, n]`."""
    return coefficients.to(like).unsqueeze(-2)
