"""How far to trust one step.

KL clip (Ba, Grosse & Martens 2017, §5): for the natural gradient v = F⁻¹g the step −lr·v changes the model's predictions by a
Kullback–Leibler divergence of about ½ lr² vᵀFv = ½ lr² vᵀg. Scaling by

    ν = min(1, sqrt(κ / |Σ lr² vᵀg|))

bounds it by κ/2. With momentum m, lr stands for lr/(1 − m), the length a sustained step grows to. Norm clip bounds the length
of the step instead, ν = min(1, ρ / ‖lr·v‖). All of it stays on the device as 0-d tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Trust(Protocol):
    """A rule that shortens steps."""

    def __call__(self, predicted: Tensor, length: Callable[[], Tensor], /) -> Tensor:
        """A 0-d scale in (0, 1].

        Args:
            predicted: Σ lr² vᵀg, 0-d, lr including momentum's gain.
            length: computes ‖lr·v‖, 0-d, lr including momentum's gain; called only by rules that need it.
        """


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

    def __call__(self, predicted: Tensor, length: Callable[[], Tensor] | None = None, /) -> Tensor:
        size = predicted.abs().clamp_min(torch.finfo(predicted.dtype).tiny)
        return (self.kappa / size).sqrt().clamp_max(1.0)


@dataclass(frozen=True)
class NormClip:
    """Bound the Euclidean length of the step over all parameters treated by curvature.

    Args:
        radius: bound ρ, in units of the parameters.

    Raises:
        ValueError: radius is not positive.
    """

    radius: float

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius}; pass trust=Unclipped() for no clipping")

    def __call__(self, predicted: Tensor, length: Callable[[], Tensor], /) -> Tensor:
        size = length().to(predicted.dtype)
        return (self.radius / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1.0)


@dataclass(frozen=True)
class Unclipped:
    """Take every step as it is."""

    def __call__(self, predicted: Tensor, length: Callable[[], Tensor] | None = None, /) -> Tensor:
        return torch.ones_like(predicted)
