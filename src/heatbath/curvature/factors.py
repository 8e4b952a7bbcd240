"""Rows to Kronecker factors.

For a loss that is a mean over D terms, captured gradients are g = γ/D with γ the gradient of one term. With T rows in all
(examples × shared positions) the K-FAC block is

    B ⊗ A,    A = (1/T) Σ a aᵀ,    B = D Σ g gᵀ        (mean)        B = (1/D) Σ g gᵀ        (sum, where g = γ)

which is *expand* of Eschenhagen et al. 2023 (arXiv 2311.00636), and for positions summed within an example KFC of Grosse &
Martens 2016 (arXiv 1602.01407). *Reduce* averages a and sums g over an example's positions first; T is then the number of
examples. Since D and T count everything seen since the last collection, k micro-batches equal one batch, and duplicating
every example changes nothing: damping means the same at every batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from heatbath.layers import OneHot, Rows
from heatbath.operators import Dense, Diagonal, Kronecker, Operator


class Reduction(Enum):
    """How the loss joins its terms; the value says it in words."""

    EXAMPLES = "mean over the examples of a batch, positions summed within an example"
    ROWS = "mean over examples and positions, as cross-entropy over all tokens of a batch"
    SUM = "sum over the examples of a batch"


class Sharing(Enum):
    """How positions that share weights enter the factors; the value says it in words."""

    EXPAND = "each position is an example of its own"
    REDUCE = "positions are averaged (inputs) and summed (gradients) first, exact if the model mean-pools them"


@dataclass(eq=False)
class Counts:
    """What went into one place of a stack since the last collection: host numbers, from shapes."""

    rows: int = 0
    positions: int = 0
    examples: dict[int, int] = field(default_factory=dict)

    def add(self, pass_number: int, batch: int, positions: int, summed: int = 1) -> None:
        """Count one call. Further calls within one pass are positions, not examples.

        Args:
            pass_number: the model's forward pass.
            batch: examples.
            positions: rows per example.
            summed: positions that the rule already summed into each row.
        """
        self.rows += batch * positions
        self.positions += batch * positions * summed
        self.examples[pass_number] = max(self.examples.get(pass_number, 0), batch)

    def terms(self, reduction: Reduction) -> int:
        """D, the number of loss terms."""
        return self.positions if reduction is Reduction.ROWS else sum(self.examples.values())


@dataclass(eq=False)
class FactorSums:
    """Running sums Σ g gᵀ and Σ a aᵀ for a stack of L blocks of one shape.

    Args:
        left: Σ g gᵀ, `[L, O, O]`.
        right: Σ a aᵀ, `[L, I, I]`, or Σ a² `[L, I]` for one-hot inputs.
        counts: for each of the L places.
    """

    left: Tensor
    right: Tensor
    counts: list[Counts]

    @staticmethod
    def zeros(
        length: int, domain: tuple[int, int], *, diagonal_inputs: bool, dtype: torch.dtype, device: torch.device
    ) -> FactorSums:
        """Empty sums for a stack of `length` blocks of shape `domain` = (O, I)."""
        out, inputs = domain
        right = (length, inputs) if diagonal_inputs else (length, inputs, inputs)
        return FactorSums(
            torch.zeros(length, out, out, dtype=dtype, device=device),
            torch.zeros(right, dtype=dtype, device=device),
            [Counts() for _ in range(length)],
        )

    def add(self, start: int, rows: Rows, *, pass_number: int, sharing: Sharing = Sharing.EXPAND) -> None:
        """Add the rows of one block to places `start … start + P - 1`, in place."""
        if sharing is Sharing.REDUCE:
            rows = _reduced(rows)
        places, batch, positions, _ = rows.outputs.shape
        g = rows.outputs.reshape(places, batch * positions, -1).to(self.left.dtype)
        self.left[start : start + places].baddbmm_(g.mT, g)
        if isinstance(rows.inputs, OneHot):
            _add_counts(self.right[start : start + places], rows.inputs)
        else:
            a = rows.inputs.reshape(places, batch * positions, -1).to(self.right.dtype)
            self.right[start : start + places].baddbmm_(a.mT, a)
        for place in range(start, start + places):
            self.counts[place].add(pass_number, batch, positions, rows.summed)

    def collect(self, reduction: Reduction) -> tuple[Kronecker, list[bool]]:
        """Scale the sums to factors and start over.

        Returns:
            The factors of this batch, a `Kronecker` with stack `[L]`, and which places saw anything; the others hold zeros.
        """
        terms = [c.terms(reduction) for c in self.counts]
        seen = [t > 0 for t in terms]
        grad_scale = [(1.0 / t if reduction is Reduction.SUM else float(t)) if t else 0.0 for t in terms]
        _scale(self.left, grad_scale)
        _scale(self.right, [1.0 / c.rows if c.rows else 0.0 for c in self.counts])
        right: Operator = Diagonal(self.right) if self.right.ndim == 2 else Dense(self.right)
        factors = Kronecker(Dense(self.left), right)
        self.left, self.right = torch.zeros_like(self.left), torch.zeros_like(self.right)
        self.counts = [Counts() for _ in self.counts]
        return factors, seen


def _reduced(rows: Rows) -> Rows:
    """Average inputs and sum gradients over shared positions."""
    if isinstance(rows.inputs, OneHot):
        raise ValueError("reduce cannot average one-hot inputs; use Sharing.EXPAND for embeddings")
    positions = rows.outputs.shape[2]
    return Rows(rows.inputs.mean(2, keepdim=True), rows.outputs.sum(2, keepdim=True), summed=rows.summed * positions)


def _add_counts(total: Tensor, rows: OneHot) -> None:
    """Add how often each index occurs, `[P, I]`."""
    indices = rows.indices.reshape(rows.indices.shape[0], -1)
    total.scatter_add_(1, indices.clamp_min(0), (indices >= 0).to(total.dtype))


def _scale(stack: Tensor, factors: Sequence[float]) -> None:
    """Multiply each member of a stack by its own host number, in place."""
    if len(set(factors)) == 1:
        stack.mul_(factors[0])
    else:
        torch._foreach_mul_(list(stack.unbind(0)), list(factors))
