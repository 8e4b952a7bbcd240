"""A stack of diagonal matrices, held as their diagonals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators.base import Operator
from heatbath.operators.tree import tree


@tree
@dataclass(frozen=True, eq=False)
class Diagonal(Operator):
    """Diagonal PSD matrices.

    Args:
        diagonal: `[*stack, n]`, not negative.
    """

    diagonal: Tensor

    def __post_init__(self) -> None:
        if self.diagonal.ndim < 1:
            raise ValueError("a Diagonal operator needs diagonals [*stack, n], got a single number")

    @property
    def domain(self) -> torch.Size:
        return self.diagonal.shape[-1:]

    @property
    def stack(self) -> torch.Size:
        return self.diagonal.shape[:-1]

    def __matmul__(self, x: Tensor) -> Tensor:
        flat = x.reshape(*self.stack, -1, self.size)
        return (flat * self.diagonal.unsqueeze(-2)).reshape(x.shape)

    def dense(self) -> Tensor:
        return torch.diag_embed(self.diagonal)

    def trace(self) -> Tensor:
        return self.diagonal.sum(-1)

    def square_norm(self) -> Tensor:
        return self.diagonal.square().sum(-1)

    def shift(self, amount: Tensor | float) -> Diagonal:
        amount = torch.as_tensor(amount, dtype=self.diagonal.dtype, device=self.diagonal.device)
        return Diagonal(self.diagonal + (amount[..., None] if amount.ndim else amount))
