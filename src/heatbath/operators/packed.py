"""Symmetric matrices as lower triangles: n(n + 1)/2 numbers in place of n², for checkpoints and communication.

The numbers lie as in LAPACK's rectangular full packed format (Gustavson et al. 2010, ACM Trans. Math. Softw. 37, 18): the left
half of the lower trapezoid, with the triangle that remains turned over into the corner that is free. So packing and unpacking
copy rectangles and touch no index.

The lower triangle is what `torch.linalg.cholesky` and `eigh` read, so nothing that they make changes when the other one is
replaced by its mirror image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from heatbath.operators.block_diagonal import BlockDiagonal
from heatbath.operators.dense import Dense
from heatbath.operators.tree import exchange, tree

T = TypeVar("T")


@tree
@dataclass(frozen=True, eq=False)
class Packed:
    """The lower triangle of `Dense`, or of the blocks of `BlockDiagonal`.

    Args:
        triangle: `[*stack, n(n + 1)/2]`, or `[*stack, K, m(m + 1)/2]`.
        length: None for `Dense`; the size of a `BlockDiagonal` matrix, padding aside.
    """

    triangle: Tensor
    length: int | None = None

    @property
    def stack(self) -> torch.Size:
        """Leading dimensions, as of what was packed."""
        return self.triangle.shape[: -1 if self.length is None else -2]


def lower_triangle(matrix: Tensor) -> Tensor:
    """`[…, n, n]` to `[…, n(n + 1)/2]`; what stands above the diagonal is not looked at."""
    n = matrix.shape[-1]
    k = (n + 1) // 2
    table = matrix.new_zeros(*matrix.shape[:-2], n + 1 - n % 2, k)
    table[..., 1 - n % 2 :, :] = matrix[..., :, :k].tril()
    table[..., : n - k, n % 2 :] += matrix[..., k:, k:].mT.triu()
    return table.flatten(-2)


def from_triangle(triangle: Tensor) -> Tensor:
    """The symmetric matrix `[…, n, n]` of a packed lower triangle `[…, n(n + 1)/2]`.

    Raises:
        ValueError: no triangle has so many numbers.

    >>> import torch
    >>> from_triangle(lower_triangle(torch.tensor([[1.0, 9.0], [2.0, 3.0]])))
    tensor([[1., 2.],
            [2., 3.]])
    """
    count = triangle.shape[-1]
    n = (math.isqrt(8 * count + 1) - 1) // 2
    if n * (n + 1) // 2 != count:
        raise ValueError(f"a triangle holds n(n + 1)/2 numbers, got {count}")
    k = (n + 1) // 2
    table = triangle.unflatten(-1, (n + 1 - n % 2, k))
    matrix = triangle.new_empty(*triangle.shape[:-1], n, n)
    columns = table[..., 1 - n % 2 :, :]
    matrix[..., :k, :k] = mirrored(columns[..., :k, :])
    matrix[..., k:, :k] = columns[..., k:, :]
    matrix[..., :k, k:] = columns[..., k:, :].mT
    matrix[..., k:, k:] = mirrored(table[..., : n - k, n % 2 :].mT)
    return matrix


def mirrored(matrix: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle that is held in full, `[…, n, n]`."""
    return matrix.tril() + matrix.tril(-1).mT


def pack(value: T) -> T:
    """A tree with all `Dense` and `BlockDiagonal` matrices as triangles; they must be symmetric."""
    return exchange(value, _pack_one)


def unpack(value: T) -> T:
    """The inverse of `pack`; matrices held in full stay."""
    return exchange(value, _unpack_one)


def _pack_one(value: Any) -> Any:  # Any: a node of a tree
    if isinstance(value, Dense):
        return Packed(lower_triangle(value.matrix))
    return Packed(lower_triangle(value.blocks), value.length) if isinstance(value, BlockDiagonal) else value


def _unpack_one(value: Any) -> Any:  # Any: as above
    if not isinstance(value, Packed):
        return value
    full = from_triangle(value.triangle)
    return Dense(full) if value.length is None else BlockDiagonal(full, value.length)
