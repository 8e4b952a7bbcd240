"""Block-diagonal matrices: a large factor as a stack of small ones.

A factor of size n costs n² numbers and n³ operations to invert; cut into K diagonal blocks of n/K, what couples the blocks is
dropped and the costs fall to n²/K and n³/K². If K does not divide n, the last block is filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from heatbath.operators.base import Operator
from heatbath.operators.dense import Dense
from heatbath.operators.tree import tree


@tree
@dataclass(frozen=True, eq=False)
class BlockDiagonal(Operator):
    """Symmetric PSD matrices that are zero outside K diagonal blocks.

    Args:
        blocks: `[*stack, K, m, m]`, symmetric; the last block is filled up where K·m exceeds n.
        length: n, the size of the matrix, with (K − 1)·m < n ≤ K·m.

    Raises:
        ValueError: the blocks are not square, or do not fit the length.
    """

    blocks: Tensor
    length: int

    def __post_init__(self) -> None:
        if self.blocks.ndim < 3 or self.blocks.shape[-1] != self.blocks.shape[-2]:
            raise ValueError(f"a BlockDiagonal operator needs blocks [*stack, K, m, m], got shape {tuple(self.blocks.shape)}")
        count, m = self.blocks.shape[-3], self.blocks.shape[-1]
        if not (count - 1) * m < self.length <= count * m:
            raise ValueError(f"{count} blocks of {m} do not make a matrix of size {self.length}: n must lie in (K·m − m, K·m]")

    @property
    def domain(self) -> torch.Size:
        return torch.Size((self.length,))

    @property
    def stack(self) -> torch.Size:
        return self.blocks.shape[:-3]

    def filled(self) -> Dense:
        """The blocks as `[*stack, K]` matrices for a solver, with the mean eigenvalue where the last one is filled up."""
        padding = self.blocks.shape[-3] * self.blocks.shape[-1] - self.length
        if not padding:
            return Dense(self.blocks)
        matrices = self.blocks.clone()
        mean = self.trace() / self.length
        matrices[..., -1, :, :].diagonal(dim1=-2, dim2=-1)[..., -padding:] = mean.unsqueeze(-1)
        return Dense(matrices)

    def __matmul__(self, x: Tensor) -> Tensor:
        rows = x.reshape(*self.stack, -1, self.length)
        pieces = split_features(rows, *self.blocks.shape[-3:-1])
        return join_features(pieces @ self.blocks, self.length).reshape(x.shape)

    def dense(self) -> Tensor:
        count, m = self.blocks.shape[-3], self.blocks.shape[-1]
        full = self.blocks.new_zeros(*self.stack, count * m, count * m)
        for k in range(count):
            full[..., k * m : (k + 1) * m, k * m : (k + 1) * m] = self.blocks[..., k, :, :]
        return full[..., : self.length, : self.length]

    def trace(self) -> Tensor:
        return self.blocks.diagonal(dim1=-2, dim2=-1).flatten(-2)[..., : self.length].sum(-1)

    def shift(self, amount: Tensor | float) -> BlockDiagonal:
        shifted = self.blocks.clone()
        amount = torch.as_tensor(amount, dtype=shifted.dtype, device=shifted.device)
        shifted.diagonal(dim1=-2, dim2=-1).add_(amount[..., None, None] if amount.ndim else amount)
        return BlockDiagonal(shifted, self.length)


def split_features(x: Tensor, count: int, size: int) -> Tensor:
    """Rows `[*stack, rows, n]`, filled up with zeros to K·m, as `[*stack, K, rows, m]`."""
    padding = count * size - x.shape[-1]
    if padding:
        x = F.pad(x, (0, padding))
    return x.unflatten(-1, (count, size)).transpose(-3, -2)


def join_features(pieces: Tensor, length: int) -> Tensor:
    """The inverse of `split_features`: `[*stack, K, rows, m]` as rows `[*stack, rows, n]`."""
    return pieces.transpose(-3, -2).flatten(-2)[..., :length]
