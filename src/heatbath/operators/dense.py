"""A stack of matrices held in full."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators.aligned import product
from heatbath.operators.base import Operator
from heatbath.operators.tree import tree


@tree
@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """Symmetric PSD matrices held in full.

    Args:
        matrix: `[*stack, n, n]`, symmetric.

    Raises:
        ValueError: the last two dimensions differ.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.ndim < 2 or self.matrix.shape[-1] != self.matrix.shape[-2]:
            raise ValueError(f"a Dense operator needs square matrices [*stack, n, n], got shape {tuple(self.matrix.shape)}")

    @property
    def domain(self) -> torch.Size:
        return self.matrix.shape[-1:]

    @property
    def size(self) -> int:
        return self.matrix.shape[-1]

    @property
    def stack(self) -> torch.Size:
        return self.matrix.shape[:-2]

    def __matmul__(self, x: Tensor) -> Tensor:
        if x.ndim == self.matrix.ndim:
            return product(x, self.matrix)
        flat = x.reshape(*self.stack, -1, self.size)
        return (flat @ self.matrix).reshape(x.shape)

    def dense(self) -> Tensor:
        return self.matrix

    def trace(self) -> Tensor:
        return self.matrix.diagonal(dim1=-2, dim2=-1).sum(-1)

    def square_norm(self) -> Tensor:
        return self.matrix.square().sum((-2, -1))

    def shift(self, amount: Tensor | float) -> Dense:
        shifted = self.matrix.clone()
        amount = torch.as_tensor(amount, dtype=shifted.dtype, device=shifted.device)
        shifted.diagonal(dim1=-2, dim2=-1).add_(amount[..., None] if amount.ndim else amount)
        return Dense(shifted)
