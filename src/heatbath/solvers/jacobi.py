"""Jacobi: M ≈ diag(M), so M⁻¹b ≈ b / diag(M).

No solution but the cheapest preconditioner: it undoes badly chosen units, and with it the condition number is within a factor n
of the best any diagonal scaling reaches (van der Sluis 1969).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators import Operator, tree
from heatbath.solvers.base import Outcome, Solution, Solver
from heatbath.solvers.products import diagonal_of, members
from heatbath.work import Work, elementwise


@tree
@dataclass(frozen=True, eq=False)
class Scaling:
    """The inverse of a diagonal.

    Args:
        weight: 1/diag(M), `[*stack, *domain]`; 1 where the diagonal is not positive.
        outcome: int8 codes `[*stack]`.
    """

    weight: Tensor
    outcome: Tensor


@dataclass(frozen=True)
class Jacobi(Solver[Scaling]):
    """Divide by the diagonal; takes operators whose diagonal is known (`heatbath.solvers.diagonal_of`).

    A preconditioner for `ConjugateGradient`; alone it is exact for diagonal operators only.
    """

    def prepare(
        self, operator: Operator, *, previous: Scaling | None = None, generator: torch.Generator | None = None
    ) -> tuple[Scaling, Work]:
        diagonal = diagonal_of(operator)
        positive = diagonal > 0
        weight = torch.where(positive, diagonal, 1.0).reciprocal()
        definite = positive.flatten(len(operator.stack)).all(-1)
        code = torch.where(definite, Outcome.SOLVED.code, Outcome.INDEFINITE.code).to(torch.int8)
        return Scaling(weight, code), Work.of(elementwise(operator.size), members(operator))

    def solve(
        self, state: Scaling, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        stack = state.outcome.ndim
        between = (1,) * (rhs.ndim - state.weight.ndim)
        weight = state.weight.reshape(*state.weight.shape[:stack], *between, *state.weight.shape[stack:])
        return Solution(rhs * weight, Work.of(elementwise(rhs.numel())), state.outcome)

    def outcome(self, state: Scaling) -> Tensor:
        return state.outcome
