"""Damping: how λI is joined to a Kronecker-factored curvature.

*Exact*: B ⊗ A + λI, which only an eigenbasis can invert. *Factored Tikhonov* (Martens & Grosse 2015, arXiv 1503.05671, §6.3):

    (B + (√λ/π) I) ⊗ (A + π√λ I),    π = sqrt( (tr A / dim A) / (tr B / dim B) ),

a different operator, whose two sides can be inverted one by one. Where one side is 1 × 1 both agree: that side is folded into
the other and takes no damping. Damping is a modelling choice, so it is an object here and no property of an operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from heatbath.operators import Dense, Diagonal, Kronecker, Operator

RATIO_LIMIT = 1e8  # bounds π where one side is all zeros, as behind a dead ReLU


class Damping(Protocol):
    """A rule that joins damping to curvature."""

    def __call__(self, curvature: Kronecker, amount: Tensor) -> Operator:
        """Damp a stack of curvatures by `amount` `[*stack]`, each λ ≥ 0."""


@dataclass(frozen=True)
class ExactDamping:
    """B ⊗ A + λI, for solvers that take it (`Eigen`)."""

    def __call__(self, curvature: Kronecker, amount: Tensor) -> Operator:
        return curvature.shift(amount)


@dataclass(frozen=True)
class FactoredDamping:
    """Factored Tikhonov damping with π, for solvers that take one side at a time."""

    def __call__(self, curvature: Kronecker, amount: Tensor) -> Operator:
        left, right = curvature.left, curvature.right
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


def _scaled(operator: Operator, factor: Tensor) -> Operator:
    """The operator times a number per member, `[*stack]`."""
    if isinstance(operator, Dense):
        return Dense(operator.matrix * factor[..., None, None])
    if isinstance(operator, Diagonal):
        return Diagonal(operator.diagonal * factor[..., None])
    raise TypeError(f"a factor must be Dense or Diagonal, got {type(operator).__name__}")


def _ones(operator: Operator) -> Diagonal:
    """A 1 × 1 identity per member."""
    return Diagonal(operator.trace().unsqueeze(-1) * 0 + 1)
