"""Gradients of outputs that are views of other tensors, and may be overwritten in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor


def source_of(output: Tensor) -> Tensor:
    """Where to hang a hook on an output: on the tensor it is a view of, if that has the same numbers.

    An output that is a view (of `addmm`, in a Linear with bias and positions) leaves the graph when it is overwritten in place,
    as by `nn.ReLU(inplace=True)`, and hooks on it never fire; those on its base keep the gradient of the value before.
    """
    base = output._base
    return output if base is None or not base.requires_grad or base.numel() != output.numel() else base


@dataclass(frozen=True)
class View:
    """How to read the gradient of an output off that of its source.

    Args:
        own: size, stride and offset of the output within its source; None: they are the same tensor.
        stride: of the source.
    """

    own: tuple[torch.Size, tuple[int, ...], int] | None
    stride: tuple[int, ...]

    @staticmethod
    def of(output: Tensor, source: Tensor) -> View:
        """Note an output's place in its source; keeps neither of them."""
        if source is output:
            return View(None, ())
        offset = int(output.storage_offset() - source.storage_offset())
        return View((output.shape, output.stride(), offset), source.stride())

    @overload
    def read(self, grad: Tensor) -> Tensor: ...
    @overload
    def read(self, grad: None) -> None: ...
    def read(self, grad: Tensor | None) -> Tensor | None:
        """The gradient of the output."""
        if self.own is None or grad is None:
            return grad
        if grad.stride() != self.stride:
            grad = torch.empty_strided(grad.shape, self.stride, dtype=grad.dtype, device=grad.device).copy_(grad)
        size, stride, offset = self.own
        return grad.as_strided(size, stride, offset + grad.storage_offset())


ITSELF = View(None, ())
