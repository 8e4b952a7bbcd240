"""Kronecker products solved side by side: (B ⊗ A)⁻¹ vec(G) = vec(B⁻¹ G A⁻¹), two small problems in place of a large one.

Sides that need no solver (diagonal, or 1 × 1) are divided by digitally; block-diagonal sides are stacks of small problems. A
sketched side of rank r, Q S Qᵀ + τ(I − QQᵀ), is a problem of r unknowns and a division: `inner` gets S, and a machine needs r
cells for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Kronecker,
    LowRank,
    Operator,
    Shifted,
    Sketched,
    join_features,
    split_features,
    tree,
)
from heatbath.solvers.base import Outcome, Solution, Solver, check_solver, worse
from heatbath.solvers.inverse import Inverse, apply_inverse, apply_inverse_to_columns, invert_diagonal
from heatbath.solvers.products import low_rank_work
from heatbath.work import Work, elementwise, matmul


@tree
@dataclass(frozen=True, eq=False)
class Sides:
    """The prepared sides of a Kronecker product."""

    left: Any  # Any: a state of the inner solver, or an Inverse
    right: Any  # Any: the same


@tree
@dataclass(frozen=True, eq=False)
class Pieces:
    """A prepared block-diagonal side: its blocks as one more dimension of the stack.

    Args:
        inner: state of the inner solver, stack `[*stack, K]`.
        sizes: (K, m, n): K blocks of m hold a matrix of size n.
        outcome: int8 codes `[*stack]`, the worst of the blocks.
    """

    inner: Any  # Any: a state of the inner solver
    sizes: tuple[int, int, int]
    outcome: Tensor


@tree
@dataclass(frozen=True, eq=False)
class Projected:
    """A prepared sketched side, Q S Qᵀ + τ (I − Q Qᵀ).

    Args:
        inner: state of the inner solver for S `[*stack, r, r]`.
        basis: Q, `[*stack, n, r]`.
        rest: τ, `[*stack]`.
        outcome: int8 codes `[*stack]`, the worse of the inner solver's and of the division by τ.
    """

    inner: Any  # Any: a state of the inner solver
    basis: Tensor
    rest: Tensor
    outcome: Tensor

    def inverse(self, core: Inverse) -> Inverse:
        """The inverse of the whole from that of S."""
        operator = LowRank(self.basis, core.operator.dense(), self.rest.reciprocal())
        return Inverse(operator, worse(self.outcome, core.outcome), residual=core.residual)


@dataclass(frozen=True)
class Factorwise(Solver[Sides]):
    """Solve Kronecker products by handing each side to `inner`.

    Args:
        inner: a solver for `Dense` operators.
    """

    inner: Solver[Any]  # Any: any state

    def __post_init__(self) -> None:
        check_solver(self.inner, "inner")

    def prepare(
        self, operator: Operator, *, previous: Sides | None = None, generator: torch.Generator | None = None
    ) -> tuple[Sides, Work]:
        if isinstance(operator, Shifted):
            raise TypeError("an exactly damped product has no inverse side by side; use Eigen(), or factored damping")
        if not isinstance(operator, Kronecker):
            raise TypeError(f"Factorwise takes Kronecker operators, got {type(operator).__name__}; use its inner solver")
        left, work_left = self._prepare_side(operator.left, previous.left if previous else None, generator)
        right, work_right = self._prepare_side(operator.right, previous.right if previous else None, generator)
        return Sides(left, right), work_left + work_right

    def _prepare_side(self, side: Operator, previous: Any, generator: torch.Generator | None) -> tuple[Any, Work]:
        """Prepare one side, digitally where it is trivial."""
        if isinstance(side, Dense) and side.size == 1:
            side = Diagonal(side.matrix[..., 0])
        if isinstance(side, Diagonal):
            return invert_diagonal(side)
        if isinstance(side, BlockDiagonal):
            inner, work = self.inner.prepare(side.filled(), previous=previous.inner if previous else None, generator=generator)
            sizes = (*side.blocks.shape[-3:-1], side.length)
            return Pieces(inner, sizes, _worst(self.inner.outcome(inner))), work
        if isinstance(side, Sketched):
            return self._project(side, generator)
        return self.inner.prepare(side, previous=previous, generator=generator)

    def _project(self, side: Sketched, generator: torch.Generator | None) -> tuple[Projected, Work]:
        """Prepare a sketched side, always from scratch: what was known about S was in another basis."""
        low = side.low_rank()
        inner, work = self.inner.prepare(Dense(low.core), generator=generator)
        codes = torch.where(low.rest > 0, Outcome.SOLVED.code, Outcome.INDEFINITE.code).to(torch.int8)
        return Projected(inner, low.basis, low.rest, worse(codes, self.inner.outcome(inner))), work + low_rank_work(side)

    def solve(
        self, state: Sides, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        right = self._solve_side(state.right, rhs, generator)
        inverse = self._inverse(state.left)
        if inverse is not None and rhs.ndim == inverse.outcome.ndim + 2:
            left = apply_inverse_to_columns(inverse, right.value)
        else:
            left = self._solve_side(state.left, right.value.mT, generator)
            left = replace(left, value=left.value.mT)
        changed = left.state is not None or right.state is not None
        return Solution(
            left.value,
            left.work + right.work,
            worse(left.outcome, right.outcome),
            notes={**{f"right.{k}": v for k, v in right.notes.items()}, **{f"left.{k}": v for k, v in left.notes.items()}},
            state=replace(state, left=left.state or state.left, right=right.state or state.right) if changed else None,
        )

    def _inverse(self, state: Any) -> Inverse | None:  # Any: any state
        """What one side's state comes to; diagonals are inverted here, whatever the inner solver is."""
        if isinstance(state, Inverse):
            return state
        if isinstance(state, Projected):
            core = state.inner if isinstance(state.inner, Inverse) else self.inner.explicit(state.inner)
            return None if core is None else state.inverse(core)
        return None if isinstance(state, Pieces) else self.inner.explicit(state)

    def _solve_side(self, state: Any, rhs: Tensor, generator: torch.Generator | None) -> Solution:
        """Solve one side for `[*stack, *batch, n]`."""
        inverse = self._inverse(state)
        if inverse is not None:
            return apply_inverse(inverse, rhs)
        if isinstance(state, Pieces):
            count, size, length = state.sizes
            rows = rhs.reshape(*state.outcome.shape, -1, length)
            solution = self.inner.solve(state.inner, split_features(rows, count, size), generator=generator)
            value, outcome = join_features(solution.value, length).reshape(rhs.shape), _worst(solution.outcome)
            successor = None if solution.state is None else replace(state, inner=solution.state)
            return replace(solution, value=value, outcome=outcome, residual=None, state=successor)
        if isinstance(state, Projected):
            return self._solve_projected(state, rhs, generator)
        return self.inner.solve(state, rhs, generator=generator)

    def _solve_projected(self, state: Projected, rhs: Tensor, generator: torch.Generator | None) -> Solution:
        """b/τ + Q (S⁻¹ − 1/τ) Qᵀ b."""
        length, rank = state.basis.shape[-2:]
        rows = rhs.reshape(*state.outcome.shape, -1, length)
        within = rows @ state.basis
        solution = self.inner.solve(state.inner, within, generator=generator)
        rest = state.rest[..., None, None]
        value = (rows / rest + (solution.value - within / rest) @ state.basis.mT).reshape(rhs.shape)
        count, vectors = max(state.outcome.numel(), 1), rows.shape[-2]
        products = Work.of(matmul(vectors, length, rank)) + Work.of(matmul(vectors, rank, length))
        work = solution.work + (products + Work.of(elementwise(vectors * length, 2))) * count
        successor = None if solution.state is None else replace(state, inner=solution.state)
        codes = worse(state.outcome, solution.outcome)
        return replace(solution, value=value, work=work, outcome=codes, residual=None, state=successor)

    def outcome(self, state: Sides) -> Tensor:
        left, right = (
            s.outcome if isinstance(s, Inverse | Pieces | Projected) else self.inner.outcome(s)
            for s in (state.left, state.right)
        )
        return worse(left, right)


def _worst(codes: Tensor) -> Tensor:
    """The worst outcome over the last dimension."""
    worst = codes[..., 0]
    for k in range(1, codes.shape[-1]):
        worst = worse(worst, codes[..., k])
    return worst
