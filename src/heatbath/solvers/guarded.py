"""A solver watched: what it cannot solve is re-damped, then handed to a fallback, and counted.

A machine whose held matrix is indefinite runs away, and a rounded matrix is indefinite once 2^bits falls below the condition
number. `Guarded` asks the inner solver how preparing ended and, for the members of a stack that failed, adds a growing
multiple of the identity,

    M + δ_k I,    δ_k = initial · growthᵏ · tr(M)/n,    k = 0 … retries − 1,

then takes the fallback's digital solution. A result that is not finite, or whose residual is above the tolerance, falls
back too. It reads one flag per refresh and one per solve on the host, which on an accelerator waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Operator, select, tree
from heatbath.solvers.base import Outcome, Solution, Solver, usable
from heatbath.solvers.cholesky import Cholesky
from heatbath.work import Work


@tree
@dataclass(frozen=True, eq=False)
class Watched:
    """State of `Guarded`.

    Args:
        inner: state of the inner solver, of the re-damped operator where that was needed.
        operator: the operator as given, for residuals and the fallback.
        fallback: state of the fallback solver, or None while nothing needed it.
        outcome: int8 codes `[*stack]`.
    """

    inner: Any  # Any: state of the inner solver
    operator: Operator
    fallback: Any  # Any: state of the fallback solver
    outcome: Tensor


@dataclass(frozen=True)
class Guarded(Solver[Watched]):
    """Re-damp, then fall back, member by member.

    Args:
        inner: the solver to watch.
        fallback: solver for what the inner one cannot do.
        retries: how often to raise the damping before falling back.
        initial: first rise of the damping, relative to the mean eigenvalue tr(M)/n.
        growth: factor between rises.
        residual_tolerance: relative residual above which a solution falls back; None checks for finite values only. Checking
            costs a digital product per solve, as much as applying an inverse.

    Raises:
        ValueError: retries below 0, or initial or growth not positive.
    """

    inner: Solver[Any]  # Any: any state
    fallback: Solver[Any] = field(default_factory=Cholesky)  # Any: any state
    retries: int = 3
    initial: float = 0.03
    growth: float = 4.0
    residual_tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.retries < 0 or self.initial <= 0 or self.growth <= 0:
            raise ValueError(
                f"Guarded needs retries >= 0 and positive initial and growth, got {self.retries}, {self.initial}, {self.growth}"
            )

    def prepare(
        self, operator: Operator, *, previous: Watched | None = None, generator: torch.Generator | None = None
    ) -> tuple[Watched, Work]:
        inner, work = self.inner.prepare(operator, previous=previous.inner if previous else None, generator=generator)
        codes = self.inner.outcome(inner)
        bad = ~usable(codes)
        mean_eigenvalue = operator.trace() / operator.size
        rise = torch.zeros_like(mean_eigenvalue)
        for k in range(self.retries):
            if not bool(bad.any()):
                break
            rise = torch.where(bad, self.initial * self.growth**k * mean_eigenvalue, rise)
            inner, extra = self.inner.prepare(operator.shift(rise), generator=generator)  # all members: one state, one tier
            work = work + extra * float(bad.float().mean())  # a real machine would be asked for the failed ones only
            codes = self.inner.outcome(inner)
            codes = torch.where((rise > 0) & (codes == Outcome.SOLVED.code), Outcome.REDAMPED.code, codes).to(torch.int8)
            bad = ~usable(codes)
        fallback = None
        if bool(bad.any()):
            fallback, codes, extra = self._fall_back(operator, bad, codes)
            work = work + extra
        return Watched(inner, operator, fallback, codes), work

    def _fall_back(self, operator: Operator, bad: Tensor, codes: Tensor) -> tuple[Any, Tensor, Work]:
        """Prepare the fallback and mark the members that use it."""
        state, work = self.fallback.prepare(operator)
        fallen = torch.where(usable(self.fallback.outcome(state)), Outcome.FELL_BACK.code, self.fallback.outcome(state))
        return state, torch.where(bad, fallen, codes).to(torch.int8), work * float(bad.float().mean())

    def solve(
        self, state: Watched, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        solution = self.inner.solve(state.inner, rhs, guess=guess, generator=generator)
        stack = len(state.operator.stack)
        fell_back = state.outcome == Outcome.FELL_BACK.code
        finite = torch.isfinite(solution.value).flatten(stack).all(-1)
        bad = fell_back | ~finite | ~usable(solution.outcome)
        told = finite | ~usable(solution.outcome)
        residual, failure = solution.residual, torch.where(told, solution.outcome, Outcome.NONFINITE.code)
        if self.residual_tolerance is not None:
            residual = _relative_residual(state.operator, solution.value, rhs)
            inaccurate = ~(residual <= self.residual_tolerance)
            failure = torch.where(inaccurate & usable(failure), Outcome.INACCURATE.code, failure)
            bad = bad | inaccurate
        value, work, codes = solution.value, solution.work, torch.where(bad, failure, state.outcome)
        if bool(bad.any()):
            share = float(bad.float().mean())
            fallback, extra = (state.fallback, Work()) if state.fallback is not None else self.fallback.prepare(state.operator)
            digital = self.fallback.solve(fallback, rhs)
            value = torch.where(bad.reshape(*bad.shape, *(1,) * (value.ndim - stack)), digital.value, value)
            codes = torch.where(bad & usable(digital.outcome), Outcome.FELL_BACK.code, codes)
            work = work + (extra + digital.work) * share
        successor = None
        if solution.state is not None:
            successor = Watched(select(finite, solution.state, state.inner), state.operator, state.fallback, state.outcome)
        return Solution(value, work, codes.to(torch.int8), residual, solution.notes, successor)

    def outcome(self, state: Watched) -> Tensor:
        return state.outcome


def _relative_residual(operator: Operator, value: Tensor, rhs: Tensor) -> Tensor:
    """‖b − Mx‖/‖b‖ over all right-hand sides of a member, `[*stack]`."""
    stack = len(operator.stack)
    error = (rhs - operator @ value).flatten(stack).norm(dim=-1)
    return error / rhs.flatten(stack).norm(dim=-1).clamp_min(torch.finfo(rhs.dtype).tiny)
