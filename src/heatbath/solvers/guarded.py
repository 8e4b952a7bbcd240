"""A solver watched: what it cannot solve is tried again, re-damped, or handed to a fallback, and counted.

Rounding makes a matrix indefinite once 2^bits falls below the condition number; a machine that holds such a one runs away, and
nothing on its wires says so. What a machine returns is therefore examined: X, whether an explicit inverse or the machine
itself answering drives, by power iteration on I − XM, which is symmetric in the inner product of M, so that its largest
|1 − μ|, over eigenvalues μ of XM, is approached from below. Above 1, X is negative along some direction, or a full step along
it goes more than twice too far, and descent diverges. What stands still does not: a dead cell has μ = 0, and |1 − μ| = 1.

Members of a stack that fail are tried again. A machine is asked once more for the same matrix, as accidents pass (it was late,
returned what is no number, or garbage); from then on, and for digital solvers at once, a growing multiple of the identity is
added,

    M + δ_k I,    δ_k = initial · growthᵏ · tr(M)/n,    k = 0 … retries − 1,

and at last the fallback's digital solution is taken. While solving, a machine that was late, or returned what is no number, is
asked again before the fallback is. A result whose residual is above the tolerance is treated like one that is not finite. The
residual is against what the inner solver was asked for, M + δ_k I: that it is not M was decided, and is counted.

One flag per refresh and one per solve are read on the host, which on an accelerator waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Operator, same_structure, select, tree
from heatbath.solvers.base import Outcome, Solution, Solver, check_solver, usable
from heatbath.solvers.cholesky import Cholesky
from heatbath.solvers.inverse import Inverse
from heatbath.solvers.products import (
    better_than_nothing,
    finite_members,
    mark_nonfinite,
    over,
    product_work,
    relative_residual,
    vectors_of,
)
from heatbath.work import Work, elementwise

POWER_STEPS = 9  # the largest of 1.1 and many of 0.1 stands out by 10⁹
DRIVEN_STEPS = 5  # by a machine, whose runaway modes stand out far more


@tree
@dataclass(frozen=True, eq=False)
class Watched:
    """State of `Guarded`.

    Args:
        inner: state of the inner solver, of the re-damped operator where that was needed.
        operator: the operator as given, for residuals and the fallback.
        fallback: state of the fallback solver, or None while nothing needed it.
        outcome: int8 codes `[*stack]`.
        rise: δ, what was added to the diagonal, `[*stack]`.
    """

    inner: Any  # Any: state of the inner solver
    operator: Operator
    fallback: Any  # Any: state of the fallback solver
    outcome: Tensor
    rise: Tensor


@dataclass(frozen=True)
class Guarded(Solver[Watched]):
    """Try again, re-damp, then fall back, member by member.

    Args:
        inner: the solver to watch.
        fallback: solver for what the inner one cannot do.
        retries: how often to prepare again with more damping before falling back; 0: fall back at once.
        initial: first rise of the damping, relative to the mean eigenvalue tr(M)/n.
        growth: factor between rises.
        residual_tolerance: relative residual above which a solution falls back; None: what a machine answers must at least be
            better than nothing, nearer to the solution than 0 is in the norm of M (2bᵀx > xᵀMx), and digital solutions finite;
            `math.inf`: finite only, also from machines. A check costs a digital product per solve, as much as applying an
            inverse, and is all that tells garbage from a result.
        overshoot: |1 − μ| from which a machine's answers are refused; None does not check. Costs 19 digital products with
            vectors each time an inverse is made, or 6 of them and 5 drives of each machine where there is none.

    Raises:
        TypeError: `inner` or `fallback` is no solver.
        ValueError: retries below 0, or initial, growth or overshoot not positive.
    """

    inner: Solver[Any]  # Any: any state
    fallback: Solver[Any] = field(default_factory=Cholesky)  # Any: any state
    retries: int = 3
    initial: float = 0.03
    growth: float = 4.0
    residual_tolerance: float | None = None
    overshoot: float | None = 1.05

    def __post_init__(self) -> None:
        check_solver(self.inner, "inner")
        check_solver(self.fallback, "fallback")
        if self.retries < 0 or self.initial <= 0 or self.growth <= 0:
            raise ValueError(
                f"Guarded needs retries >= 0 and positive initial and growth, got {self.retries}, {self.initial}, {self.growth}"
            )
        if self.overshoot is not None and not self.overshoot > 0:
            raise ValueError(f"overshoot must be positive, got {self.overshoot}; None does not check")

    def prepare(
        self, operator: Operator, *, previous: Watched | None = None, generator: torch.Generator | None = None
    ) -> tuple[Watched, Work]:
        inner, work = self.inner.prepare(operator, previous=previous.inner if previous else None, generator=generator)
        analog = bool(work.jobs)
        codes, extra = self._examine(inner, operator, analog, generator)
        work, bad = work + extra, ~usable(codes)
        mean_eigenvalue = operator.trace() / operator.size
        rise = torch.zeros_like(mean_eigenvalue)
        tried = torch.zeros_like(bad)
        for k in range(self.retries + analog if self.retries else 0):
            if not _any(bad):
                break
            damp = bad if not analog else bad & ~_accident(codes) & (k > 0)
            rise = torch.where(damp, self.initial * self.growth ** (k - analog) * mean_eigenvalue, rise)
            asked = operator.shift(rise)
            again, extra = self.inner.prepare(asked, generator=generator)
            ended, examined = self._examine(again, asked, analog, generator)
            work = work + (extra + examined) * float(bad.float().mean())  # a real machine would be asked for these only
            if same_structure(again, inner):
                again, ended = select(bad, again, inner), torch.where(bad, ended, codes)
            inner, tried = again, tried | bad
            codes = ended
            bad = ~usable(codes)
        better = torch.where(rise > 0, Outcome.REDAMPED.code, Outcome.RETRIED.code)
        codes = torch.where(tried & (codes == Outcome.SOLVED.code), better, codes).to(torch.int8)
        fallback = None
        if _any(bad):
            fallback, codes, extra = self._fall_back(operator, bad, codes)
            work = work + extra
        return Watched(inner, operator, fallback, codes, rise), work

    def _examine(self, state: Any, operator: Operator, analog: bool, generator: torch.Generator | None) -> tuple[Tensor, Work]:
        """How preparing ended, as far as it can be seen."""
        codes = self.inner.outcome(state)
        if self.overshoot is None or not analog:
            return codes, Work()
        if isinstance(state, Inverse):
            reached, work = overshoot(state.operator, operator)
        else:
            driven = _Driven(self.inner, state, generator, codes)
            reached, work = residual_radius(driven, operator, DRIVEN_STEPS)
            codes, work = torch.where(usable(codes), driven.codes, codes), work + driven.work
        wild = usable(codes) & ~(reached < self.overshoot)
        return torch.where(wild, Outcome.INACCURATE.code, codes).to(torch.int8), work

    def _fall_back(self, operator: Operator, bad: Tensor, codes: Tensor) -> tuple[Any, Tensor, Work]:
        """Prepare the fallback and mark the members that use it."""
        state, work = self.fallback.prepare(operator)
        fallen = torch.where(usable(self.fallback.outcome(state)), Outcome.FELL_BACK.code, self.fallback.outcome(state))
        return state, torch.where(bad, fallen, codes).to(torch.int8), work * float(bad.float().mean())

    def solve(
        self, state: Watched, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        fell_back = state.outcome == Outcome.FELL_BACK.code
        solution, failure, residual = self._ask(state, rhs, guess, generator)
        value, work, successor, notes = solution.value, solution.work, solution.state, solution.notes
        codes = torch.where(usable(failure), state.outcome, failure)
        bad = ~usable(failure) & ~fell_back
        if solution.work.jobs and _any(bad):
            second, failure, measured = self._ask(state, rhs, guess, generator)
            value, work = torch.where(over(bad, value), second.value, value), work + second.work * float(bad.float().mean())
            if residual is not None and measured is not None:
                residual = torch.where(bad, measured, residual)
            if successor is not None:
                successor = select(bad, second.state, successor)
            mended = bad & usable(failure)
            codes = torch.where(bad, torch.where(mended, Outcome.RETRIED.code, failure), codes)
            bad = bad & ~mended
        finite = finite_members(value, bad.ndim)
        lost, fallback = bad | fell_back, state.fallback
        if _any(lost):
            share, extra = float(lost.float().mean()), Work()
            if fallback is None:
                fallback, extra = self.fallback.prepare(state.operator)
            digital = self.fallback.solve(fallback, rhs)
            value = torch.where(over(lost, value), digital.value, value)
            codes = torch.where(lost & usable(digital.outcome), Outcome.FELL_BACK.code, torch.where(bad, failure, codes))
            work, notes = work + (extra + digital.work) * share, {**notes, "fallbacks": lost}
        if successor is not None or fallback is not state.fallback:
            inner = state.inner if successor is None else select(finite, successor, state.inner)
            successor = Watched(inner, state.operator, fallback, state.outcome, state.rise)
        return Solution(value, work, codes.to(torch.int8), residual, notes, successor)

    def _ask(
        self, state: Watched, rhs: Tensor, guess: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Solution, Tensor, Tensor | None]:
        """One solve, how it ended, codes `[*stack]`, and its residual."""
        solution = self.inner.solve(state.inner, rhs, guess=guess, generator=generator)
        ended = mark_nonfinite(solution.outcome, solution.value)
        if not self._checks(state, solution):
            return solution, ended, solution.residual
        x, stack = solution.value, len(state.operator.stack)
        rest = rhs - state.operator @ x - over(state.rise, x) * x
        residual = relative_residual(rest, rhs, stack)
        if self.residual_tolerance is not None:
            inaccurate = ~(residual <= self.residual_tolerance)
        else:
            inaccurate = ~better_than_nothing(x, rhs, rest, stack)
        ended = torch.where(inaccurate & usable(ended), Outcome.INACCURATE.code, ended).to(torch.int8)
        product = product_work(state.operator, vectors_of(state.operator, rhs)) + Work.of(elementwise(rhs.numel(), 4))
        return replace(solution, work=solution.work + product), ended, residual

    def _checks(self, state: Watched, solution: Solution) -> bool:
        """Whether a solution is compared with the right-hand side."""
        if self.residual_tolerance is not None:
            return self.residual_tolerance < math.inf
        return bool(solution.work.jobs)  # of a machine; its explicit inverses were checked when they were made

    def outcome(self, state: Watched) -> Tensor:
        return state.outcome

    def explicit(self, state: Watched) -> Inverse | None:
        watched = state.fallback is not None or self.residual_tolerance not in (None, math.inf)
        return None if watched or not isinstance(state.inner, Inverse) else replace(state.inner, outcome=state.outcome)


class _Driven:
    """X as a machine that is driven: what it answers, how its runs ended, and what they took."""

    def __init__(self, solver: Solver[Any], state: Any, generator: torch.Generator | None, codes: Tensor) -> None:
        self.solver, self.state, self.generator = solver, state, generator
        self.codes, self.work = codes, Work()

    def __call__(self, x: Tensor) -> Tensor:
        solution = self.solver.solve(self.state, x, generator=self.generator)
        finite = finite_members(solution.value, self.codes.ndim)
        ended = torch.where(finite | ~usable(solution.outcome), solution.outcome, Outcome.NONFINITE.code)
        self.codes, self.work = torch.where(usable(self.codes), ended, self.codes), self.work + solution.work
        return solution.value


def overshoot(inverse: Operator, operator: Operator) -> tuple[Tensor, Work]:
    """`residual_radius` of an explicit inverse X, symmetric."""
    ratio, work = residual_radius(lambda x: inverse @ x, operator, POWER_STEPS)
    return ratio, work + product_work(inverse, 1) * POWER_STEPS


def residual_radius(inverse: Callable[[Tensor], Tensor], operator: Operator, steps: int) -> tuple[Tensor, Work]:
    """The largest |1 − μ| over eigenvalues μ of XM, `[*stack]`, from below by power iteration; and the work beside X's.

    It starts from a chirp, which no ordinary matrix has among its eigenvectors, so that no randomness is drawn.

    Args:
        inverse: X, applied to a vector of each member.
        operator: M, positive definite.
        steps: of the iteration.
    """
    like = operator.trace()
    tiny = torch.finfo(like.dtype).tiny
    chirp = torch.cos(torch.arange(1, operator.size + 1, dtype=torch.float64, device=like.device).square())
    v = chirp.to(like.dtype).reshape(operator.domain).expand(*operator.stack, *operator.domain)
    bent, ratio = operator @ v, torch.zeros_like(like)
    for _ in range(steps):
        length = _length(v, bent, like.ndim).clamp_min(tiny)
        v = v / over(length, v)
        v = v - inverse(bent / over(length, bent))
        bent = operator @ v
        ratio = _length(v, bent, like.ndim)
    return ratio, product_work(operator, 1) * (steps + 1)


def _length(v: Tensor, bent: Tensor, stack: int) -> Tensor:
    """√(vᵀMv) of each member, `[*stack]`; NaN where M is not definite along v."""
    return (v * bent).reshape(*v.shape[:stack], -1).sum(-1).sqrt()


def _accident(codes: Tensor) -> Tensor:
    """Which failures of a machine another try may mend, bool `[*stack]`."""
    return (codes == Outcome.LATE.code) | (codes == Outcome.NONFINITE.code)


def _any(flags: Tensor) -> bool:
    """Whether a flag is set; none is where tensors have shapes and no values, on which work is counted."""
    return not flags.is_meta and bool(flags.any())
