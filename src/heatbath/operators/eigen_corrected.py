"""Kronecker eigenbases with eigenvalues of their own: EKFAC (George et al. 2018, arXiv 1806.03884).

K-FAC's block B ⊗ A has eigenvectors U_B ⊗ U_A and eigenvalues λ_B λ_Aᵀ. Keeping the eigenvectors but measuring the second
moments along them,

    S = E[(U_Bᵀ G U_A)²]    (elementwise square, G `[O, I]` the gradient of one example),

gives the matrix nearest to the Fisher block, in Frobenius norm, among all with these eigenvectors, with the block's own trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators.base import Operator
from heatbath.operators.tree import tree


@tree
@dataclass(frozen=True, eq=False)
class EigenCorrected(Operator):
    """(U_B ⊗ U_A) diag(S) (U_B ⊗ U_A)ᵀ, acting on matrices V `[O, I]`.

    Args:
        left: U_B, orthogonal, `[*stack, O, O]`.
        right: U_A, orthogonal, `[*stack, I, I]`.
        values: S, not negative, `[*stack, O, I]`.

    Raises:
        ValueError: the shapes do not belong together.
    """

    left: Tensor
    right: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        out, inputs = self.values.shape[-2:]
        stack = self.values.shape[:-2]
        if self.left.shape != (*stack, out, out) or self.right.shape != (*stack, inputs, inputs):
            raise ValueError(
                f"values {list(self.values.shape)} need bases {[*stack, out, out]} and {[*stack, inputs, inputs]}, got "
                f"{list(self.left.shape)} and {list(self.right.shape)}"
            )

    @property
    def domain(self) -> torch.Size:
        return self.values.shape[-2:]

    @property
    def stack(self) -> torch.Size:
        return self.values.shape[:-2]

    def rotate(self, x: Tensor) -> Tensor:
        """Coordinates in the eigenbasis, U_Bᵀ V U_A, of `[*stack, rows, O, I]`."""
        return self.left.mT.unsqueeze(-3) @ x @ self.right.unsqueeze(-3)

    def __matmul__(self, x: Tensor) -> Tensor:
        rows = x.reshape(*self.stack, -1, *self.domain)
        scaled = self.rotate(rows) * self.values.unsqueeze(-3)
        return (self.left.unsqueeze(-3) @ scaled @ self.right.mT.unsqueeze(-3)).reshape(x.shape)

    def dense(self) -> Tensor:
        basis = torch.einsum("...ij,...kl->...ikjl", self.left, self.right)
        basis = basis.reshape(*self.stack, self.size, self.size)
        return basis @ (self.values.flatten(-2).unsqueeze(-1) * basis.mT)

    def trace(self) -> Tensor:
        return self.values.flatten(-2).sum(-1)

    def square_norm(self) -> Tensor:
        return self.values.square().sum((-2, -1))

    def shift(self, amount: Tensor | float) -> EigenCorrected:
        amount = torch.as_tensor(amount, dtype=self.values.dtype, device=self.values.device)
        return EigenCorrected(self.left, self.right, self.values + (amount[..., None, None] if amount.ndim else amount))
