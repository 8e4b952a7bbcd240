"""An operator plus a multiple of the identity, for structures that do not absorb one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators.base import Operator
from heatbath.operators.tree import tree


@tree
@dataclass(frozen=True, eq=False)
class Shifted(Operator):
    """`operator + amount · I`, for example an exactly damped Kronecker product.

    Args:
        operator: the operator to shift.
        amount: `[*stack]`.
    """

    operator: Operator
    amount: Tensor

    @property
    def domain(self) -> torch.Size:
        return self.operator.domain

    @property
    def stack(self) -> torch.Size:
        return self.operator.stack

    def __matmul__(self, x: Tensor) -> Tensor:
        amount = self.amount.to(x).reshape(*self.stack, *(1,) * (x.ndim - len(self.stack)))
        return self.operator @ x + amount * x

    def dense(self) -> Tensor:
        full = self.operator.dense()
        return full + self.amount.to(full)[..., None, None] * torch.eye(self.size, dtype=full.dtype, device=full.device)

    def trace(self) -> Tensor:
        trace = self.operator.trace()
        return trace + self.size * self.amount.to(trace)

    def shift(self, amount: Tensor | float) -> Shifted:
        more = torch.as_tensor(amount, dtype=self.amount.dtype, device=self.amount.device)
        return Shifted(self.operator, self.amount + more)
