"""Iterative refinement: an inaccurate solver and an accurate residual make an accurate solution (Wilkinson 1963).

With P ≈ M⁻¹ the inner solver and the residual taken digitally,

    x ← x + P (b − M x),        error e ← (I − PM) e,

so m sweeps leave ρᵐ of the first error, ρ = ρ(I − PM); it converges if and only if ρ < 1. Analog inverses of 3 bits reached
24-bit results in a few rounds (RRAM chip, Nature Electronics 2025). A machine's noise is no floor either: a drive is scaled
to full scale before conversion, so noise shrinks with the residual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Operator, tree
from heatbath.solvers.base import Outcome, Solution, Solver, check_solver, usable
from heatbath.solvers.products import mark_nonfinite, norms, over, product_work, relative_residual, vectors_of
from heatbath.work import Work, elementwise


@tree
@dataclass(frozen=True, eq=False)
class Refinable:
    """State of `Refined`.

    Args:
        inner: state of the inner solver.
        operator: M, for residuals.
    """

    inner: Any  # Any: state of any solver
    operator: Operator


@dataclass(frozen=True)
class Refined(Solver[Refinable]):
    """Solve, then correct the digital residual a few times; takes what `inner` takes.

    Prefer it to more bits: a sweep costs one product and one more drive of the machine. A sweep in which the machine fails is
    skipped, each column keeps the iterate of smallest residual, and the residuals of all sweeps are in the notes.

    Args:
        inner: P, a solver whose error is below 100 %.
        sweeps: m, corrections after the first solve.
        tolerance: relative residual above which the outcome is INACCURATE; None: not judged.

    Raises:
        TypeError: `inner` is no solver.
        ValueError: no sweeps, or a tolerance that is not positive.
    """

    inner: Solver[Any]  # Any: any state
    sweeps: int = 3
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_solver(self.inner, "inner")
        if self.sweeps < 1:
            raise ValueError(f"Refined needs at least one sweep, got {self.sweeps}; without any use the inner solver")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"the tolerance of Refined must be positive, or None, got {self.tolerance}")

    def prepare(
        self, operator: Operator, *, previous: Refinable | None = None, generator: torch.Generator | None = None
    ) -> tuple[Refinable, Work]:
        before = None if previous is None else previous.inner
        inner, work = self.inner.prepare(operator, previous=before, generator=generator)
        return Refinable(inner, operator), work

    def solve(
        self, state: Refinable, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        operator, stack = state.operator, len(state.operator.stack)
        columns = rhs.ndim - len(operator.domain)
        sweep_work = product_work(operator, vectors_of(operator, rhs)) + Work.of(elementwise(rhs.numel(), 6))
        first = self.inner.solve(state.inner, rhs, guess=guess, generator=generator)
        rest = None if first.state is None else torch.zeros_like(rhs)  # what remembers x must not start a correction from it
        x, codes = _accept(first)
        work, best, smallest, history = first.work, x, norms(rhs, columns), []
        for sweep in range(self.sweeps + 1):
            r = rhs - operator @ x
            size = norms(r, columns)
            better = size < smallest if sweep else torch.ones_like(size, dtype=torch.bool)
            best, smallest = torch.where(over(better, x), x, best), torch.where(better, size, smallest)
            history.append(relative_residual(r, rhs, stack))
            work = work + sweep_work
            if sweep < self.sweeps:
                correction = self.inner.solve(first.state or state.inner, r, guess=rest, generator=generator)
                change, outcome = _accept(correction)
                x, codes = x + change, torch.where(usable(codes), codes, outcome)
                work = work + correction.work
        residual = relative_residual(smallest, rhs, stack)
        if self.tolerance is not None:
            missed = usable(codes) & ~(residual <= self.tolerance)
            codes = torch.where(missed, Outcome.INACCURATE.code, codes).to(torch.int8)
        notes = {**first.notes, "residuals": torch.stack(history, -1)}
        successor = None if first.state is None else replace(state, inner=first.state)
        return Solution(best, work, codes, residual, notes, successor)

    def outcome(self, state: Refinable) -> Tensor:
        return self.inner.outcome(state.inner)


def _accept(solution: Solution) -> tuple[Tensor, Tensor]:
    """The value with 0 for members that failed, and outcome codes that also tell of NaN."""
    codes = mark_nonfinite(solution.outcome, solution.value)
    return torch.where(over(usable(codes), solution.value), solution.value, 0.0), codes
