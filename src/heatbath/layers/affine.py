"""The map y = W a + b, which every layer with a rule is made of.

A layer's parameters enter the loss through products W a at P independent places, so a weight is a stack of matrices
W `[P, O, I]`. A bias is one more column of W and a 1 appended to a (the homogeneous coordinate): [W b] [a; 1]. Where only
one of the two is trained, the block holds only that one, with the rows that belong to it:

    trained           columns   row
    weight and bias   I + 1     [a; 1]
    weight            I         a
    bias              1         1
    neither           no block

The per-example gradient of the block is Σ_s g_s [a_s; 1]ᵀ, exactly (Martens & Grosse 2015, arXiv 1503.05671, §2.1).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from heatbath.layers.base import Block, LayerRule


@dataclass(frozen=True)
class Affine:
    """One affine map inside a module, and how its parameters are stored.

    Args:
        weight: name of the weight, None where it is absent or frozen.
        bias: name of the bias, stored `[P·O]`; None where it is absent or frozen.
        shape: (P, O, I) of the weight as a stack of matrices, without the homogeneous coordinate.
        kernel: None for a weight stored output first, `[P·O, I]` up to a reshape; K for one stored input first,
            `[P·I/K, O, K]` up to a reshape (transposed convolutions; embeddings with K = 1).
        one_hot: the inputs are one-hot vectors, so the A factor is diagonal.
        gradients: the rows' inputs are gradients of examples, as `Block.gradient_inputs` says.
    """

    weight: str | None
    bias: str | None
    shape: tuple[int, int, int]
    kernel: int | None = None
    one_hot: bool = False
    gradients: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trained parameters, the weight first."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    @property
    def block(self) -> Block:
        """The block this map makes; only where something is trained."""
        places, rows, columns = self.shape
        width = (columns if self.weight else 0) + (1 if self.bias else 0)
        return Block(self.parameters, places, (rows, width), diagonal_inputs=self.one_hot, gradient_inputs=self.gradients)

    def homogeneous(self, inputs: Tensor) -> Tensor:
        """Rows `[P, B, S, I]` with a 1 appended where there is a bias, and without a where the weight is frozen."""
        if self.bias is None:
            return inputs
        one = inputs.new_ones(()).expand(*inputs.shape[:-1], 1)
        return torch.cat((inputs, one), dim=-1) if self.weight else one

    def pack(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        """The trained parameters' tensors as one `[P, O, I]`; what `tensors` lacks counts as zeros."""
        places, rows, columns = self.shape
        parts = []
        if self.weight:
            weight = _entry(module, tensors, self.weight)
            if self.kernel is not None:
                weight = weight.reshape(places, columns // self.kernel, rows, self.kernel).transpose(1, 2)
            parts.append(weight.reshape(self.shape))
        if self.bias:
            parts.append(_entry(module, tensors, self.bias).reshape(places, rows, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def unpack(self, module: nn.Module, packed: Tensor) -> dict[str, Tensor]:
        """The inverse of `pack`."""
        places, rows, columns = self.shape
        expected = (places, *self.block.domain)
        if tuple(packed.shape) != expected:
            raise ValueError(
                f"the block of {self.parameters} in {type(module).__name__} has shape [P, O, I] = {list(expected)}, "
                f"got {list(packed.shape)}: give one tensor per block, in the order of `blocks`"
            )
        tensors = {}
        if self.weight:
            weight = packed[..., :columns]
            if self.kernel is not None:
                weight = weight.reshape(places, rows, columns // self.kernel, self.kernel).transpose(1, 2)
            tensors[self.weight] = weight.reshape(module.get_parameter(self.weight).shape)
        if self.bias:
            tensors[self.bias] = packed[..., -1].reshape(module.get_parameter(self.bias).shape)
        return tensors


class AffineRule(LayerRule):
    """A rule for layers that are affine maps: only `supports`, `maps` and `rows` are left to say."""

    @abstractmethod
    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        """The affine maps of a module, those without trained parameters included."""

    def trained(self, module: nn.Module) -> tuple[Affine, ...]:
        """The affine maps with something to train: one per block."""
        return tuple(affine for affine in self.maps(module) if affine.parameters)

    def only(self, names: Collection[str]) -> Self:
        """This rule for some parameters of a module; the others count as frozen.

        Args:
            names: of the parameters to treat, within the module.
        """
        rule = copy.copy(self)
        rule.__dict__["maps"] = partial(_maps_of, self, frozenset(names))
        return rule

    def blocks(self, module: nn.Module) -> tuple[Block, ...]:
        return tuple(affine.block for affine in self.trained(module))

    def pack(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(affine.pack(module, tensors) for affine in self.trained(module))

    def unpack(self, module: nn.Module, packed: Sequence[Tensor]) -> dict[str, Tensor]:
        affines = self.trained(module)
        if len(packed) != len(affines):
            raise ValueError(
                f"{type(module).__name__} has {len(affines)} blocks, got {len(packed)} packed tensors: "
                "give one per block, in the order of `blocks`"
            )
        tensors: dict[str, Tensor] = {}
        for affine, block in zip(affines, packed, strict=True):
            tensors.update(affine.unpack(module, block))
        return tensors


def _maps_of(rule: AffineRule, names: Set[str], module: nn.Module) -> tuple[Affine, ...]:
    """The affine maps of a module by a rule, with the parameters that are not named left out."""
    return tuple(
        replace(
            affine,
            weight=affine.weight if affine.weight in names else None,
            bias=affine.bias if affine.bias in names else None,
        )
        for affine in rule.maps(module)
    )


def trained_name(module: nn.Module, name: str) -> str | None:
    """`name` if the module has that parameter (dotted names reach into children) and trains it, else None."""
    parent, _, leaf = name.rpartition(".")
    parameter = getattr(module.get_submodule(parent), leaf, None)
    return name if parameter is not None and parameter.requires_grad else None


def is_plain(module: nn.Module, kind: type[nn.Module], names: Sequence[str] = ("weight", "bias")) -> bool:
    """Whether `module` computes exactly what `kind` does with ordinary parameters.

    Not plain: a subclass with its own `forward`; parametrized, pruned or weight-normalized parameters; complex or
    integer ones; lazy ones that have no shape yet.
    """
    if not isinstance(module, kind) or type(module).forward is not kind.forward or is_parametrized(module):
        return False
    own = dict(module.named_parameters(recurse=False))
    return own.keys() <= set(names) and all(p.is_floating_point() and not is_lazy(p) for p in own.values())


def batched(tensor: Tensor, dims: int) -> Tensor:
    """A leading batch dimension of one where `tensor` has fewer than `dims` dimensions."""
    return tensor if tensor.ndim >= dims else tensor.unsqueeze(0)


def check_gradient(module: nn.Module, grad: Tensor, shape: Sequence[int]) -> None:
    """Refuse a gradient that is not one of this call's output."""
    if tuple(grad.shape) != tuple(shape):
        raise ValueError(
            f"the gradient at the output of {type(module).__name__} should have shape {list(shape)}, got "
            f"{list(grad.shape)}: pair each call with the gradient of its own output"
        )


def _entry(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor for one parameter, dense; zeros where it is missing."""
    parameter = module.get_parameter(name)
    tensor = tensors.get(name)
    if tensor is None:
        return torch.zeros_like(parameter, requires_grad=False)
    if tensor.shape != parameter.shape:
        raise ValueError(
            f"{name} of {type(module).__name__} has shape {list(parameter.shape)}, got a tensor {list(tensor.shape)}: "
            "pack takes tensors shaped like the parameters"
        )
    return tensor.to_dense() if tensor.layout is torch.sparse_coo else tensor
