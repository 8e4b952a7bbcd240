"""Rows to Kronecker factors.

For a loss that is a mean over D terms, captured gradients are g = γ/D with γ the gradient of one term. With T rows in all
(examples × shared positions) the K-FAC block is

    B ⊗ A,    A = (1/T) Σ a aᵀ,    B = D Σ g gᵀ        (mean)        B = (1/D) Σ g gᵀ        (sum, where g = γ)

which is *expand* of Eschenhagen et al. 2023 (arXiv 2311.00636), and for positions summed within an example KFC of Grosse &
Martens 2016 (arXiv 1602.01407). *Reduce* averages a and sums g over an example's positions first; T is then the number of
examples. Since D and T count everything seen since the last collection, k micro-batches equal one batch, and duplicating
every example changes nothing: damping means the same at every batch size.

Vectors at observed outputs (`heatbath.curvature.fisher`) bring γ itself, in one or more pulls; only the first adds to A.
Where rows a are gradients of examples themselves (normalization layers), B = 1 and A is scaled as B is elsewhere. Rows a
that are one-hot vectors are counted by their sum, so that padding, which is a row of zeros, is no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from heatbath.curvature.factors.formats import Holding, holding
from heatbath.curvature.factors.second_moments import SquareSums
from heatbath.curvature.reduction import Reduction, Sharing
from heatbath.layers import Block, OneHot, Rows
from heatbath.operators import Diagonal, Kronecker, Operator, upload
from heatbath.work import Work


@dataclass(eq=False)
class Counts:
    """What went into one block since the last collection: host numbers, from shapes.

    Args:
        rows: T of each of its places, where none is filled up.
        positions: the same with positions that a rule already summed.
        examples: by the model's forward pass.
        empty: for each place, rows that only filled up the shape; () if none did.
    """

    rows: int = 0
    positions: int = 0
    examples: dict[int, int] = field(default_factory=dict)
    empty: tuple[int, ...] = ()

    def add(self, pass_number: int, batch: int, positions: int, *, summed: int = 1, empty: tuple[int, ...] = ()) -> None:
        """Count one call. Further calls within one pass are positions, not examples.

        Args:
            pass_number: the model's forward pass.
            batch: examples.
            positions: rows per example.
            summed: positions that the rule already summed into each row.
            empty: for each place, rows that only fill up the shape; () if none do.
        """
        self.rows += batch * positions
        self.positions += (batch * positions - min(empty, default=0)) * summed
        self.examples[pass_number] = max(self.examples.get(pass_number, 0), batch)
        if empty:
            self.empty = tuple(map(sum, zip(self.empty, empty, strict=True))) if self.empty else empty

    def terms(self, reduction: Reduction | None) -> int:
        """D, the number of loss terms."""
        return self.positions if reduction is Reduction.ROWS else sum(self.examples.values())

    def filled(self, places: int) -> list[int]:
        """T of each place."""
        return [self.rows - empty for empty in self.empty] if self.empty else [self.rows] * places


@dataclass(frozen=True)
class Form:
    """How the factors of a stack of blocks are held.

    Args:
        block: what every place of the stack is.
        dtype: of the sums, at least float32.
        device: of the sums.
        inputs_only: leave the output side out.
        max_dim: the largest factor held in full. None: no limit.
        rank: of the sketches that larger factors are held as; None, or at least half their size: in diagonal blocks.
    """

    block: Block
    dtype: torch.dtype
    device: torch.device
    inputs_only: bool = False
    max_dim: int | None = None
    rank: int | None = None

    @property
    def has_left(self) -> bool:
        """Whether gradients enter the output side; where not, B = I."""
        return not (self.block.gradient_inputs or self.inputs_only)

    @cached_property
    def left(self) -> Holding | None:
        """How the output side is held; None: as ones."""
        return holding(self.block.domain[0], self.max_dim, self.rank) if self.has_left else None

    @cached_property
    def right(self) -> Holding | None:
        """How the input side is held; None: as a diagonal."""
        return None if self.block.diagonal_inputs else holding(self.block.domain[1], self.max_dim, self.rank)

    @property
    def cost(self) -> float:
        """Of one refresh of one member: n³ over sides held in full, less over others."""
        _, inputs = self.block.domain
        return (self.left.cost if self.left else 0.0) + (self.right.cost if self.right else inputs)


@dataclass(eq=False)
class FactorSums:
    """Running sums Σ g gᵀ and Σ a aᵀ for a stack of L places of one shape, held from the first row to the next collection.

    Args:
        spans: how many places each block takes, in order; they add up to L.
        form: how they are held.
        left: Σ g gᵀ, as `form.left` holds it, or ones `[L, O]`; None while empty.
        right: Σ a aᵀ, as `form.right` holds it, or Σ a² `[L, I]` for one-hot inputs; None while empty.
        counts: for each block.
        squares: second moments along given axes, where they are wanted.
    """

    spans: Sequence[int]
    form: Form
    left: Tensor | None = None
    right: Tensor | None = None
    counts: list[Counts] = field(default_factory=list)
    squares: SquareSums | None = None
    filled: bool = False

    def __post_init__(self) -> None:
        self._starts = [0, *accumulate(self.spans)]
        self.counts = [Counts() for _ in self.spans]

    @property
    def length(self) -> int:
        """L."""
        return self._starts[-1]

    def add(self, block: int, rows: Rows, *, pass_number: int, sharing: Sharing = Sharing.EXPAND, again: bool = False) -> Work:
        """Add the rows of one block, in place.

        Args:
            block: which.
            rows: from the layer's rule.
            pass_number: the model's forward pass.
            sharing: how shared positions enter.
            again: a further pull through the same forward pass, whose inputs were added before.

        Returns:
            The products.
        """
        if not rows.outputs.shape[1] * rows.outputs.shape[2]:  # an empty batch
            return Work()
        left, right = self.hold()
        span = slice(self._starts[block], self._starts[block + 1])
        work = Work() if self.squares is None else self.squares.add(span, rows)
        if sharing is Sharing.REDUCE:
            rows = _reduced(rows)
        _, batch, positions, _ = rows.outputs.shape
        if self.form.left is not None:
            work = work + self.form.left.add(left[span], rows.outputs.flatten(1, 2))
        if again and not self.form.block.gradient_inputs:
            return work
        if isinstance(rows.inputs, OneHot):
            _add_counts(right[span], rows.inputs)
        else:
            assert self.form.right is not None  # only one-hot inputs have a diagonal
            work = work + self.form.right.add(right[span], rows.inputs.flatten(1, 2))
        self.counts[block].add(pass_number, batch, positions, summed=rows.summed, empty=tuple(rows.empty))
        self.filled = True
        return work

    def collect(
        self, reduction: Reduction | None, *, terms: Tensor | int | None = None, scale: Tensor | None = None
    ) -> tuple[Kronecker, list[bool]]:
        """Scale the sums to factors and start over.

        Args:
            reduction: how the loss joins its terms, for rows of the ordinary backward pass; None: a mean over examples.
            terms: D, a number for rows of the ordinary backward pass (None: counted from the rows themselves), a 0-d tensor for
                rows of observed outputs.
            scale: what the loss was multiplied by before the backward pass (loss scaling), 0-d; None: 1.

        Returns:
            The factors of this batch, a `Kronecker` with stack `[L]`, and which blocks saw anything; the others hold zeros.
        """
        left, right = self.hold()
        for held, total in ((self.form.left, left), (self.form.right, right)):
            if held is not None:
                held.complete(total)
        seen = [c.rows > 0 for c in self.counts]
        for tensor in self.of_gradients(squares=False):
            self._normalize(tensor, reduction, terms, scale)
        if self.form.block.diagonal_inputs:  # how many rows are words, not padding, is known on the device alone
            right.div_(right.sum(-1, keepdim=True).clamp_min(1))
        elif not self.form.block.gradient_inputs:
            rows = [t for c, span in zip(self.counts, self.spans, strict=True) for t in c.filled(span)]
            _scale_members(right, [1.0 / t if t else 0.0 for t in rows])
        factors = Kronecker(_side(self.form.left, left), _side(self.form.right, right))
        self.left = self.right = None
        self.drop()
        return factors, seen

    def collect_squares(
        self, reduction: Reduction | None, *, terms: Tensor | int | None, scale: Tensor | None
    ) -> Tensor | None:
        """Second moments of this batch `[L, O, I]`, or None where they are not wanted; to be called before `collect`."""
        if self.squares is not None:
            self._normalize(self.squares.total, reduction, terms, scale)
        return None if self.squares is None else self.squares.total

    def of_gradients(self, *, squares: bool = True) -> list[Tensor]:
        """Those of the sums that are quadratic in gradients."""
        left, right = self.hold()
        found = [left] if self.form.has_left else []
        found += [right] if self.form.block.gradient_inputs else []
        return found if self.squares is None or not squares else [*found, self.squares.total]

    def scale_terms(self, tensor: Tensor, factors: Sequence[float]) -> None:
        """Multiply the places of each block by the block's own number, in place."""
        _scale_members(tensor, [f for factor, span in zip(factors, self.spans, strict=True) for f in [factor] * span])

    def terms(self, reduction: Reduction | None, known: int | None = None) -> list[int]:
        """D of each block that saw anything, 0 of the others; counted from its rows where it is not known."""
        return [0 if not c.rows else c.terms(reduction) if known is None else known for c in self.counts]

    def _normalize(self, tensor: Tensor, reduction: Reduction | None, terms: Tensor | int | None, scale: Tensor | None) -> None:
        """Scale what is quadratic in gradients."""
        if isinstance(terms, Tensor):
            tensor.mul_(terms.to(tensor).reciprocal())
        else:
            counted = self.terms(reduction, terms)
            summed = reduction is Reduction.SUM
            self.scale_terms(tensor, [(1.0 / t if summed else float(t)) if t else 0.0 for t in counted])
        if scale is not None:
            tensor.mul_(scale.to(tensor).square().reciprocal())

    def drop(self) -> None:
        """Forget what was added since the last collection."""
        if self.filled:
            self.left = self.right = None
            self.counts = [Counts() for _ in self.counts]
            self.squares = None if self.squares is None else SquareSums.zeros(self.squares.basis)
            self.filled = False

    def drop_block(self, block: int) -> None:
        """Forget what was added for one block."""
        if not self.counts[block].rows:
            return
        left, right = self.hold()
        span = slice(self._starts[block], self._starts[block + 1])
        if self.form.left is not None:
            left[span].zero_()
        right[span].zero_()
        if self.squares is not None:
            self.squares.total[span].zero_()
        self.counts[block] = Counts()
        self.filled = any(c.rows for c in self.counts)

    def hold(self) -> tuple[Tensor, Tensor]:
        """Left and right sums, made now where there are none yet."""
        if self.left is None or self.right is None:
            out, inputs = self.form.block.domain
            options = self.length, self.form.dtype, self.form.device
            self.left = self._vectors(out) + 1 if self.form.left is None else self.form.left.zeros(*options)
            self.right = self._vectors(inputs) if self.form.right is None else self.form.right.zeros(*options)
        return self.left, self.right

    def _vectors(self, size: int) -> Tensor:
        """Zeros `[L, n]`."""
        return torch.zeros(self.length, size, dtype=self.form.dtype, device=self.form.device)


def _side(held: Holding | None, total: Tensor) -> Operator:
    """Scaled sums as an operator."""
    return Diagonal(total) if held is None else held.operator(total)


def _reduced(rows: Rows) -> Rows:
    """Average inputs and sum gradients over shared positions."""
    assert not isinstance(rows.inputs, OneHot)  # refused at the door
    positions = rows.outputs.shape[2]
    return Rows(rows.inputs.mean(2, keepdim=True), rows.outputs.sum(2, keepdim=True), summed=rows.summed * positions)


def _add_counts(total: Tensor, rows: OneHot) -> None:
    """Add how often each index occurs, `[P, I]`."""
    indices = rows.indices.reshape(rows.indices.shape[0], -1)
    total.scatter_add_(1, indices.clamp_min(0), (indices >= 0).to(total.dtype))


def _scale_members(stack: Tensor, factors: Sequence[float]) -> None:
    """Multiply each member of a stack by its own host number, in place."""
    if len(set(factors)) == 1:
        stack.mul_(factors[0])
    else:
        shape = (-1,) + (1,) * (stack.ndim - 1)
        stack.mul_(upload(factors, stack.device, stack.dtype).view(shape))
