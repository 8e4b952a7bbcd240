"""Gram matrices SᵀS + λI, known by their root S: the Gauss–Newton matrix of a whole network.

With J the Jacobian `[m, n]` of all outputs in n parameters and H = R Rᵀ the Hessian of the loss at the outputs, JᵀHJ = SᵀS for
S = RᵀJ. It has m rows, examples times outputs, and usually m ≪ n. Products with it take one product with J and one with Jᵀ, and
by the Woodbury identity

    (SᵀS + λI)⁻¹ b = (b − Sᵀ (S Sᵀ + λI)⁻¹ S b)/λ,

so that the n × n matrix is never needed; `heatbath.solvers.SmallSide` uses it. Ren & Goldfarb 2019, arXiv 1906.02353.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators.base import Operator
from heatbath.operators.tree import tree
from heatbath.work import Work, matmul


class Root(ABC):
    """S of SᵀS, by what can be done with it."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    @abstractmethod
    def stack(self) -> torch.Size:
        """Leading dimensions: how many roots are held."""

    @abstractmethod
    def bend(self, x: Tensor) -> Tensor:
        """SᵀS x, `[*stack, *batch, n]` to the same shape."""

    @abstractmethod
    def rows(self) -> Iterator[Tensor]:
        """The rows of S in chunks `[*stack, c, n]`."""

    @abstractmethod
    def work(self, vectors: int) -> Work:
        """The work of `bend` for `vectors` vectors; passes through a model aside."""


@tree
@dataclass(frozen=True, eq=False)
class DenseRoot(Root):
    """S held in full.

    Args:
        matrix: `[*stack, m, n]`.

    Raises:
        ValueError: fewer than two dimensions.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.ndim < 2:
            raise ValueError(f"a root is a matrix [*stack, m, n], got shape {tuple(self.matrix.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[-2], self.matrix.shape[-1]

    @property
    def stack(self) -> torch.Size:
        return self.matrix.shape[:-2]

    def bend(self, x: Tensor) -> Tensor:
        flat = x.reshape(*self.stack, -1, self.shape[1])
        return (flat @ self.matrix.mT @ self.matrix).reshape(x.shape)

    def rows(self) -> Iterator[Tensor]:
        yield self.matrix

    def work(self, vectors: int) -> Work:
        m, n = self.shape
        return (Work.of(matmul(vectors, n, m)) + Work.of(matmul(vectors, m, n))) * max(self.stack.numel(), 1)


@tree
@dataclass(frozen=True, eq=False)
class Gram(Operator):
    """SᵀS + λI.

    Args:
        root: S, in full (`DenseRoot`) or as products with a model's Jacobian.
        amount: λ ≥ 0, `[*stack]`.
    """

    root: Root
    amount: Tensor

    @property
    def domain(self) -> torch.Size:
        return torch.Size((self.root.shape[1],))

    @property
    def stack(self) -> torch.Size:
        return self.root.stack

    def __matmul__(self, x: Tensor) -> Tensor:
        amount = self.amount.to(x).reshape(*self.stack, *(1,) * (x.ndim - len(self.stack)))
        return self.root.bend(x) + amount * x

    def dense(self) -> Tensor:
        chunks = self.root.rows()
        first = next(chunks)
        full = first.mT @ first
        for chunk in chunks:
            full = full + chunk.mT @ chunk
        full.diagonal(dim1=-2, dim2=-1).add_(self.amount.to(full).unsqueeze(-1))
        return full

    def trace(self) -> Tensor:
        squares = [chunk.square().flatten(-2).sum(-1) for chunk in self.root.rows()]
        total = torch.stack(squares).sum(0)
        return total + self.size * self.amount.to(total)

    def shift(self, amount: Tensor | float) -> Gram:
        more = torch.as_tensor(amount, dtype=self.amount.dtype, device=self.amount.device)
        return Gram(self.root, self.amount + more)
