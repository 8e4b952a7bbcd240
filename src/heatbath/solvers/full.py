"""Any operator as its full matrix, for solvers and machines that know nothing else.

The matrix of n rows takes n² numbers to hold and, for a machine, n cells and n² numbers to send. So it is for small n: the
weights of a small network, or low-rank adapters of a large one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Dense, Gram, Operator, tree
from heatbath.solvers.base import Solution, Solver, check_solver
from heatbath.solvers.products import members
from heatbath.work import Work, matmul


@tree
@dataclass(frozen=True, eq=False)
class Whole:
    """State of `Full`.

    Args:
        inner: state of the inner solver.
        domain: shape of one vector of the operator.
    """

    inner: Any  # Any: state of any solver
    domain: tuple[int, ...]


@dataclass(frozen=True)
class Full(Solver[Whole]):
    """Form the matrix of any operator and hand it to `inner`.

    Args:
        inner: a solver for `Dense` operators.
        limit: largest n that is formed.

    Raises:
        ValueError: a limit below 1; in `prepare`, a larger operator.
    """

    inner: Solver[Any]  # Any: any state
    limit: int = 4096

    def __post_init__(self) -> None:
        check_solver(self.inner, "inner")
        if self.limit < 1:
            raise ValueError(f"the limit of Full must be at least 1, got {self.limit}")

    def prepare(
        self, operator: Operator, *, previous: Whole | None = None, generator: torch.Generator | None = None
    ) -> tuple[Whole, Work]:
        n = operator.size
        if n > self.limit:
            raise ValueError(
                f"a full matrix of size {n} was asked for, the limit is {self.limit}: train fewer parameters (freeze layers, "
                "low-rank adapters), raise Full(limit=…), or use SmallSide(…) or ConjugateGradient(), which form none"
            )
        before = None if previous is None else previous.inner
        inner, work = self.inner.prepare(Dense(operator.dense()), previous=before, generator=generator)
        if isinstance(operator, Gram):
            work = work + Work.of(matmul(n, operator.root.shape[0], n), members(operator))
        return Whole(inner, tuple(operator.domain)), work

    def solve(
        self, state: Whole, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        axes = len(state.domain)
        flat = rhs.flatten(-axes)
        solution = self.inner.solve(
            state.inner, flat, guess=None if guess is None else guess.flatten(-axes), generator=generator
        )
        successor = None if solution.state is None else replace(state, inner=solution.state)
        return replace(solution, value=solution.value.reshape(rhs.shape), state=successor)

    def outcome(self, state: Whole) -> Tensor:
        return self.inner.outcome(state.inner)
