"""The exact law: one eigendecomposition of the held matrix, then any schedule, start and number of drives.

With M = P^{1/2} Â P^{1/2} = V diag(λ) Vᵀ and U = P^{1/2} V, x = U y decouples into modes dy = −(λy − Uᵀb̂)dt + sqrt(2/β)dW, whose
readings `process` gives in closed form. P = diag(1/c_i) is the capacitance mismatch, whose noise matches it. Cost: about 9n³ once, then
2 products n² a drive (3 with the end state). Exact for every schedule, start and λ, the negative ones included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from heatbath.machines.converters import normal
from heatbath.machines.law import Answer, Clock, Excitation, Law
from heatbath.operators import tree


@tree
@dataclass(frozen=True, eq=False)
class ExactLaw(Law):
    """Tier A.

    Args:
        modes: U, `[*stack, n, n]`.
        rates: λ ascending, `[*stack, n]`, float64.
        speed: P, `[*stack, n]`, or None.
        slowest: `[*stack]`.
        spread: `[*stack, n]`.
    """

    modes: Tensor
    rates: Tensor
    speed: Tensor | None
    slowest: Tensor
    spread: Tensor

    @property
    def tier(self) -> str:
        return "exact law"

    @classmethod
    def of(cls, matrix: Tensor, speed: Tensor | None) -> Self:
        finite = torch.isfinite(matrix).all(-1).all(-1)
        matrix = torch.where(finite[..., None, None], matrix, torch.eye(matrix.shape[-1]).to(matrix))
        if speed is not None:
            root = speed.sqrt()
            matrix = root[..., :, None] * matrix * root[..., None, :]
        rates, modes = torch.linalg.eigh(matrix)
        if speed is not None:
            modes = root[..., None] * modes
        rates = torch.where(finite[..., None], rates.double(), torch.nan)
        slowest = rates[..., 0].to(matrix)
        spread = (modes.square() / rates.to(modes).clamp(min=torch.finfo(modes.dtype).tiny).unsqueeze(-2)).sum(-1)
        return cls(modes, rates, speed, slowest, spread)

    def answer(self, excitation: Excitation, clock: Clock, *, keep_end: bool, generator: torch.Generator | None) -> Answer:
        law = clock.moments(self.rates)
        dtype, shape = excitation.drive.dtype, excitation.drive.shape
        drive = excitation.drive @ self.modes
        guess = self._project(excitation.guess)
        start = self._project(excitation.start)
        offset = None if excitation.offset is None else excitation.offset @ self.modes
        first = second = None
        if clock.noise > 0:
            deviation = law.variance.sqrt()
            first = normal(tuple(shape), drive, generator)
            noise = _row(deviation, dtype) * first
        else:
            noise = None
        signal = _sum(_row(law.gain, dtype) * drive, law.carry, guess)
        rest = _sum(_sum(noise, law.gain, offset), law.carry, start)
        parts = [signal, rest]
        if keep_end:
            if clock.noise > 0:
                second = normal(tuple(shape), drive, generator)
                shared = law.covariance / deviation.clamp(min=1e-300)
                own = (law.end_variance - shared.square()).clamp(min=0).sqrt()
                noise = _row(shared, dtype) * first + _row(own, dtype) * second
            parts.append(_sum(_row(law.end_gain, dtype) * drive, law.end_carry, guess))
            parts.append(_sum(_sum(noise, law.end_gain, offset), law.end_carry, start))
        parts = self._lift(parts, drive)
        return Answer(parts[0], parts[1], parts[2] if keep_end else None, parts[3] if keep_end else None)

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(self.slowest)
        return zero, zero

    def _project(self, volts: Tensor | None) -> Tensor | None:
        """Voltages to modes: y = Vᵀ P^{−1/2} x = Uᵀ P⁻¹ x."""
        if volts is None:
            return None
        return (volts if self.speed is None else volts / self.speed.unsqueeze(-2)) @ self.modes

    def _lift(self, parts: list[Tensor | None], like: Tensor) -> list[Tensor]:
        """Modes to voltages, x = U y, in one product."""
        present = [p.expand_as(like) for p in parts if p is not None]
        lifted = iter((torch.cat(present, -2) @ self.modes.mT).split(like.shape[-2], -2))
        return [torch.zeros_like(like) if p is None else next(lifted) for p in parts]


def _row(coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight for each mode, `[*stack, n]`, as a row that multiplies `[*stack, m, n]`."""
    return coefficients.to(dtype).unsqueeze(-2)


def _sum(total: Tensor | None, weight: Tensor, term: Tensor | None) -> Tensor | None:
    """total + weight · term, where None is nothing."""
    if term is None:
        return total
    term = _row(weight, term.dtype) * term
    return term if total is None else total + term
