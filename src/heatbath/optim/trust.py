"""How far to trust one step.

KL clip (Ba, Grosse & Martens 2017, §5): for the natural gradient v = F⁻¹g the step −lr·v changes the model's predictions by a
Kullback–Leibler divergence of about ½ lr² vᵀFv = ½ lr² vᵀg. Scaling by

    ν = min(1, sqrt(κ / |Σ lr² vᵀg|))

bounds it by κ/2. With momentum m, lr stands for lr/(1 − m), the length a sustained step grows to. All of it stays on the
device as 0-d tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Trust(Protocol):
    """A rule that shortens steps."""

    def __call__(self, predicted: Tensor) -> Tensor:
        """A 0-d scale in (0, 1] for predicted = Σ lr² vᵀg, a 0-d tensor, lr including momentum's gain."""


@dataclass(frozen=True)
class KLClip:
    """Bound the predicted change of the model's distribution.

    Args:
        kappa: bound κ on lr² vᵀg, dimensionless (nats).

    Raises:
        ValueError: kappa is not positive.
    """

    kappa: float = 1e-2

    def __post_init__(self) -> None:
        if not self.kappa > 0:
            raise ValueError(f"kappa must be positive, got {self.kappa}; pass trust=Unclipped() for no clipping")

    def __call__(self, predicted: Tensor) -> Tensor:
        size = predicted.abs().clamp_min(torch.finfo(predicted.dtype).tiny)
        return (self.kappa / size).sqrt().clamp_max(1.0)


@dataclass(frozen=True)
class Unclipped:
    """Take every step as it is."""

    def __call__(self, predicted: Tensor) -> Tensor:
        return torch.ones_like(predicted)
