"""Gram matrices on their small side: systems of min(m, n) unknowns in place of n.

For M = SᵀS + λI with S `[m, n]`: where m ≥ n the matrix itself is formed; where m < n its mirror image, by Woodbury

    M⁻¹ b = (b − Sᵀ y)/λ,    (S Sᵀ + λI) y = S b,

for 2m²n operations to form S Sᵀ and 4mn a right-hand side. Rounding is magnified by ‖S‖²/λ; `Refined(SmallSide(…))` takes
that back for two products a sweep. In the second case λ must be positive: SᵀS alone is singular there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Dense, Gram, Operator, tree
from heatbath.solvers.base import Outcome, Solution, Solver, check_solver, worse
from heatbath.solvers.cholesky import Cholesky
from heatbath.solvers.products import members, over
from heatbath.work import Work, elementwise, matmul


@tree
@dataclass(frozen=True, eq=False)
class Folded:
    """State of `SmallSide`.

    Args:
        inner: state of the inner solver.
        rows: S `[*stack, m, n]` where the mirror image is solved with, else None.
        amount: λ `[*stack]`.
        outcome: int8 codes `[*stack]`.
    """

    inner: Any  # Any: state of any solver
    rows: Tensor | None
    amount: Tensor
    outcome: Tensor


@dataclass(frozen=True)
class SmallSide(Solver[Folded]):
    """Solve with Gram matrices in the smaller of their two dimensions; holds m·n numbers where m < n.

    Prefer it while the batch has few outputs; `ConjugateGradient` takes Gram matrices too and holds no S.

    Args:
        inner: a solver for `Dense` operators; a machine then needs min(m, n) cells.
    """

    inner: Solver[Any] = field(default_factory=Cholesky)  # Any: any state

    def __post_init__(self) -> None:
        check_solver(self.inner, "inner")

    def prepare(
        self, operator: Operator, *, previous: Folded | None = None, generator: torch.Generator | None = None
    ) -> tuple[Folded, Work]:
        if not isinstance(operator, Gram):
            raise TypeError(f"SmallSide takes Gram operators, got {type(operator).__name__}; use its inner solver")
        before = None if previous is None else previous.inner
        m, n = operator.root.shape
        if m >= n:
            rows, small = None, Dense(operator.dense())
        else:
            rows = torch.cat(list(operator.root.rows()), -2)
            small = Dense(rows @ rows.mT).shift(operator.amount)
        inner, work = self.inner.prepare(small, previous=before, generator=generator)
        codes = self.inner.outcome(inner)
        if rows is not None:
            singular = torch.where(operator.amount > 0, Outcome.SOLVED.code, Outcome.INDEFINITE.code)
            singular = torch.where(torch.isfinite(operator.amount), singular, Outcome.NONFINITE.code)
            codes = worse(singular.to(torch.int8), codes)
        return Folded(inner, rows, operator.amount, codes), work + Work.of(
            matmul(min(m, n), max(m, n), min(m, n)), members(operator)
        )

    def solve(
        self, state: Folded, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        if state.rows is None:
            solution = self.inner.solve(state.inner, rhs, guess=guess, generator=generator)
            return replace(solution, outcome=worse(state.outcome, solution.outcome), state=_successor(state, solution))
        stack, (m, n) = state.amount.shape, state.rows.shape[-2:]
        flat = rhs.reshape(*stack, -1, n)
        solution = self.inner.solve(state.inner, flat @ state.rows.mT, generator=generator)
        value = (flat - solution.value @ state.rows) / over(state.amount.to(flat), flat)
        vectors = rhs.numel() // (max(stack.numel(), 1) * n)
        kernels = Work.of(matmul(vectors, n, m)) + Work.of(matmul(vectors, m, n)) + Work.of(elementwise(vectors * n, 2))
        return Solution(
            value.reshape(rhs.shape),
            solution.work + kernels * max(stack.numel(), 1),
            worse(state.outcome, solution.outcome),
            notes=solution.notes,
            state=_successor(state, solution),
        )

    def outcome(self, state: Folded) -> Tensor:
        return state.outcome


def _successor(state: Folded, solution: Solution) -> Folded | None:
    """The state with what solving changed."""
    return None if solution.state is None else replace(state, inner=solution.state)
