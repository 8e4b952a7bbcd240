"""Loss scaling: gradients that arrive multiplied by a number that is not ours.

`torch.amp.GradScaler` multiplies the loss by s so that float16 gradients do not vanish. Captured gradients g then carry s, and
output factors s². An optimizer that declares `_step_supports_amp_scaling` is told s when the scaler calls its `step`, unless
the user unscaled `.grad` before (to clip it): then the scaler says nothing, and is looked up among the callers of `step`.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LossScale:
    """What a scaler did to this step's gradients; all None where there is no scaler.

    Args:
        pending: what `.grad` is still multiplied by, 0-d.
        captured: what captured gradients were multiplied by, 0-d.
        overflow: positive where a gradient is not finite, 0-d.
    """

    pending: Tensor | None = None
    captured: Tensor | None = None
    overflow: Tensor | None = None


def loss_scale(optimizer: torch.optim.Optimizer, *, search: bool = False) -> LossScale:
    """What the scaler that calls this optimizer's `step`, if any, did to its gradients.

    Args:
        optimizer: the optimizer.
        search: look for a scaler also where the optimizer is told nothing, because it does not speak the protocol: then the
            scaler has unscaled `.grad`, and would not have called `step` after an overflow.
    """
    overflow = getattr(optimizer, "found_inf", None)
    if overflow is None:
        scaler = _calling_scaler() if search else None
        return LossScale() if scaler is None or not scaler.is_enabled() else LossScale(captured=scaler._get_scale_async())
    pending = getattr(optimizer, "grad_scale", None)
    if pending is not None:
        return LossScale(pending, pending, overflow)
    scaler = _calling_scaler()
    if scaler is None:
        warnings.warn(
            "gradients were unscaled by something that is no torch.amp.GradScaler: captured curvature is taken as unscaled",
            stacklevel=3,
        )
        return LossScale(overflow=overflow)
    return LossScale(captured=scaler._get_scale_async(), overflow=overflow)


def _calling_scaler() -> Any:  # Any: a GradScaler or None; its scale is reached by an untyped method
    """The GradScaler whose `step` is being executed."""
    frame = inspect.currentframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, torch.amp.GradScaler):
            return candidate
        frame = frame.f_back
    return None
