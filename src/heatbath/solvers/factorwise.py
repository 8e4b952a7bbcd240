"""Kronecker products solved side by side: (B ⊗ A)⁻¹ vec(G) = vec(B⁻¹ G A⁻¹), two small problems in place of a large one.

Sides that need no solver (diagonal, or 1 × 1) are divided by digitally.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Dense, Diagonal, Kronecker, Operator, tree
from heatbath.solvers.base import Outcome, Solution, Solver, usable
from heatbath.solvers.inverse import Inverse, apply_inverse, invert_diagonal
from heatbath.work import Work


@tree
@dataclass(frozen=True, eq=False)
class Sides:
    """The prepared sides of a Kronecker product."""

    left: Any  # Any: a state of the inner solver, or an Inverse
    right: Any  # Any: the same


@dataclass(frozen=True)
class Factorwise(Solver[Sides]):
    """Solve Kronecker products by handing each side to `inner`.

    Args:
        inner: a solver for `Dense` operators.
    """

    inner: Solver[Any]  # Any: any state

    def prepare(
        self, operator: Operator, *, previous: Sides | None = None, generator: torch.Generator | None = None
    ) -> tuple[Sides, Work]:
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
        return self.inner.prepare(side, previous=previous, generator=generator)

    def solve(
        self, state: Sides, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        right = self._solve_side(state.right, rhs, generator)
        left = self._solve_side(state.left, right.value.mT, generator)
        changed = left.state is not None or right.state is not None
        return Solution(
            left.value.mT,
            left.work + right.work,
            worse(left.outcome, right.outcome),
            notes={**{f"right.{k}": v for k, v in right.notes.items()}, **{f"left.{k}": v for k, v in left.notes.items()}},
            state=replace(state, left=left.state or state.left, right=right.state or state.right) if changed else None,
        )

    def _solve_side(self, state: Any, rhs: Tensor, generator: torch.Generator | None) -> Solution:
        """Solve one side for `[*stack, *batch, n]`."""
        if isinstance(state, Inverse):
            return apply_inverse(state, rhs)
        return self.inner.solve(state, rhs, generator=generator)

    def outcome(self, state: Sides) -> Tensor:
        left, right = (s.outcome if isinstance(s, Inverse) else self.inner.outcome(s) for s in (state.left, state.right))
        return worse(left, right)


def worse(a: Tensor, b: Tensor) -> Tensor:
    """The worse of two outcomes, member by member: an unusable one first, then anything but SOLVED."""
    return torch.where(~usable(a) | (usable(b) & (a != Outcome.SOLVED.code)), a, b)
