"""Rows to Kronecker factors.

For a loss that is a mean over D terms, captured gradients are g = γ/D with γ the gradient of one term. With T rows in all
(examples × shared positions) the K-FAC block is

    B ⊗ A,    A = (1/T) Σ a aᵀ,    B = D Σ g gᵀ        (mean)        B = (1/D) Σ g gᵀ        (sum, where g = γ)

which is *expand* of Eschenhagen et al. 2023 (arXiv 2311.00636), and for positions summed within an example KFC of Grosse &
Martens 2016 (arXiv 1602.01407). *Reduce* averages a and sums g over an example's positions first; T is then the number of
examples. Since D and T count everything seen since the last collection, k micro-batches equal one batch, and duplicating
every example changes nothing: damping means the same at every batch size.

Vectors at observed outputs (`heatbath.curvature.fisher`) bring γ itself, in one or more pulls; only the first adds to A.
Where rows a are gradients of examples themselves (normalization layers), B = 1 and A is scaled as B is elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from heatbath.curvature.reduction import Reduction, Sharing
from heatbath.curvature.squares import SquareSums
from heatbath.layers import Block, OneHot, Rows
from heatbath.operators import BlockDiagonal, Dense, Diagonal, Kronecker, Operator, empty_aligned, split_features, upload
from heatbath.work import Work, matmul


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
        max_dim: the largest factor held in full; larger ones are cut into diagonal blocks. None: no limit.
    """

    block: Block
    dtype: torch.dtype
    device: torch.device
    inputs_only: bool = False
    max_dim: int | None = None

    @property
    def has_left(self) -> bool:
        """Whether gradients enter the output side; where not, B = I."""
        return not (self.block.gradient_inputs or self.inputs_only)

    def zeros(self, length: int, size: int) -> Tensor:
        """Empty sums `[L, n, n]`, or `[L, K, m, m]` where n is above the limit."""
        if self.max_dim is None or size <= self.max_dim:
            return empty_aligned(length, size, size, dtype=self.dtype, device=self.device).zero_()
        count = -(-size // self.max_dim)
        piece = -(-size // count)
        return torch.zeros(length, count, piece, piece, dtype=self.dtype, device=self.device)


@dataclass(eq=False)
class FactorSums:
    """Running sums Σ g gᵀ and Σ a aᵀ for a stack of L places of one shape, held from the first row to the next collection.

    Args:
        spans: how many places each block takes, in order; they add up to L.
        form: how they are held.
        left: Σ g gᵀ, `[L, O, O]` or blocks `[L, K, m, m]`; None while empty.
        right: Σ a aᵀ, `[L, I, I]` or blocks, or Σ a² `[L, I]` for one-hot inputs; None while empty.
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
        if self.form.has_left:
            work = work + _add_outer(left[span], rows.outputs.flatten(1, 2))
        if again and not self.form.block.gradient_inputs:
            return work
        if isinstance(rows.inputs, OneHot):
            _add_counts(right[span], rows.inputs)
        else:
            work = work + _add_outer(right[span], rows.inputs.flatten(1, 2))
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
        for total in (left, right):
            _mirror(total)
        seen = [c.rows > 0 for c in self.counts]
        for tensor in self.of_gradients(squares=False):
            self._normalize(tensor, reduction, terms, scale)
        if not self.form.block.gradient_inputs:
            rows = [t for c, span in zip(self.counts, self.spans, strict=True) for t in c.filled(span)]
            _scale_members(right, [1.0 / t if t else 0.0 for t in rows])
        out, inputs = self.form.block.domain
        factors = Kronecker(_side(left, out), _side(right, inputs))
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

    def hold(self) -> tuple[Tensor, Tensor]:
        """Left and right sums, made now where there are none yet."""
        if self.left is None or self.right is None:
            out, inputs = self.form.block.domain
            self.left = self.form.zeros(self.length, out) if self.form.has_left else self._vectors(out) + 1
            diagonal = self.form.block.diagonal_inputs
            self.right = self._vectors(inputs) if diagonal else self.form.zeros(self.length, inputs)
        return self.left, self.right

    def _vectors(self, size: int) -> Tensor:
        """Zeros `[L, n]`."""
        return torch.zeros(self.length, size, dtype=self.form.dtype, device=self.form.device)


def _side(total: Tensor, size: int) -> Operator:
    """Scaled sums as an operator."""
    if total.ndim == 2:
        return Diagonal(total)
    return Dense(total) if total.ndim == 3 else BlockDiagonal(total, size)


def _add_outer(total: Tensor, rows: Tensor) -> Work:
    """Add Σ x xᵀ of rows x `[P, T, n]` to `[P, n, n]`, or its diagonal blocks to `[P, K, m, m]`.

    A large square is filled in strips that end at the diagonal, since the rest is their mirror image: four strips take 5/8 of
    the operations. `_mirror` completes it once, when the sums are collected.
    """
    x = rows if takes_halves(rows.device, rows.dtype, total.dtype) else rows.to(total.dtype)
    if total.ndim == 3:
        work = Work()
        for start, end in _strips(total.shape[-1]):
            _add_product(total[:, start:end, :end], x[..., start:end].mT, x[..., :end])
            work = work + Work.of(matmul(end - start, x.shape[1], end), x.shape[0])
        return work
    x = split_features(x, total.shape[1], total.shape[2]).flatten(0, 1)
    _add_product(total.flatten(0, 1), x.mT, x)
    return Work.of(matmul(x.shape[2], x.shape[1], x.shape[2]), x.shape[0])


def takes_halves(device: torch.device, rows: torch.dtype, total: torch.dtype) -> bool:
    """Whether rows of 16 bits are multiplied as they are: by tensor cores, which sum their exact products in float32.

    PyTorch has such products on CUDA alone; elsewhere rows are converted first.
    """
    return device.type == "cuda" and rows in (torch.bfloat16, torch.float16) and total == torch.float32


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b to sums `[P, m, n]`, in place."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a, b, out_dtype=total.dtype))


def _strips(size: int) -> list[tuple[int, int]]:
    """First and last row of each strip of a square; products of less than 128 rows run too slowly to pay."""
    count = min(4, max(1, size // 128))
    edges = [16 * round(size * k / count / 16) for k in range(count)]  # at whole cache lines
    return list(pairwise([*edges, size]))


def _mirror(total: Tensor) -> None:
    """Complete sums `[P, n, n]` that were filled in strips, in place."""
    if total.ndim == 3:
        for start, end in _strips(total.shape[-1])[1:]:
            total[:, :start, start:end] = total[:, start:end, :start].mT


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
