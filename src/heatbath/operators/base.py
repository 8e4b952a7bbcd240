"""Symmetric positive semidefinite matrices that know their structure."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Operator(ABC):
    """A stack of symmetric positive semidefinite (PSD) matrices that know their structure.

    Leading dimensions `[*stack]` count matrices of one size that are handled in one call. Every operator is a frozen
    dataclass registered with `@tree`, so `map_tensors` reaches its tensors.
    """

    @property
    @abstractmethod
    def domain(self) -> torch.Size:
        """Shape of one vector the operator acts on: (n,), or (O, I) for a Kronecker product."""

    @property
    @abstractmethod
    def stack(self) -> torch.Size:
        """Leading dimensions: how many matrices of this structure are held."""

    @abstractmethod
    def __matmul__(self, x: Tensor) -> Tensor:
        """Apply each matrix to its vectors: `[*stack, *batch, *domain]` to the same shape."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrices in full, `[*stack, n, n]` with n the product of `domain`; for tests and small sizes."""

    @abstractmethod
    def trace(self) -> Tensor:
        """Trace of each matrix, `[*stack]`."""

    def square_norm(self) -> Tensor:
        """Squared Frobenius norm of each matrix, Σ of its squared eigenvalues, `[*stack]`."""
        return self.dense().square().sum((-2, -1))

    @abstractmethod
    def shift(self, amount: Tensor | float) -> Operator:
        """The operator plus `amount` times the identity; `amount` is a number or `[*stack]`."""

    @property
    def size(self) -> int:
        """n, the number of rows of one matrix."""
        return self.domain.numel()
