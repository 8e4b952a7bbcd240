"""A matrix that is known within a subspace and a multiple of the identity elsewhere.

    M = Q S Qᵀ + τ (I − Q Qᵀ),    QᵀQ = I,    M⁻¹ = Q S⁻¹ Qᵀ + τ⁻¹ (I − Q Qᵀ)

with Q `[n, r]` an orthonormal basis, S `[r, r]` the matrix within, τ > 0 the rest. Shifts and inverses keep the form, so a
solver for M needs a solver for S alone, of r unknowns in place of n; products cost 2nr + r² in place of n². What a solver gets
wrong about S⁻¹ stays within the subspace, unmagnified: Woodbury's identity, with (BᵀB + τI)⁻¹ for M = BBᵀ + τI, would multiply
it by ‖M‖/τ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators.aligned import empty_aligned
from heatbath.operators.base import Operator
from heatbath.operators.tree import tree


@tree
@dataclass(frozen=True, eq=False)
class LowRank(Operator):
    """Q S Qᵀ + τ (I − Q Qᵀ).

    Args:
        basis: Q, `[*stack, n, r]`, orthonormal columns.
        core: S, `[*stack, r, r]`, symmetric PSD.
        rest: τ ≥ 0, `[*stack]`.

    Raises:
        ValueError: shapes that do not fit.
    """

    basis: Tensor
    core: Tensor
    rest: Tensor

    def __post_init__(self) -> None:
        rank = self.basis.shape[-1] if self.basis.ndim > 1 else 0
        if self.basis.ndim < 2 or self.core.shape != (*self.basis.shape[:-2], rank, rank):
            raise ValueError(
                f"a LowRank operator needs a basis [*stack, n, r] and a core [*stack, r, r], got shapes "
                f"{tuple(self.basis.shape)} and {tuple(self.core.shape)}"
            )

    @property
    def domain(self) -> torch.Size:
        return self.basis.shape[-2:-1]

    @property
    def stack(self) -> torch.Size:
        return self.basis.shape[:-2]

    @property
    def rank(self) -> int:
        """R."""
        return self.basis.shape[-1]

    def __matmul__(self, x: Tensor) -> Tensor:
        rows = x if x.ndim == self.basis.ndim else x.reshape(*self.stack, -1, self.size)
        within = rows @ self.basis
        bent = torch.addcmul(within @ self.core, within, self._rest(), value=-1)
        return _sum(self._rest(), rows, bent, self.basis.mT).reshape(x.shape)

    def columns(self, x: Tensor) -> Tensor:
        """The same product for vectors that are the columns of x `[*stack, n, columns]`, which stay where they lie."""
        within = self.basis.mT @ x
        bent = torch.addcmul(self.core.mT @ within, within, self._rest(), value=-1)
        return _sum(self._rest(), x, self.basis, bent)

    def dense(self) -> Tensor:
        inner = self.core - torch.diag_embed(self.rest.unsqueeze(-1).expand(*self.stack, self.rank))
        full = self.basis @ inner @ self.basis.mT
        full.diagonal(dim1=-2, dim2=-1).add_(self.rest.unsqueeze(-1))
        return full

    def trace(self) -> Tensor:
        return self.core.diagonal(dim1=-2, dim2=-1).sum(-1) + (self.size - self.rank) * self.rest

    def square_norm(self) -> Tensor:
        return self.core.square().sum((-2, -1)) + (self.size - self.rank) * self.rest.square()

    def shift(self, amount: Tensor | float) -> LowRank:
        amount = torch.as_tensor(amount, dtype=self.rest.dtype, device=self.rest.device).expand(self.stack)
        core = self.core.clone()
        core.diagonal(dim1=-2, dim2=-1).add_(amount.unsqueeze(-1))
        return LowRank(self.basis, core, self.rest + amount)

    def _rest(self) -> Tensor:
        """τ, to multiply matrices."""
        return self.rest[..., None, None]


def _sum(factor: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Factor · x + a b, `[*stack, M, N]`, written once into aligned rows where nobody follows."""
    if x.ndim != 3 or torch.compiler.is_compiling() or (torch.is_grad_enabled() and (x.requires_grad or a.requires_grad)):
        return factor * x + a @ b
    out = empty_aligned(*x.shape, dtype=x.dtype, device=x.device)
    return torch.mul(x, factor, out=out).baddbmm_(a, b)
