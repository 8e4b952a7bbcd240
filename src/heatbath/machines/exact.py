"""The exact law: one eigendecomposition of the held matrix, then any schedule, start and number of drives.

With M = P^{1/2} Â P^{1/2} = V diag(λ) Vᵀ and U = P^{1/2} V, x = U y decouples into modes dy = −(λy − Uᵀb̂)dt + sqrt(2/β)dW,
whose readings `process` gives in closed form. P = diag(1/c_i) is the capacitance mismatch, whose noise matches it. Cost:
about 9n³ once, then 2 products n² a drive (3 with the end state). Exact for every schedule, start and λ, the negative ones
included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, overload

import torch
from torch import Tensor

from heatbath.machines.converters import normal
from heatbath.machines.covariance import autoregressive, gram_of_reads
from heatbath.machines.frontend import measure
from heatbath.machines.law import Derivation, Law
from heatbath.machines.process import Moments
from heatbath.machines.signals import Answer, Cells, Clock, Excitation, Measurement, Watch
from heatbath.machines.spec import MachineSpec
from heatbath.operators import tree


@tree
@dataclass(frozen=True, eq=False)
class ExactLaw(Law):
    """Tier A.

    Args:
        modes: U, `[*stack, n, n]`.
        rates: λ ascending, `[*stack, n]`, float64.
        speed: P, `[*stack, n]`, or None.
        clock: the schedule that will be run, or None.
        moments: of the modes for that schedule, or None.
        slowest: `[*stack]`.
        spread: `[*stack, n]`.
    """

    modes: Tensor
    rates: Tensor
    speed: Tensor | None
    clock: Clock | None
    moments: Moments | None
    slowest: Tensor
    spread: Tensor

    @property
    def tier(self) -> str:
        return "exact law"

    @property
    def derivation(self) -> Derivation:
        return type(self)

    @classmethod
    def of(cls, held: Tensor, cells: Cells, clock: Clock | None) -> Self:
        rates, modes, slowest = decompose(held, cells.speed)
        spread = (modes.square() / rates.to(modes).clamp(min=torch.finfo(modes.dtype).tiny).unsqueeze(-2)).sum(-1)
        moments = None if clock is None else clock.moments(rates)
        return cls(modes, rates, cells.speed, clock, moments, slowest, spread)

    def measure(
        self, excitation: Excitation, clock: Clock, spec: MachineSpec, *, keep_end: bool, generator: torch.Generator | None
    ) -> Measurement:
        law = self.moments_at(clock)
        shape = tuple(excitation.drive.shape)
        noises: tuple[Tensor | None, Tensor | None] = (None, None)
        if clock.noise > 0:
            noises = _correlated(law, shape, excitation.drive, keep_end, generator)
        return self.convert(excitation, noises, clock, spec, spread=self.spread, keep_end=keep_end, generator=generator)

    def convert(
        self,
        excitation: Excitation,
        noises: tuple[Tensor | None, Tensor | None],
        clock: Clock,
        spec: MachineSpec,
        *,
        spread: Tensor,
        keep_end: bool,
        generator: torch.Generator | None,
    ) -> Measurement:
        """Readings with a noise that was drawn already, ranged and converted; `spread` as for `frontend.measure`."""
        answer = self.answer(excitation, self.moments_at(clock), noises, keep_end=keep_end, split=spec.rail is not None)
        return measure(answer, spread, clock, spec, generator=generator)

    def moments_at(self, clock: Clock) -> Moments:
        """Moments of the modes, from the store if this is the schedule that was announced."""
        return self.moments if self.moments is not None and clock == self.clock else clock.moments(self.rates)

    def answer(
        self,
        excitation: Excitation,
        law: Moments,
        noises: tuple[Tensor | None, Tensor | None],
        *,
        keep_end: bool,
        split: bool,
    ) -> Answer:
        """Readings and end states of given moments and noise in the modes, before any range or converter.

        Args:
            excitation: what drives the cells.
            law: moments of the modes.
            noises: noise of the reading and of the end state in the modes, `[*stack, m, n]`, or None.
            keep_end: also the end state.
            split: keep apart what scales with the drive and what does not.
        """
        drive = excitation.drive @ self.modes
        guess, start = self.project(excitation.guess), self.project(excitation.start)
        offset = None if excitation.offset is None else excitation.offset @ self.modes
        dtype = drive.dtype
        signal = _sum(_row(law.gain, dtype) * drive, law.carry, guess)
        rest = _sum(_sum(noises[0], law.gain, offset), law.carry, start)
        end_signal = end_rest = None
        if keep_end:
            end_signal = _sum(_row(law.end_gain, dtype) * drive, law.end_carry, guess)
            end_rest = _sum(_sum(noises[1], law.end_gain, offset), law.end_carry, start)
        if not split:
            signal, rest = signal if rest is None else signal + rest, None
            if end_signal is not None:
                end_signal, end_rest = end_signal if end_rest is None else end_signal + end_rest, None
        return Answer(*self._lift([signal, rest, end_signal, end_rest], drive))  # type: ignore[arg-type]  # a signal is there

    def watch(self, watch: Watch, spec: MachineSpec, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Tier C."""
        drive = None if watch.offset is None else watch.offset @ self.modes
        reads = autoregressive(self.rates, watch, drive=drive, colour=None, generator=generator)
        return gram_of_reads(reads, self.modes.mT, watch.reads, spec, generator)

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(self.slowest)
        return zero, zero

    def project(self, volts: Tensor | None) -> Tensor | None:
        """Voltages to modes: y = Vᵀ P^{−1/2} x = Uᵀ P⁻¹ x."""
        if volts is None:
            return None
        return (volts if self.speed is None else volts / self.speed.unsqueeze(-2)) @ self.modes

    def _lift(self, parts: list[Tensor | None], like: Tensor) -> list[Tensor | None]:
        """Modes to voltages, x = U y, in one product."""
        present = [p.expand_as(like) for p in parts if p is not None]
        rows = present[0] if len(present) == 1 else torch.cat(present, -2)
        lifted = iter((rows @ self.modes.mT).unflatten(-2, (len(present), like.shape[-2])).unbind(-3))
        return [None if p is None else next(lifted) for p in parts]


