"""Damping: how λI is joined to a Kronecker-factored curvature.

*Exact*: B ⊗ A + λI, which only an eigenbasis can invert. *Factored Tikhonov* (Martens & Grosse 2015, arXiv 1503.05671, §6.3):

    (B + (√λ/π) I) ⊗ (A + π√λ I),    π = sqrt( (tr A / dim A) / (tr B / dim B) ),

a different operator, whose two sides can be inverted one by one. Where one side is 1 × 1 both agree: that side is folded into
the other and takes no damping. *Input* damping leaves the identity on the output side alone: I ⊗ (A + λI), exact where B = I.
*Relative* damping puts √λ times the root mean square of each side's eigenvalues in the place of (√λ/π, π√λ), so λ has no unit.
Damping is a modelling choice, so it is an object here and no property of an operator.

*Levenberg–Marquardt* adapts λ from how well the quadratic model did: with ρ = actual/predicted reduction of the loss,
λ ← λω where ρ > ¾ and λ ← λ/ω where ρ < ¼ (ibid. §6.5). It needs the loss after the step, and is
unreliable on stochastic losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from heatbath.operators import BlockDiagonal, Dense, Diagonal, EigenCorrected, Kronecker, Operator, Sketched, scalar

RATIO_LIMIT = 1e8  # bounds π where one side is all zeros, as behind a dead ReLU


class Damping(Protocol):
    """A rule that joins damping to curvature."""

    def __call__(self, curvature: Operator, amount: Tensor) -> Operator:
        """Damp a stack of curvatures by `amount` `[*stack]`, each λ ≥ 0."""


@dataclass(frozen=True)
class ExactDamping:
    """B ⊗ A + λI, for solvers that take it (`Eigen`)."""

    def __call__(self, curvature: Operator, amount: Tensor) -> Operator:
        return curvature.shift(amount)


@dataclass(frozen=True)
class InputDamping:
    """I ⊗ (A + λI), for curvature without an output side (`InputOnly`)."""

    def __call__(self, curvature: Operator, amount: Tensor) -> Operator:
        sides = _sides(curvature)
        if sides.left.size == 1:
            return Kronecker(_ones(sides.left), _scaled(sides.right, sides.left.trace()).shift(amount))
        return Kronecker(Diagonal(torch.ones_like(_diagonal(sides.left))), sides.right.shift(amount))


@dataclass(frozen=True)
class FactoredDamping:
    """Factored Tikhonov damping with π, for solvers that take one side at a time."""

    def __call__(self, curvature: Operator, amount: Tensor) -> Operator:
        sides = _sides(curvature)
        left, right = sides.left, sides.right
        if left.size == 1:
            return Kronecker(_ones(left), _scaled(right, left.trace()).shift(amount))
        if right.size == 1:
            return Kronecker(_scaled(left, right.trace()).shift(amount), _ones(right))
        tiny = 1e-30
        mean_left = (left.trace() / left.size).clamp_min(tiny)
        mean_right = (right.trace() / right.size).clamp_min(tiny)
        ratio = (mean_right / mean_left).sqrt().clamp(1 / RATIO_LIMIT, RATIO_LIMIT)
        root = amount.sqrt()
        return Kronecker(left.shift(root / ratio), right.shift(root * ratio))


@dataclass(frozen=True)
class RelativeDamping:
    """Damping in units of the curvature itself, so that λ means the same for every loss, layer and batch.

    Both sides get √λ times the root mean square of their eigenvalues, B + √λ r(B) I and A + √λ r(A) I with
    r(M) = ‖M‖_F / √(dim M); a side of zeros becomes a multiple of the identity. Why not the mean eigenvalue: both agree on a
    flat spectrum, but where few directions hold most of the trace, as the mean of pictures does, the mean is far below what
    matters, and steps of one length go to directions of noise.

    Args:
        exact: B ⊗ A + λ r(B) r(A) I instead, for solvers that take it (`Eigen`).
    """

    exact: bool = False

    def __call__(self, curvature: Operator, amount: Tensor) -> Operator:
        if self.exact:
            return curvature.shift(amount * _typical_eigenvalue(curvature))
        sides, root = _sides(curvature), amount.sqrt()
        left, right = (side.shift(root * _typical_eigenvalue(side)) for side in (sides.left, sides.right))
        return Kronecker(left, right)


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Adapt λ of all groups by the same factor.

    Args:
        every: steps between adaptations, each of which evaluates the loss twice.
        decay: ω for one step; ω for an adaptation is decay to the power of `every`.
        low: ρ below which λ rises.
        high: ρ above which λ falls.
        smallest: bound on λ.
        largest: bound on λ.

    Raises:
        ValueError: a value out of range.
    """

    every: int = 5
    decay: float = 19 / 20
    low: float = 0.25
    high: float = 0.75
    smallest: float = 1e-8
    largest: float = 1e4

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 < self.decay < 1:
            raise ValueError(f"every must be at least 1 and decay lie in (0, 1), got {self.every} and {self.decay}")
        if not (self.low < self.high and 0 < self.smallest <= self.largest):
            raise ValueError(
                f"low < high and 0 < smallest <= largest are needed, got low {self.low}, high {self.high}, "
                f"smallest {self.smallest}, largest {self.largest}"
            )

    def due(self, step: int) -> bool:
        """Whether to adapt at `step`."""
        return (step + 1) % self.every == 0

    def renew(self, groups: Sequence[dict[str, Any]], ratio: Tensor) -> None:  # Any: torch's own type
        """Put the next λ into parameter groups."""
        for group in groups:
            group["damping"] = self(scalar(group["damping"], ratio), ratio)

    def __call__(self, damping: Tensor, ratio: Tensor) -> Tensor:
        """The next λ from the present one and ρ, all 0-d; a ratio that is no number counts as a failure."""
        factor = self.decay**self.every
        fallen = torch.where(ratio > self.high, damping * factor, damping)
        risen = torch.where(ratio >= self.low, fallen, damping / factor)
        return risen.clamp(self.smallest, self.largest)


