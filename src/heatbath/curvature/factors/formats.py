"""How sums Σ x xᵀ of a size n are held: in full, in diagonal blocks, or as a sketch.

| | numbers | a row costs | a refresh costs |
|---|---|---|---|
| `Whole` | n² | n² (⅝ n² in strips) | n³ |
| `Pieces`, K of m | Km² | Km² | Km³ |
| `Sketch` of rank r | nr | 2nr | 6nr² + r³ |

All three are linear in Σ x xᵀ, so whoever scales, averages or adds up such sums need not know which they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from heatbath.operators import BlockDiagonal, Dense, Operator, Sketched, empty_aligned, random_basis, split_features
from heatbath.work import Work, matmul


@dataclass(frozen=True)
class Holding(ABC):
    """A form of Σ x xᵀ.

    Args:
        size: n.
    """

    size: int
    symmetric: ClassVar[bool] = True  # whether sums are matrices of which one triangle says all

    @property
    @abstractmethod
    def cost(self) -> float:
        """Of one refresh, where a matrix in full costs n³."""

    @abstractmethod
    def zeros(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Empty sums of a stack of `length`."""

    @abstractmethod
    def add(self, total: Tensor, x: Tensor) -> Work:
        """Add the rows x `[P, T, n]`, in place; returns the products."""

    @abstractmethod
    def complete(self, total: Tensor) -> None:
        """Fill in, in place, what `add` leaves out."""

    @abstractmethod
    def operator(self, total: Tensor) -> Operator:
        """Completed and scaled sums as an operator."""

    @abstractmethod
    def __str__(self) -> str:
        """In words, for a table; empty where in full."""


@dataclass(frozen=True)
class Whole(Holding):
    """In full, `[L, n, n]`."""

    @property
    def cost(self) -> float:
        return float(self.size**3)

    def zeros(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return empty_aligned(length, self.size, self.size, dtype=dtype, device=device).zero_()

    def add(self, total: Tensor, x: Tensor) -> Work:
        """In strips that end at the diagonal, where the square is large: four strips take 5/8 of the operations."""
        x, work = _as_multiplied(x, total), Work()
        for start, end in strips(self.size):
            _add_product(total[:, start:end, :end], x[..., start:end].mT, x[..., :end])
            work = work + Work.of(matmul(end - start, x.shape[1], end), x.shape[0])
        return work

    def complete(self, total: Tensor) -> None:
        for start, end in strips(self.size)[1:]:
            total[:, :start, start:end] = total[:, start:end, :start].mT

    def operator(self, total: Tensor) -> Operator:
        return Dense(total)

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Pieces(Holding):
    """In diagonal blocks `[L, K, m, m]`; what couples them is dropped.

    Args:
        largest: bound on m; m is the least that makes as few blocks as this does.
    """

    largest: int

    @property
    def count(self) -> int:
        """K."""
        return -(-self.size // self.largest)

    @property
    def piece(self) -> int:
        """The size m of a block."""
        return -(-self.size // self.count)

    @property
    def cost(self) -> float:
        return float(self.count * self.piece**3)

    def zeros(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(length, self.count, self.piece, self.piece, dtype=dtype, device=device)

    def add(self, total: Tensor, x: Tensor) -> Work:
        x = split_features(_as_multiplied(x, total), self.count, self.piece).flatten(0, 1)
        _add_product(total.flatten(0, 1), x.mT, x)
        return Work.of(matmul(self.piece, x.shape[1], self.piece), x.shape[0])

    def complete(self, total: Tensor) -> None:
        pass

    def operator(self, total: Tensor) -> Operator:
        return BlockDiagonal(total, self.size)

    def __str__(self) -> str:
        return f"{self.count} blocks of {self.piece}"


@dataclass(frozen=True)
class Sketch(Holding):
    """As Σ x (xᵀΩ), `[L, n + 1, r]`: the last row starts with Σ xᵀx, the trace.

    Args:
        rank: r.
    """

    rank: int
    symmetric: ClassVar[bool] = False

    @property
    def cost(self) -> float:
        return float(6 * self.size * self.rank**2 + self.rank**3)

    def zeros(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(length, self.size + 1, self.rank, dtype=dtype, device=device)

    def add(self, total: Tensor, x: Tensor) -> Work:
        x, omega = x.to(total.dtype), random_basis(self.size, self.rank, total.dtype, total.device)
        total[:, :-1].baddbmm_(x.mT, x @ omega)
        total[:, -1, 0] += torch.linalg.vector_norm(x, dim=(1, 2)).square()
        products = Work.of(matmul(x.shape[1], self.size, self.rank)) + Work.of(matmul(self.size, x.shape[1], self.rank))
        return products * x.shape[0]

    def complete(self, total: Tensor) -> None:
        pass

    def operator(self, total: Tensor) -> Operator:
        mass = total[:, -1, 0]
        return Sketched(total[:, :-1], mass, torch.zeros_like(mass))

    def __str__(self) -> str:
        return f"rank {self.rank}"


def holding(size: int, max_dim: int | None, rank: int | None) -> Holding:
    """How a side of n is held: in full up to `max_dim`, above as a sketch where r < n/2, else in diagonal blocks."""
    if max_dim is None or size <= max_dim:
        return Whole(size)
    return Sketch(size, rank) if rank is not None and 2 * rank < size else Pieces(size, max_dim)


def strips(size: int) -> list[tuple[int, int]]:
    """First and last row of each strip of a square; products of less than 128 rows run too slowly to pay."""
    count = min(4, max(1, size // 128))
    edges = [16 * round(size * k / count / 16) for k in range(count)]  # at whole cache lines
    return list(pairwise([*edges, size]))


def takes_halves(device: torch.device, rows: torch.dtype, total: torch.dtype) -> bool:
    """Whether rows of 16 bits are multiplied as they are: by tensor cores, which sum their exact products in float32.

    PyTorch has such products on CUDA alone; elsewhere rows are converted first. Never run on a GPU.
    """
    return device.type == "cuda" and rows in (torch.bfloat16, torch.float16) and total == torch.float32


def _as_multiplied(x: Tensor, total: Tensor) -> Tensor:
    """Rows in the dtype in which they are multiplied."""
    return x if takes_halves(x.device, x.dtype, total.dtype) else x.to(total.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b to sums `[P, m, n]`, in place."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a, b, out_dtype=total.dtype))
