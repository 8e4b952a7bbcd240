"""Loss scaling: gradients that arrive multiplied by a number that is not ours.

`torch.amp.GradScaler` multiplies the loss by s so that float16 gradients do not vanish. Captured gradients g then carry s, and
output factors s². What an optimizer is told of s:

    scaler.step(opt)                    s, since the optimizer declares `_step_supports_amp_scaling`
    after scaler.unscale_(opt)          that gradients are finite, but not s (to clip them, say)
    step called by anything else        nothing (K-FAC in front of an optimizer, or inside another one)

For the last two there is `opt.scaler = scaler`. Where it is not set, the scaler is the one whose `GradScaler.step` is being
executed, found by that function's own frame among the callers.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass

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


def loss_scale(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None) -> LossScale:
    """What a scaler did to an optimizer's gradients before its `step`.

    Args:
        optimizer: the optimizer.
        scaler: the scaler, if it is known; None: the one that calls `step`, if any.
    """
    overflow, pending = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if overflow is not None and pending is not None:
        return LossScale(pending, pending, overflow)
    scaler = _calling_scaler() if scaler is None else scaler
    if scaler is None and overflow is not None:
        warnings.warn(
            "gradients were unscaled by something that is no torch.amp.GradScaler: captured curvature is taken as unscaled; "
            "say what scaled the loss by opt.scaler = scaler",
            stacklevel=3,
        )
    scale = scaler._get_scale_async() if scaler is not None and scaler.is_enabled() else None
    return LossScale(captured=scale, overflow=overflow)


def _calling_scaler() -> torch.amp.GradScaler | None:
    """The GradScaler whose `step` is being executed."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            scaler: torch.amp.GradScaler = frame.f_locals["self"]
            return scaler
        frame = frame.f_back
    return None
