"""What `heatbath.linalg` returns: a value, how far off it may be, what it cost, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heatbath.solvers.base import Outcome, usable
from heatbath.solvers.products import mark_nonfinite, norms
from heatbath.work import Work


@dataclass(frozen=True, eq=False)
class Result:
    """The result of one linear-algebra problem, or a stack of them.

    Args:
        value: the answer, `[*stack, …]`.
        error: estimated error of the value of each member, absolute, in the Frobenius norm, `[*stack]`. Functions say whether
            it is a bound or a standard error.
        work: what it asked of hardware. Checks of the input are not in it.
        outcome: int8 codes of `Outcome`, `[*stack]`; a value that is not finite is never called solved.
        notes: what else is known, by name.
    """

    value: Tensor
    error: Tensor
    work: Work
    outcome: Tensor
    notes: dict[str, Any] = field(default_factory=dict)  # Any: tensors or strings

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcome", mark_nonfinite(self.outcome, self.value))

    @property
    def relative_error(self) -> Tensor:
        """Estimated error over the norm of the value, `[*stack]`, float64; infinite for a value of 0 that is not exact."""
        size = norms(self.value.double(), self.error.ndim)
        return torch.where(self.error == 0, 0.0, self.error / size)

    @property
    def solved(self) -> bool:
        """Whether every member has a usable value; waits for the device."""
        return bool(usable(self.outcome).all())

    @property
    def messages(self) -> list[str]:
        """The outcome of each member in words; waits for the device."""
        return [list(Outcome)[code].value for code in self.outcome.flatten().tolist()]
