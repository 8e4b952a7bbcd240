"""Convolutions: a linear layer at every output position, its input the patch below it.

With G groups, kernel positions κ = 1…K and output positions s = 1…S of example b,

    y[b, go, s] = Σ_{i, κ} W[g][o, (i, κ)] · patch[g, b, s, (i, κ)] + bias[go],

so a convolution is G independent linear layers (places P = G) that share their weights over S positions (im2col;
Grosse & Martens 2016, arXiv 1602.01407). Strides, padding, padding modes and dilation only decide what lies in a patch:
the input is padded as the layer pads it, then windowed by views, so that the patches are copied once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from heatbath.layers.affine import Affine, AffineRule, batched, check_gradient, is_plain, trained_name
from heatbath.layers.base import Call, Rows

KINDS: tuple[type[_ConvNd], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ConvRule(AffineRule):
    """`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`: one block `[G, O/G, (I/G)·K]`, one pair of factors per group.

    Patches cost B · S · I · K numbers while their factor is being formed.
    """

    @property
    def is_bilinear(self) -> bool:
        return True

    def supports(self, module: nn.Module) -> bool:
        inner = "_conv_forward"  # a subclass may override this one and keep `forward`
        return any(is_plain(module, kind) and getattr(type(module), inner) is getattr(kind, inner) for kind in KINDS)

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        assert isinstance(module, _ConvNd)
        inputs = module.in_channels // module.groups * math.prod(module.kernel_size)
        shape = (module.groups, module.out_channels // module.groups, inputs)
        return (Affine(trained_name(module, "weight"), trained_name(module, "bias"), shape),)

    def rows(self, module: nn.Module, call: Call, grad: Tensor) -> tuple[Rows, ...]:
        assert isinstance(module, _ConvNd)
        dims = len(module.kernel_size) + 2
        x = batched(call.argument(0, "input").detach(), dims)
        grad = batched(grad, dims)
        windows = patches(_padded(module, x), module.kernel_size, module.stride, module.dilation)
        check_gradient(module, grad, (x.shape[0], module.out_channels, *windows.shape[2:dims]))
        g = channels_last(grad, module.groups)
        return tuple(Rows(gather(affine, windows, module.groups), g) for affine in self.trained(module))


def patches(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """The windows of a padded input `[B, C, *space]` as a view `[B, C, *positions, *kernel]`."""
    for dim, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap]
    return x


def gather(affine: Affine, windows: Tensor, groups: int) -> Tensor:
    """Windows `[B, C, *positions, *kernel]` as rows `[G, B, S, (C/G)·K]`, homogeneous coordinate included, in one copy."""
    batch, channels, *rest = windows.shape
    space = len(rest) // 2
    columns = channels // groups * math.prod(rest[space:])
    rows = windows.new_empty(groups, batch, math.prod(rest[:space]), affine.block.domain[1])
    if affine.weight:
        order = (1, 0, *range(3, 3 + space), 2, *range(3 + space, 3 + 2 * space))
        grouped = windows.unflatten(1, (groups, channels // groups)).permute(order)
        inner = rows[..., :columns].unflatten(-1, (channels // groups, *rest[space:]))
        inner.unflatten(2, rest[:space]).copy_(grouped)
    if affine.bias:
        rows[..., -1] = 1
    return rows


def channels_last(grad: Tensor, groups: int) -> Tensor:
    """Output gradients `[B, O, *positions]` as rows `[G, B, S, O/G]`."""
    batch, channels, *space = grad.shape
    return grad.reshape(batch, groups, channels // groups, math.prod(space)).permute(1, 0, 3, 2)


def _padded(module: _ConvNd, x: Tensor) -> Tensor:
    """The input as the layer pads it. An odd total of 'same' padding puts the larger half behind."""
    if module.padding == "same":
        totals = [gap * (size - 1) for size, gap in zip(module.kernel_size, module.dilation, strict=True)]
        amounts = [(total // 2, total - total // 2) for total in totals]
    elif module.padding == "valid":
        amounts = [(0, 0) for _ in module.kernel_size]
    else:
        amounts = [(int(amount), int(amount)) for amount in module.padding]
    if not any(before or after for before, after in amounts):
        return x
    flat = [number for pair in reversed(amounts) for number in pair]
    return F.pad(x, flat, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
