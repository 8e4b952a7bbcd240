"""Gradients into stacks, and updates out of them, without a call per layer.

A parameter lies in its stack's tensor `[L, O, I]` as a window: a view of known size, strides and offset (a bias is the last
column). Windows are found once, by letting each layer's rule unpack an empty tensor; after that all gradients are copied in,
and all updates added out, by one call for many windows. Layers whose packing is no view (some grouped transposed
convolutions) are left to AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heatbath.curvature import Site, whole
from heatbath.optim.stacks import Place, Stack


@dataclass(frozen=True, eq=False)
class Window:
    """Where a parameter lies in a stack.

    Args:
        parameter: the parameter.
        stack: index of the stack.
        size: of the view, the parameter's shape.
        stride: of the view.
        offset: of the view, in numbers.
    """

    parameter: nn.Parameter
    stack: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The view of the stack's tensor, which must lie as `Stack.empty` lays it out."""
        return tensor.as_strided(self.size, self.stride, self.offset)


class Packing:
    """The way between the parameters of some sites and stacks.

    Args:
        sites: the sites.
        stacks: all stacks.
        places: for each site (by id), the stack and place of each of its blocks.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        stacks: Sequence[Stack],
        places: Mapping[int, Sequence[tuple[Stack, Place]]],
    ) -> None:
        index = {id(stack): i for i, stack in enumerate(stacks)}
        blank = [stack.empty("meta") for stack in stacks]
        self._stacks = stacks
        self._windows: list[Window] = []
        for site in sites:
            entries = [(index[id(stack)], place) for stack, place in places[id(site)]]
            views = site.rule.unpack(site.module, [blank[i][place.slice] for i, place in entries])
            parameters = site.parameters()
            home = {name: i for (i, place) in entries for name in site.blocks[place.block].parameters}
            for name, p in parameters.items():
                view = views[name]
                place_of = (tuple(view.shape), view.stride(), int(view.storage_offset()))
                self._windows.append(Window(p, home[name], *place_of))

    def gather(self, values: Mapping[Tensor, Tensor]) -> dict[int, Tensor]:
        """What is given of parameters, as `[L, O, I]` by index of the stack; zeros where a stack has others besides.

        Args:
            values: by parameter, laid out as the parameter.
        """
        active = sorted({w.stack for w in self._windows if w.parameter in values})
        packed = {i: self._stacks[i].empty() for i in active}
        views, sources = [], []
        for w in self._windows:
            if w.parameter in values:
                views.append(w.of(packed[w.stack]))
                sources.append(whole(values[w.parameter]))
            elif w.stack in packed:
                w.of(packed[w.stack]).zero_()
        if views:
            torch._foreach_copy_(views, sources)
        return packed

    def scatter(self, tensors: Mapping[int, Tensor], parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
        """Windows of stacks' tensors by parameter, in the stacks' dtype.

        Args:
            tensors: by index of the stack, `[L, O, I]`; only read.
            parameters: those wanted.
        """
        wanted = set(parameters)
        tensors = {i: self._stacks[i].settled(tensor) for i, tensor in tensors.items()}
        return {w.parameter: w.of(tensors[w.stack]) for w in self._windows if w.stack in tensors and w.parameter in wanted}


def strided(gradient: Tensor) -> Tensor:
    """A gradient that is not sparse."""
    return gradient.to_dense() if gradient.layout is torch.sparse_coo else gradient


def packs_as_views(site: Site) -> bool:
    """Whether each parameter of a site is a view of its block, and the parameters of a block fill it, number by number."""
    blank = [torch.empty(block.places, *block.domain, device="meta") for block in site.blocks]
    views, parameters = site.rule.unpack(site.module, blank), site.parameters()
    if any(views[name]._base is not base for base, block in zip(blank, site.blocks, strict=True) for name in block.parameters):
        return False
    sizes = [sum(parameters[name].numel() for name in block.parameters) for block in site.blocks]
    return sizes == [block.places * block.domain[0] * block.domain[1] for block in site.blocks]