def _correlated(
    law: Moments, shape: tuple[int, ...], like: Tensor, keep_end: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """Noise of the reading and of the end state of every mode, with the covariance of `law`."""
    deviation = law.variance.sqrt()
    first = normal(shape, like, generator)
    if not keep_end:
        return _row(deviation, like.dtype) * first, None
    shared = law.covariance / deviation.clamp(min=1e-300)
    own = (law.end_variance - shared.square()).clamp(min=0).sqrt()
    second = normal(shape, like, generator)
    return _row(deviation, like.dtype) * first, _row(shared, like.dtype) * first + _row(own, like.dtype) * second


def decompose(held: Tensor, speed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rates λ (float64, ascending), modes U with x = U y, and the slowest rate, of P^{1/2} Â P^{1/2}.

    Matrices that are not finite get NaN rates.
    """
    finite = torch.isfinite(held).all(-1).all(-1)
    eye = torch.eye(held.shape[-1], dtype=held.dtype, device=held.device)
    matrix = torch.where(finite[..., None, None], held, eye)
    if speed is not None:
        root = speed.sqrt()
        matrix = root[..., :, None] * matrix * root[..., None, :]
    rates, modes = torch.linalg.eigh(matrix)
    if speed is not None:
        modes = root[..., None] * modes
    rates = torch.where(finite[..., None], rates.double(), torch.nan)
    return rates, modes, rates[..., 0].to(held)


def _row(coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight for each mode, `[*stack, n]`, as a row that multiplies `[*stack, m, n]`."""
    return coefficients.to(dtype).unsqueeze(-2)


@overload
def _sum(total: Tensor, weight: Tensor, term: Tensor | None) -> Tensor: ...
@overload
def _sum(total: Tensor | None, weight: Tensor, term: Tensor | None) -> Tensor | None: ...
def _sum(total: Tensor | None, weight: Tensor, term: Tensor | None) -> Tensor | None:
    """The sum total + weight · term, where None is nothing."""
    if term is None:
        return total
    term = _row(weight, term.dtype) * term
    return term if total is None else total + term
