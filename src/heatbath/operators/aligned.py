"""Matrices whose rows start at cache lines.

A layer with a bias has I = 1025 inputs where one without has 1024, and a matrix written row by row then starts almost every
row in the middle of a cache line. Matrix products mind that in what they *write*: on an AVX-512 processor a product of 1024 ×
1025 by 1025 × 1025 runs at two thirds of its speed, and at full speed again once the rows of the result start at multiples of
64 bytes; how the operands lie makes no difference (`benchmarks/step.py` measures whole steps). So results, sums of outer
products, gradients and momentum lie in rows that are a little longer than they seem.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROW = 16  # numbers; 64 bytes of float32
SHORT = 64  # rows below this many numbers are left as they are: filling up would cost more than it brings


def empty_aligned(*shape: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """An uninitialised tensor whose rows start at multiples of `ROW` numbers.

    >>> empty_aligned(2, 3, 65, dtype=torch.float32, device="cpu").stride()
    (240, 80, 1)
    """
    *lead, width = shape
    stored = width if width < SHORT else -(-width // ROW) * ROW
    tensor = torch.empty(*lead, stored, dtype=dtype, device=device)
    return tensor if stored == width else tensor[..., :width]


def product(a: Tensor, b: Tensor) -> Tensor:
    """The products a b, `[*stack, M, K]` or one row `[K]` by `[*stack, K, N]`, in aligned rows where that helps."""
    width = b.shape[-1]
    followed = torch.compiler.is_compiling() or (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
    if a.ndim < 2 or width < SHORT or width % ROW == 0 or followed:  # neither autograd nor the compiler follows `out=`
        return a @ b
    stack = a.shape[:-2] if a.shape[:-2] == b.shape[:-2] else torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = empty_aligned(*stack, a.shape[-2], width, dtype=a.dtype, device=a.device)
    return torch.matmul(a, b, out=out)


def lies_alike(tensor: Tensor, model: Tensor) -> bool:
    """Whether a tensor fills memory as another of its shape does, from the start of its storage on."""
    strides = zip(tensor.shape, tensor.stride(), model.stride(), strict=True)
    return tensor.storage_offset() == 0 and all(size == 1 or here == there for size, here, there in strides)
