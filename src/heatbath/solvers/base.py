"""What every solver is: `prepare` an operator, then `solve` with it as often as needed.

The pair is at once K-FAC's "refresh rarely, apply every step" and the machine's "program, then run", so no solver is a
special case. A solver is a frozen recipe: everything that changes lives in the state it returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from heatbath.operators import Operator
from heatbath.work import Work

State = TypeVar("State")


class Outcome(Enum):
    """How a solve ended; the value is the message. Tensors of outcomes hold `code`, so no device is waited for."""

    SOLVED = "solved"
    INDEFINITE = "the matrix is not positive definite: raise the damping"
    NONFINITE = "the result holds NaN or inf"
    INACCURATE = "the residual is above the tolerance, or the answer no better than none: raise the damping or the bits"
    LATE = "the machine gave no result in time"
    REDAMPED = "solved after the damping was raised"
    FELL_BACK = "solved by the fallback solver"
    RETRIED = "solved at another try"

    @property
    def code(self) -> int:
        """Position in the enumeration, as stored in outcome tensors."""
        return _CODES[self]

    @property
    def usable(self) -> bool:
        """Whether the value may be used."""
        return self in (Outcome.SOLVED, Outcome.REDAMPED, Outcome.FELL_BACK, Outcome.RETRIED)


_CODES = {outcome: code for code, outcome in enumerate(Outcome)}


def usable(codes: Tensor) -> Tensor:
    """Which outcomes may be used: int8 codes `[*stack]` to bool `[*stack]`. Asked of every stack at every step."""
    return (codes == Outcome.SOLVED.code) | (codes >= Outcome.REDAMPED.code)  # what lies between is not usable


def worse(a: Tensor, b: Tensor) -> Tensor:
    """The worse of two outcomes, member by member: an unusable one first, then anything but SOLVED."""
    return torch.where(~usable(a) | (usable(b) & (a != Outcome.SOLVED.code)), a, b)


def outcome_codes(operator: Operator, device: torch.device, outcome: Outcome = Outcome.SOLVED) -> Tensor:
    """An outcome tensor `[*stack]` of one value."""
    return torch.full(operator.stack, outcome.code, dtype=torch.int8, device=device)


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a solve.

    Args:
        value: `[*stack, *batch, *domain]`.
        work: what it asked of hardware.
        outcome: int8 codes of `Outcome`, `[*stack]`.
        residual: relative residual ‖b − Mx‖/‖b‖ `[*stack]` where a solver measured it, else None.
        notes: what else a solver reports, by name (tensors `[*stack]` or strings): clip counts.
        state: the state to use for the next solve, where solving changed it (a machine goes on from its end); None: unchanged.
    """

    value: Tensor
    work: Work
    outcome: Tensor
    residual: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)  # Any: each solver reports what it has
    state: Any = None  # Any: the state type of the solver that made it


class Solver(ABC, Generic[State]):
    """A frozen recipe for solving M x = b with a symmetric positive definite operator M.

    States are `@tree` dataclasses whose tensors lead with `[*stack]`, so that an optimizer can keep the old state of one
    member of a stack, and a checkpoint can store them.
    """

    @abstractmethod
    def prepare(
        self, operator: Operator, *, previous: State | None = None, generator: torch.Generator | None = None
    ) -> tuple[State, Work]:
        """Do what depends on the operator alone: factor, invert, or program a machine.

        Args:
            operator: the operator, `[*stack]` of them.
            previous: the last state, for solvers that start from it (Newton–Schulz, a machine).
                Start values only: the result is of `operator`, never a mixture.
            generator: source of randomness for solvers that have noise.

        Raises:
            TypeError: a structure this solver cannot take; the message names a wrapper or solver that can.
        """

    @abstractmethod
    def solve(
        self, state: State, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        """Solve for `rhs` `[*stack, *batch, *domain]`.

        Args:
            state: from `prepare`.
            rhs: right-hand sides.
            guess: where to start, of the shape of `rhs`; ignored by direct solvers.
            generator: source of randomness for solvers that have noise.
        """

    @abstractmethod
    def outcome(self, state: State) -> Tensor:
        """How `prepare` ended: int8 codes of `Outcome`, `[*stack]`."""

    def explicit(self, state: State) -> Any | None:  # Any: an `Inverse`, which is made of what is here
        """The `Inverse` that solving with a state comes to; None where solving does more than apply one."""
        return None


def check_solver(value: object, name: str) -> None:
    """Refuse what is no solver.

    Raises:
        TypeError: a class, a name, or anything else that is not an instance of a `Solver`.
    """
    if not isinstance(value, Solver):
        hint = f"write {value.__name__}()" if isinstance(value, type) and issubclass(value, Solver) else "such as Cholesky()"
        raise TypeError(f"{name} must be a solver, got {value!r}; {hint}")
