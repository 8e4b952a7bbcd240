"""What `heatbath.linalg` returns: a value, how far off it may be, what it cost, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heatbath.solvers.base import Outcome, usable
from heatbath.work import Work


@dataclass(frozen=True, eq=False)
class Result:
    """The result of one linear-algebra problem, or a stack of them.

    Args:
        value: the answer, `[*stack, …]`.
        error: estimated error of the value of each member, absolute, in the Frobenius norm, `[*stack]`. Functions say whether
            it is a bound or a standard error.
        work: what it asked of hardware. Checks of the input are not in it.
        outcome: int8 codes of `Outcome`, `[*stack]`.
        notes: what else is known, by name.
    """

    value: Tensor
    error: Tensor
    work: Work
    outcome: Tensor
    notes: dict[str, Any] = field(default_factory=dict)  # Any: tensors or strings

    @property
    def relative_error(self) -> Tensor:
        """Estimated error over the norm of the value, `[*stack]`."""
        size = self.value.reshape(*self.error.shape, -1).norm(dim=-1)
        return self.error / size.clamp_min(torch.finfo(size.dtype).tiny)

    @property
    def solved(self) -> bool:
        """Whether every member has a usable value; waits for the device."""
        return bool(usable(self.outcome).all())

    @property
    def messages(self) -> list[str]:
        """The outcome of each member in words; waits for the device."""
        return [list(Outcome)[code].value for code in self.outcome.flatten().tolist()]
