"""Step rules: how long a step is.

*Matched RMS* knows no unit of the loss. The natural gradient V of each tensor gives its direction only, and the update is

    ΔW = −lr · 0.2 · V / rms(V),    rms(V) = ‖V‖_F / √(number of entries),

the size of AdamW's updates (Liu et al. 2025, arXiv 2502.16982, for Muon). V is then the preconditioned momentum of the
gradients: momentum after the preconditioner would add up directions that each step measures with another curvature.

KL clip (Ba, Grosse & Martens 2017, §5): for the natural gradient v = F⁻¹g the step −lr·v changes the model's predictions by a
Kullback–Leibler divergence of about ½ lr² vᵀFv = ½ lr² vᵀg. Scaling by

    ν = min(1, sqrt(κ / |Σ lr² vᵀg|))

bounds it by κ/2. With momentum m, lr stands for lr/(1 − m), the length a sustained step grows to. Norm clip bounds the length
of the step instead, ν = min(1, ρ / ‖lr·v‖). All of it stays on the device as 0-d tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from heatbath.operators import upload


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
class MatchedRMS:
    """Give every tensor's update the same root mean square, lr times `rms`; momentum is that of the gradients.

    The default. Multiplying the loss by a constant changes no step. Damping is relative to the factors (`RelativeDamping`).

    Args:
        rms: root mean square of an update, in units of lr; 0.2 is what AdamW's updates have.
        nesterov: precondition g + μm instead of m, where m ← μm + g.

    Raises:
        ValueError: rms is not positive.
    """

    rms: float = 0.2
    nesterov: bool = True

    def __post_init__(self) -> None:
        if not self.rms > 0:
            raise ValueError(f"rms must be positive, got {self.rms}")

    def __call__(self, values: Mapping[Tensor, Tensor], finite: Tensor) -> dict[Tensor, Tensor]:
        """The directions with their root mean square matched; zeros stay zeros, and so do norms too small to divide by.

        Args:
            values: direction by parameter.
            finite: 0-d bool; where false, zeros are returned.
        """
        directions = list(values.values())
        norms = torch.stack(torch._foreach_norm(directions))
        sizes = upload([math.sqrt(v.numel()) for v in directions], norms.device, norms.dtype)
        scales = self.rms * sizes / norms
        scales = torch.where(finite & scales.isfinite(), scales, 0.0)
        return dict(zip(values, torch._foreach_mul(directions, list(scales.unbind())), strict=True))


@dataclass(frozen=True)
class Unclipped:
    """Take every step as it is."""

    def __call__(self, predicted: Tensor, length: Callable[[], Tensor] | None = None, /) -> Tensor:
        return torch.ones_like(predicted)
