"""What a loss says about its own curvature: the distribution p(t | z) whose negative logarithm it is.

A loss ½‖·‖², cross-entropy, … is −log p(t | z) of the outputs z up to constants, one *term* per target. Its Hessian at the
outputs, H = ∇²_z(−log p), does not depend on t for these families, and

    H = Σ_c s_c s_cᵀ = E_{t ~ p(·|z)}[v vᵀ],    v = ∇_z(−log p(t | z)),

so columns s_c give the Gauss–Newton matrix exactly and sampled gradients v give it in expectation (Martens 2020, arXiv
1412.1193, §9). With m weighing the terms (masks, class weights):

    Gaussian      w I             (z − t)² has w = 2
    Categorical   diag p − ppᵀ    p = softmax(z);  s_c = √p_c (e_c − p)
    Bernoulli     σ(z)(1 − σ(z))
    Poisson       eᶻ              z the logarithm of the rate

Everything here works on outputs as rows `[B, R, C]`: B examples, R positions, C features; terms are the C numbers of a row
one by one, or the whole row for `Categorical`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from heatbath.curvature.reduction import Reduction
from heatbath.operators import scalar


@dataclass(frozen=True, eq=False)
class Observation:
    """Outputs as a likelihood sees them.

    Args:
        rows: z `[B, R, C]`, detached, at least float32.
        weights: m `[B, R, C]` or `[B, R, 1]`, not negative; 0 where the loss does not count.
        terms: D, the number by which the loss is divided, a 0-d tensor.
        layout: shape of the outputs, and which of their dimensions holds features.
        likelihood: whose Hessian is meant.
    """

    rows: Tensor
    weights: Tensor
    terms: Tensor
    layout: tuple[torch.Size, int]
    likelihood: Likelihood

    def hessian(self, tangent: Tensor) -> Tensor:
        """Apply m H to rows `[B, R, C]`."""
        return self.weights * self.likelihood.hessian(self.rows, tangent)

    def as_outputs(self, rows: Tensor) -> Tensor:
        """Rows `[B, R, C]` in the shape of the outputs."""
        shape, dim = self.layout
        moved = [size for d, size in enumerate(shape) if d != dim % len(shape)]
        return rows.reshape(*moved, shape[dim]).movedim(-1, dim)

    def as_rows(self, outputs: Tensor) -> Tensor:
        """A tensor shaped like the outputs as rows `[B, R, C]`."""
        return _as_rows(outputs, self.layout[1]).to(self.rows.dtype)


class Likelihood(ABC):
    """A family of distributions of targets given outputs."""

    @property
    @abstractmethod
    def whole_rows(self) -> bool:
        """Whether a term is a whole row of features, rather than one number."""

    @abstractmethod
    def feature_dimension(self, outputs: Tensor) -> int:
        """Which dimension of the outputs holds features."""

    @abstractmethod
    def weigh(self, rows: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights m of the Hessian and weights in the count D, both `[B, R, C]` or `[B, R, 1]`, before any mask."""

    @abstractmethod
    def sample(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """v, the gradient of −log p(t | z) at targets drawn from p(· | z), `[B, R, C]`."""

    @abstractmethod
    def columns(self, rows: Tensor) -> Iterator[Tensor]:
        """Column c of the root of every row's Hessian, `[B, R, C]`, for c = 1 … C."""

    @abstractmethod
    def hessian(self, rows: Tensor, tangent: Tensor) -> Tensor:
        """H applied to `tangent` `[B, R, C]`, row by row."""

    def observe(
        self, outputs: Tensor, targets: Tensor | None = None, mask: Tensor | None = None, reduction: Reduction | None = None
    ) -> Observation:
        """See outputs as rows, weigh them and count the terms of the loss.

        Args:
            outputs: z, as the loss takes them; the first dimension counts examples.
            targets: the loss's targets, for likelihoods whose weights depend on them.
            mask: true where the loss counts, shaped like the terms: outputs, without the features if a term is a row.
            reduction: how the loss joins its terms; None: a mean over all that count, as PyTorch's losses do.

        Raises:
            TypeError: outputs are no floating-point tensor.
            ValueError: outputs have no batch dimension, or targets or mask do not match them.
        """
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise TypeError(
                f"observe takes the tensor the loss is computed from, got {type(outputs).__name__}: pass for example "
                "outputs.logits"
            )
        if outputs.ndim < 2:
            raise ValueError(f"outputs need a batch and a feature dimension [B, …, C], got shape {list(outputs.shape)}")
        dim = self.feature_dimension(outputs)
        rows = _as_rows(outputs.detach(), dim)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        weights, counted = self.weigh(rows, None if targets is None else self._targets(targets.detach(), outputs, dim))
        if mask is not None:
            keep = self._mask(mask, outputs, dim).to(rows.dtype)
            weights, counted = weights * keep, counted * keep
        return Observation(rows, weights, _count(rows, counted, reduction), (outputs.shape, dim), self)

    def _targets(self, targets: Tensor, outputs: Tensor, dim: int) -> Tensor:
        """Targets as rows `[B, R, C]`, or `[B, R, 1]` where they are class indices."""
        if targets.shape == outputs.shape:
            return _as_rows(targets, dim)
        if self.whole_rows and not targets.is_floating_point() and targets.shape == _without(outputs.shape, dim):
            return targets.reshape(outputs.shape[0], -1, 1)
        indices = f" or, as class indices, {list(_without(outputs.shape, dim))}" if self.whole_rows else ""
        raise ValueError(
            f"targets should have shape {list(outputs.shape)}{indices}, got {list(targets.shape)} of {targets.dtype}"
        )

    def _mask(self, mask: Tensor, outputs: Tensor, dim: int) -> Tensor:
        """A mask as rows."""
        shape = _without(outputs.shape, dim) if self.whole_rows else outputs.shape
        if mask.shape != shape:
            raise ValueError(
                f"mask should have shape {list(shape)}, one entry for each term of the loss, got {list(mask.shape)}"
            )
        return mask.reshape(outputs.shape[0], -1, 1) if self.whole_rows else _as_rows(mask, dim)


class _Numbers(Likelihood):
    """Likelihoods whose terms are single numbers, features last."""

    @property
    def whole_rows(self) -> bool:
        return False

    def feature_dimension(self, outputs: Tensor) -> int:
        return -1

    def weigh(self, rows: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(rows)
        return ones, ones

    def columns(self, rows: Tensor) -> Iterator[Tensor]:
        root = self.hessian(rows, torch.ones_like(rows)).sqrt()
        for c in range(rows.shape[-1]):
            column = torch.zeros_like(root)
            column[..., c] = root[..., c]
            yield column


@dataclass(frozen=True)
class Gaussian(_Numbers):
    """Squared errors: terms ½ w (z − t)².

    Args:
        weight: w, second derivative of a term; 2 is `nn.MSELoss`, 1/σ² a Gaussian with variance σ².

    Raises:
        ValueError: weight is not positive.
    """

    weight: float = 2.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"the weight of a squared error must be positive, got {self.weight}")

    def sample(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.empty_like(rows).normal_(generator=generator)
        return noise * math.sqrt(self.weight)

    def hessian(self, rows: Tensor, tangent: Tensor) -> Tensor:
        return self.weight * tangent


@dataclass(frozen=True, eq=False)
class Bernoulli(_Numbers):
    """Binary cross-entropy on logits, as `nn.BCEWithLogitsLoss`. A target of NaN stands for a missing label.

    Args:
        pos_weight: weight of positive targets, broadcast over features `[C]`; then `observe` needs the targets.
    """

    pos_weight: Tensor | None = None

    def weigh(self, rows: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        if targets is None:
            if self.pos_weight is not None:
                raise ValueError("with pos_weight the curvature depends on the targets: call opt.observe(outputs, targets)")
            return super().weigh(rows, None)
        labelled = (~torch.isnan(targets)).to(rows.dtype)
        if self.pos_weight is None:
            return labelled, labelled
        positive = torch.nan_to_num(targets.to(rows.dtype))
        return labelled * (1 + (self.pos_weight.to(rows) - 1) * positive), labelled

    def sample(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        p = torch.sigmoid(rows)
        return p - torch.bernoulli(p, generator=generator)

    def hessian(self, rows: Tensor, tangent: Tensor) -> Tensor:
        p = torch.sigmoid(rows)
        return p * (1 - p) * tangent


@dataclass(frozen=True)
class Poisson(_Numbers):
    """Counts with outputs the logarithm of their rate, as `nn.PoissonNLLLoss` with `log_input=True`."""

    def sample(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        rate = rows.exp()
        return rate - torch.poisson(rate, generator=generator)

    def hessian(self, rows: Tensor, tangent: Tensor) -> Tensor:
        return rows.exp() * tangent


@dataclass(frozen=True, eq=False)
class Categorical(Likelihood):
    """Softmax cross-entropy, as `nn.CrossEntropyLoss`.

    Label smoothing alone changes no curvature; class weights and ignored positions do, so then `observe` needs the targets.

    Args:
        class_dim: which dimension of the outputs holds classes: 1 for `[B, C, …]`, −1 for `[B, T, C]`; may be left out
            for `[B, C]`.
        weight: class weights `[C]`, or None.
        label_smoothing: ε of the loss; matters together with `weight` only.
        ignore_index: class index that marks positions the loss leaves out.

    Raises:
        ValueError: label_smoothing out of [0, 1].
    """

    class_dim: int | None = None
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {self.label_smoothing}")

    @property
    def whole_rows(self) -> bool:
        return True

    def feature_dimension(self, outputs: Tensor) -> int:
        if self.class_dim is None and outputs.ndim > 2:
            raise ValueError(
                f"outputs {list(outputs.shape)} have more than two dimensions: say which holds the classes, "
                "Categorical(class_dim=1) for [B, C, …] or Categorical(class_dim=-1) for [B, T, C]"
            )
        return 1 if self.class_dim is None else self.class_dim

    def weigh(self, rows: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        if targets is None:
            if self.weight is not None:
                raise ValueError("with class weights the curvature depends on the targets: call opt.observe(outputs, targets)")
            ones = rows.new_ones(*rows.shape[:2], 1)
            return ones, ones
        if targets.is_floating_point():  # probabilities of classes; PyTorch divides by the number of rows
            mass = targets.to(rows.dtype)
            mass = (1 - self.label_smoothing) * mass + self.label_smoothing / rows.shape[-1]
            mass = mass if self.weight is None else mass * self.weight.to(rows)
            return mass.sum(-1, keepdim=True), rows.new_ones(*rows.shape[:2], 1)
        ignored = targets == self.ignore_index
        kept = (~ignored).to(rows.dtype)
        if self.weight is None:
            return kept, kept
        weight = self.weight.to(rows)
        of_target = kept * weight[targets.masked_fill(ignored, 0)]
        smoothed = (1 - self.label_smoothing) * of_target + self.label_smoothing * kept * weight.mean()
        return smoothed, of_target

    def sample(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        p = torch.softmax(rows, dim=-1)
        drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).reshape(*rows.shape[:2])
        return p - F.one_hot(drawn, rows.shape[-1]).to(p.dtype)

    def columns(self, rows: Tensor) -> Iterator[Tensor]:
        p = torch.softmax(rows, dim=-1)
        for c in range(rows.shape[-1]):
            column = -p
            column[..., c] += 1
            yield column * p[..., c : c + 1].sqrt()

    def hessian(self, rows: Tensor, tangent: Tensor) -> Tensor:
        p = torch.softmax(rows, dim=-1)
        return p * (tangent - (p * tangent).sum(-1, keepdim=True))


def _as_rows(outputs: Tensor, dim: int) -> Tensor:
    """`[B, R, C]` with the features of dimension `dim` last."""
    moved = outputs.movedim(dim, -1)
    return moved.reshape(moved.shape[0], -1, moved.shape[-1])


def _without(shape: torch.Size, dim: int) -> tuple[int, ...]:
    """A shape without one of its dimensions."""
    return tuple(size for d, size in enumerate(shape) if d != dim % len(shape))


def _count(rows: Tensor, counted: Tensor, reduction: Reduction | None) -> Tensor:
    """D, a 0-d tensor."""
    examples, positions, _ = rows.shape
    if reduction is None or (reduction is Reduction.EXAMPLES and positions * counted.shape[-1] == 1):
        return counted.sum()
    if reduction is Reduction.ROWS:
        return counted.amax(-1).sum()
    return scalar(float(examples), rows)
