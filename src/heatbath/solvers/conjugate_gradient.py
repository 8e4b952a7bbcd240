"""Conjugate gradients: M x = b by products with M alone (Hestenes & Stiefel 1952).

From x₀ with r₀ = b − M x₀, z = P r for a preconditioner P ≈ M⁻¹ and p₀ = z₀,

    α = ⟨r, z⟩/⟨p, Mp⟩,   x ← x + αp,   r' = r − αMp,   z' = P r',   β = ⟨z', r' − r⟩/⟨z, r⟩,   p ← z' + βp,

which ends after as many steps as M P has distinct eigenvalues, n at most, and after m steps has an error below
2 ((√κ − 1)/(√κ + 1))ᵐ in the M-norm, κ the condition number of M P. β as written (Golub & Ye 1999) equals the textbook's for
a fixed P and keeps its footing when P is a noisy machine.

All right-hand sides advance in one product. A column is frozen once ‖r‖ ≤ tolerance · ‖b‖; the number of products is fixed in
advance, so nothing waits for a device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Operator, tree
from heatbath.solvers.base import Outcome, Solution, Solver, check_solver, worse
from heatbath.solvers.products import (
    binary_scale,
    finite_members,
    members,
    product_work,
    relative_residual,
    vectors_of,
    vitality,
)
from heatbath.work import Work, elementwise

PASSES = 14.0  # operations per number and step outside of products: four inner products and three updates, two each


@tree
@dataclass(frozen=True, eq=False)
class Krylov:
    """State of `ConjugateGradient`: nothing but the operator, and what the preconditioner prepared.

    Args:
        operator: M.
        preconditioner: state of the preconditioner, or None without one.
        outcome: int8 codes `[*stack]`.
    """

    operator: Operator
    preconditioner: Any  # Any: the state of any solver
    outcome: Tensor


@dataclass(frozen=True)
class ConjugateGradient(Solver[Krylov]):
    """Iterate with products only; takes every operator, `Shifted` and matrix-free ones included.

    Prefer it where M is large and well damped, and where a good `guess` is at hand. The residual it reports is the
    recurrence's, which rounding separates from the true one at about ε κ; wrap it in `Guarded` for a measured one.

    Args:
        iterations: how many steps, hence products, for every right-hand side.
        tolerance: relative residual at which a column is frozen.
        preconditioner: a solver that approximates M⁻¹, such as `Jacobi()`; None: none.

    Raises:
        TypeError: a preconditioner that is no solver.
        ValueError: iterations below 1, or a negative tolerance.
    """

    iterations: int = 40
    tolerance: float = 1e-6
    preconditioner: Solver[Any] | None = None  # Any: any state

    def __post_init__(self) -> None:
        if self.preconditioner is not None:
            check_solver(self.preconditioner, "preconditioner")
        if self.iterations < 1 or self.tolerance < 0:
            raise ValueError(
                f"ConjugateGradient needs iterations >= 1 and tolerance >= 0, got {self.iterations} and {self.tolerance}"
            )

    def prepare(
        self, operator: Operator, *, previous: Krylov | None = None, generator: torch.Generator | None = None
    ) -> tuple[Krylov, Work]:
        sign = vitality(operator)
        codes = torch.where(sign > 0, Outcome.SOLVED.code, Outcome.INDEFINITE.code)
        codes = torch.where(torch.isfinite(sign), codes, Outcome.NONFINITE.code).to(torch.int8)
        work = Work.of(elementwise(operator.size), members(operator))
        if self.preconditioner is None:
            return Krylov(operator, None, codes), work
        before = None if previous is None else previous.preconditioner
        inner, more = self.preconditioner.prepare(operator, previous=before, generator=generator)
        return Krylov(operator, inner, worse(self.preconditioner.outcome(inner), codes)), work + more

    def solve(
        self, state: Krylov, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        operator, stack, domain = state.operator, len(state.operator.stack), len(state.operator.domain)
        product = product_work(operator, vectors_of(operator, rhs))
        work = (product + Work.of(elementwise(rhs.numel(), PASSES))) * self.iterations
        run = _Preconditioner(self.preconditioner, state.preconditioner, generator)
        r = rhs if guess is None else rhs - operator @ guess
        if guess is not None:
            work = work + product
        scale = _lift(torch.maximum(binary_scale(r.flatten(-domain)), binary_scale(rhs.flatten(-domain))), domain)
        x, r, rhs = torch.zeros_like(rhs), r / scale, rhs / scale  # whose squares neither underflow nor overflow
        floor = torch.finfo(rhs.dtype).tiny
        enough = (self.tolerance**2 * _dot(rhs, rhs, domain)).clamp_min(floor)
        z = run(r)
        p, rz = z, _dot(r, z, domain)
        indefinite, steps = torch.zeros_like(enough, dtype=torch.bool), torch.zeros_like(enough, dtype=torch.int64)
        for step in range(self.iterations):
            active = _dot(r, r, domain) > enough
            image = operator @ p
            curvature = _dot(p, image, domain)
            indefinite = indefinite | (active & (curvature <= 0))
            go = active & (curvature > 0)
            steps = steps + go
            alpha = torch.where(go, rz / torch.where(go, curvature, 1.0), 0.0)
            x = x + _lift(alpha, domain) * p
            change = _lift(alpha, domain) * image
            r = r - change
            if step + 1 < self.iterations:
                z = run(r)
                beta = torch.where(go, -_dot(z, change, domain) / torch.where(rz == 0, 1.0, rz), 0.0)
                p, rz = z + _lift(beta, domain) * p, _dot(r, z, domain)
        x = x * scale if guess is None else guess + x * scale
        codes = self._outcome(state, x, _dot(r, r, domain) <= enough, indefinite)
        successor = None if run.successor is None else replace(state, preconditioner=run.successor)
        taken = steps.unsqueeze(-1).flatten(stack)
        notes = {"steps": taken.amax(-1) if taken.shape[-1] else taken.sum(-1), **run.notes}
        return Solution(x, work + run.work, codes, relative_residual(r, rhs, stack), notes, successor)

    def outcome(self, state: Krylov) -> Tensor:
        return state.outcome

    def _outcome(self, state: Krylov, x: Tensor, done: Tensor, indefinite: Tensor) -> Tensor:
        """NONFINITE before INDEFINITE before INACCURATE, else what the preconditioner said."""
        stack = state.outcome.ndim
        finite = finite_members(x, stack)
        codes = torch.where(done.unsqueeze(-1).flatten(stack).all(-1), Outcome.SOLVED.code, Outcome.INACCURATE.code)
        codes = torch.where(indefinite.unsqueeze(-1).flatten(stack).any(-1), Outcome.INDEFINITE.code, codes)
        codes = torch.where(finite, codes, Outcome.NONFINITE.code).to(torch.int8)
        return worse(state.outcome, codes)


class _Preconditioner:
    """z = P r, with the work it took and the state it left."""

    def __init__(self, solver: Solver[Any] | None, state: Any, generator: torch.Generator | None) -> None:  # Any: any state
        self.solver, self.state, self.generator = solver, state, generator
        self.work, self.successor = Work(), None
        self.notes: dict[str, Any] = {}  # Any: as in Solution

    def __call__(self, r: Tensor) -> Tensor:
        if self.solver is None:
            return r
        solution = self.solver.solve(self.state, r, generator=self.generator)
        self.work, self.notes = self.work + solution.work, {f"preconditioner.{k}": v for k, v in solution.notes.items()}
        if solution.state is not None:
            self.state = self.successor = solution.state
        return solution.value


def _dot(a: Tensor, b: Tensor, domain: int) -> Tensor:
    """⟨a, b⟩ of every column: `[*stack, *batch, *domain]` to `[*stack, *batch]`."""
    return (a * b).flatten(-domain).sum(-1)


def _lift(weights: Tensor, domain: int) -> Tensor:
    """`[*stack, *batch]` to `[*stack, *batch, 1, …]`."""
    return weights.reshape(*weights.shape, *(1,) * domain)
