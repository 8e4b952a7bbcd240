"""Kronecker products B ⊗ A, the curvature of a layer in K-FAC.

With weights W [O, I] stored row by row, vec(B V A) = (B ⊗ A) vec(V) for symmetric A [I, I] and B [O, O], so the product
acts on a whole weight matrix by two small matrix products (Martens & Grosse 2015, arXiv 1503.05671).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators.base import Operator
from heatbath.operators.shifted import Shifted
from heatbath.operators.tree import tree


@tree
@dataclass(frozen=True, eq=False)
class Kronecker(Operator):
    """Left ⊗ right, acting on matrices V `[O, I]` as V ↦ left V right.

    Args:
        left: operator of domain (O,), the output side B.
        right: operator of domain (I,), the input side A, of the same stack.

    Raises:
        ValueError: the stacks differ.
    """

    left: Operator
    right: Operator

    def __post_init__(self) -> None:
        if self.left.stack != self.right.stack:
            raise ValueError(f"both sides of a Kronecker product need one stack, got {self.left.stack} and {self.right.stack}")

    @property
    def domain(self) -> torch.Size:
        return torch.Size((self.left.size, self.right.size))

    @property
    def stack(self) -> torch.Size:
        return self.left.stack

    def __matmul__(self, x: Tensor) -> Tensor:
        return (self.left @ (self.right @ x).mT).mT

    def dense(self) -> Tensor:
        b, a = self.left.dense(), self.right.dense()
        product = torch.einsum("...ij,...kl->...ikjl", b, a)
        return product.reshape(*self.stack, self.size, self.size)

    def trace(self) -> Tensor:
        return self.left.trace() * self.right.trace()

    def square_norm(self) -> Tensor:
        return self.left.square_norm() * self.right.square_norm()

    def shift(self, amount: Tensor | float) -> Shifted:
        like = self.trace()
        return Shifted(self, torch.as_tensor(amount, dtype=like.dtype, device=like.device).expand(self.stack))
