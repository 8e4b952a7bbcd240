"""Transposed convolutions: a linear layer at every output position, its input the values that reach it.

With stride z, dilation d and padding p, output position t gathers y[t] = Σ_κ W[κ] x̃[t + p − d κ], where x̃ is the input
with z − 1 zeros between neighbours. That is an ordinary convolution of x̃ with the kernel turned round; turning x̃ and the
output gradient round instead leaves the kernel, and so the packing of the weight, in order (Dumoulin & Visin 2016,
arXiv 1603.07285, §4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from heatbath.layers.affine import Affine, AffineRule, batched, check_gradient, is_plain, trained_name
from heatbath.layers.base import Call, Rows
from heatbath.layers.conv import channels_last, gather, patches

KINDS: tuple[type[_ConvTransposeNd], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class ConvTransposeRule(AffineRule):
    """`nn.ConvTranspose1d`, `2d` and `3d`: one block `[G, O/G, (I/G)·K]`; a patch is mostly zeros where the stride is large."""

    @property
    def is_bilinear(self) -> bool:
        return True

    def supports(self, module: nn.Module) -> bool:
        return any(is_plain(module, kind) for kind in KINDS)

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        assert isinstance(module, _ConvTransposeNd)
        kernel = math.prod(module.kernel_size)
        shape = (module.groups, module.out_channels // module.groups, module.in_channels // module.groups * kernel)
        return (Affine(trained_name(module, "weight"), trained_name(module, "bias"), shape, kernel=kernel),)

    def rows(self, module: nn.Module, call: Call, grad: Tensor) -> tuple[Rows, ...]:
        assert isinstance(module, _ConvTransposeNd)
        dims = len(module.kernel_size) + 2
        x = batched(call.argument(0, "input").detach(), dims)
        grad = batched(grad, dims)
        space = tuple(_output_length(module, i, x.shape[i + 2], grad.shape[i + 2]) for i in range(dims - 2))
        check_gradient(module, grad, (x.shape[0], module.out_channels, *space))
        turned = _spread(module, x, space).flip(tuple(range(2, dims)))
        windows = patches(turned, module.kernel_size, (1,) * len(space), module.dilation)
        g = channels_last(grad.flip(tuple(range(2, dims))), module.groups)
        return tuple(Rows(gather(affine, windows, module.groups), g) for affine in self.trained(module))


def _output_length(module: _ConvTransposeNd, axis: int, length: int, seen: int) -> int:
    """The output length nearest to the one seen; what an output size may add is less than the stride or the dilation."""
    step, gap = module.stride[axis], module.dilation[axis]
    base = (length - 1) * step - 2 * int(module.padding[axis]) + gap * (module.kernel_size[axis] - 1) + 1
    return min(max(seen, base), base + max(step, gap) - 1)


def _spread(module: _ConvTransposeNd, x: Tensor, space: Sequence[int]) -> Tensor:
    """x̃, padded or cropped so that its windows are the output positions `space`."""
    lengths = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], module.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *lengths)
    every: list[slice] = [slice(None, None, step) for step in module.stride]
    spread[(slice(None), slice(None), *every)] = x
    flat: list[int] = []
    for i in reversed(range(len(space))):
        reach = module.dilation[i] * (module.kernel_size[i] - 1)
        before = reach - int(module.padding[i])
        flat += [before, space[i] + reach - lengths[i] - before]
    return F.pad(spread, flat)
