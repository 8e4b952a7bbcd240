"""What is no symmetric matrix, refused in one place. Looking at values waits for the device, which inner loops must not."""

from __future__ import annotations

import torch
from torch import Tensor


def check_symmetric(matrix: Tensor, name: str = "the matrix", *, values: bool = True) -> None:
    """Refuse what is no finite symmetric real matrix.

    Args:
        matrix: meant to be `[*stack, n, n]`.
        name: what to call it in messages.
        values: also look at the values, which waits for the device.

    Raises:
        TypeError: not a tensor, or not float32 or float64.
        ValueError: not square, empty, not finite, or not symmetric.
    """
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(matrix).__name__}")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {matrix.dtype}; convert it with .float() or .double()")
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.numel() == 0:
        raise ValueError(f"{name} must be square, [*stack, n, n], got shape {tuple(matrix.shape)}")
    if not values:
        return
    bad = int((~torch.isfinite(matrix)).sum())
    if bad:
        raise ValueError(f"{name} holds {bad} entries that are NaN or inf, of {matrix.numel()}; look at what it was made from")
    size = matrix.abs().amax((-2, -1))
    skew = (matrix - matrix.mT).abs().amax((-2, -1))
    if bool((skew > torch.finfo(matrix.dtype).eps ** 0.5 * size).any()):
        worst = float((skew / size).nan_to_num().max())
        raise ValueError(f"{name} is not symmetric: |A − Aᵀ| reaches {worst:.1e} of its largest entry; use (A + Aᵀ)/2")
