"""Host numbers onto a device, without waiting for it.

A copy from ordinary host memory to an accelerator may first wait for all that is queued there; one from pinned memory joins the
queue. A single number needs no copy: a fill takes it along.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Tensor | Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Host numbers as a tensor on a device, in its queue.

    Args:
        values: on the host: numbers, or a CPU tensor `[…]` of any shape.
        device: where they go.
        dtype: of the result; None: as `values` are.

    >>> upload([1.0, 2.0], torch.device("cpu"))
    tensor([1., 2.])
    """
    host = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """A number as a 0-d tensor of the dtype and device of another; a tensor is converted.

    >>> scalar(0.5, torch.ones(3, dtype=torch.float64))
    tensor(0.5000, dtype=torch.float64)
    """
    if isinstance(value, Tensor):
        return value.to(like)
    return torch.full((), value, dtype=like.dtype, device=like.device)