def _sides(curvature: Operator) -> Kronecker:
    """A Kronecker product; nothing else has sides to be damped.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(curvature, Kronecker):
        raise TypeError(f"{type(curvature).__name__} has no sides to damp one by one: use ExactDamping() with Eigen()")
    return curvature


def _typical_eigenvalue(operator: Operator) -> Tensor:
    """Root mean square of each member's eigenvalues, `[*stack]`; 1 where all of them are zero.

    Relative to their mean, so that squares of small losses' curvature do not underflow.
    """
    if isinstance(operator, Kronecker):
        return _typical_eigenvalue(operator.left) * _typical_eigenvalue(operator.right)
    mean = operator.trace() / operator.size
    mean = torch.where(mean > 0, mean, 1.0)
    root = (_scaled(operator, mean.reciprocal()).square_norm() / operator.size).sqrt()
    return torch.where(root > 0, mean * root, 1.0)


def _diagonal(operator: Operator) -> Tensor:
    """The diagonal of an operator that is held as one."""
    if not isinstance(operator, Diagonal):
        raise TypeError(
            f"InputDamping is for curvature without an output side, got one that is {type(operator).__name__}: use InputOnly()"
        )
    return operator.diagonal


def _scaled(operator: Operator, factor: Tensor) -> Operator:
    """The operator times a number per member, `[*stack]`."""
    if isinstance(operator, Dense):
        return Dense(operator.matrix * factor[..., None, None])
    if isinstance(operator, Diagonal):
        return Diagonal(operator.diagonal * factor[..., None])
    if isinstance(operator, BlockDiagonal):
        return BlockDiagonal(operator.blocks * factor[..., None, None, None], operator.length)
    if isinstance(operator, Sketched):
        return operator.scaled(factor)
    if isinstance(operator, EigenCorrected):
        return EigenCorrected(operator.left, operator.right, operator.values * factor[..., None, None])
    raise TypeError(f"a factor must be Dense or Diagonal, got {type(operator).__name__}")


def _ones(operator: Operator) -> Diagonal:
    """A 1 × 1 identity per member."""
    return Diagonal(operator.trace().unsqueeze(-1) * 0 + 1)
