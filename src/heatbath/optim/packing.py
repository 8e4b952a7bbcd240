"""Gradients into stacks, and updates out of them, without a call per layer.

A parameter lies in its stack's tensor `[L, O, I]` as a window: a view of known size, strides and offset (a bias is the last
column). Windows are found once, by letting each layer's rule unpack an empty tensor; after that all gradients are copied in,
and all updates added out, by one call for many windows. Where a rule's packing is no view (grouped transposed
convolutions), the rule itself is asked at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
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
        site: its site.
        group: index of its parameter group.
        stack: index of the stack.
        size: of the view, the parameter's shape.
        stride: of the view.
        offset: of the view, in numbers.
    """

    parameter: nn.Parameter
    site: Site
    group: int
    stack: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The view of the stack's tensor, which must lie as `Stack.empty` lays it out."""
        return tensor.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True, eq=False)
class _Irregular:
    """A site whose packing is no view."""

    site: Site
    entries: Sequence[tuple[int, Place]]
    groups: Mapping[str, int]

    def is_trained(self) -> bool:
        """Whether the rule still speaks of the same blocks; not so once the module is frozen."""
        return self.site.rule.blocks(self.site.module) == self.site.blocks


class Packing:
    """The way between the parameters of some sites and stacks.

    Args:
        sites: the sites.
        stacks: all stacks.
        places: for each site (by id), the stack and place of each of its blocks.
        group_of: parameter id to index of its parameter group.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        stacks: Sequence[Stack],
        places: Mapping[int, Sequence[tuple[Stack, Place]]],
        group_of: Mapping[int, int],
    ) -> None:
        index = {id(stack): i for i, stack in enumerate(stacks)}
        blank = [stack.empty("meta") for stack in stacks]
        self._stacks = stacks
        self._windows: list[Window] = []
        self._irregular: list[_Irregular] = []
        for site in sites:
            entries = [(index[id(stack)], place) for stack, place in places[id(site)]]
            views = site.rule.unpack(site.module, [blank[i][place.slice] for i, place in entries])
            parameters = site.parameters()
            home = {name: i for (i, place) in entries for name in site.blocks[place.block].parameters}
            if all(views[name]._base is _base(blank[home[name]]) for name in parameters) and _once(site):
                for name, p in parameters.items():
                    view = views[name]
                    place_of = (tuple(view.shape), view.stride(), int(view.storage_offset()))
                    self._windows.append(Window(p, site, group_of[id(p)], home[name], *place_of))
            else:
                self._irregular.append(_Irregular(site, entries, {n: group_of[id(p)] for n, p in parameters.items()}))

    def gather(
        self, l2: Sequence[float], absent: Set[Site] = frozenset(), values_of: Mapping[Tensor, Tensor] | None = None
    ) -> dict[int, Tensor]:
        """Gradients of each stack that has any, `[L, O, I]`, by its index; missing ones are zeros.

        Args:
            l2: for each parameter group, the factor on parameters that is added to gradients.
            absent: sites to leave out.
            values_of: what to take in the place of a parameter's gradient; None: gradients.
        """
        active = {w.stack for w in self._windows if w.parameter.grad is not None and w.site not in absent}
        for odd in self._irregular:
            if odd.site not in absent and any(p.grad is not None for p in odd.site.parameters().values()):
                active |= {i for i, _ in odd.entries}
        packed = {i: self._stacks[i].empty() for i in sorted(active)}
        views, values, parameters = [], [], []
        for w in self._windows:
            if w.stack in packed:
                view = w.of(packed[w.stack])
                if w.parameter.grad is None or w.site in absent:
                    view.zero_()
                    continue
                views.append(view)
                values.append(whole(strided(w.parameter.grad) if values_of is None else values_of[w.parameter]))
                parameters.append(w)
        if views:
            torch._foreach_copy_(views, values)
        for odd in self._irregular:
            self._gather_irregular(odd, packed, l2, values_of, empty=odd.site in absent)
        for group, factor in enumerate(l2):
            of_group = [(v, w.parameter) for v, w in zip(views, parameters, strict=True) if w.group == group]
            if factor and of_group:
                torch._foreach_add_([v for v, _ in of_group], [whole(p).to(v.dtype) for v, p in of_group], alpha=factor)
        return packed

    def _gather_irregular(
        self,
        odd: _Irregular,
        packed: Mapping[int, Tensor],
        l2: Sequence[float],
        values_of: Mapping[Tensor, Tensor] | None,
        *,
        empty: bool,
    ) -> None:
        """Fill in one site by its rule, with zeros if it is to be empty."""
        if odd.entries[0][0] not in packed:
            return
        if not odd.is_trained():
            for i, place in odd.entries:
                packed[i][place.slice] = 0
            return
        grads = {}
        for name, p in odd.site.parameters().items():
            if p.grad is not None and not empty:
                factor = l2[odd.groups[name]]
                value = p.grad if values_of is None else values_of[p]
                grads[name] = whole(value + factor * p if factor else value)
        for (i, place), block in zip(odd.entries, odd.site.rule.pack(odd.site.module, grads), strict=True):
            packed[i][place.slice] = block.to(packed[i].dtype)

    def scatter(
        self, tensors: Mapping[int, Tensor], absent: Set[Site] = frozenset()
    ) -> dict[int, tuple[list[Tensor], list[Tensor]]]:
        """Parameters that have a gradient, and their windows of some stacks' tensors, in the stacks' dtype, by group.

        Args:
            tensors: by index of the stack, `[L, O, I]`; only read.
            absent: sites to leave out.
        """
        found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        tensors = {i: self._stacks[i].settled(tensor) for i, tensor in tensors.items()}

        def note(group: int, parameter: Tensor, value: Tensor) -> None:
            parameters, values = found.setdefault(group, ([], []))
            parameters.append(parameter)
            values.append(value)

        for w in self._windows:
            if w.stack in tensors and w.parameter.grad is not None and w.site not in absent:
                note(w.group, w.parameter, w.of(tensors[w.stack]))
        for odd in self._irregular:
            if odd.site not in absent and odd.is_trained() and all(i in tensors for i, _ in odd.entries):
                blocks = [tensors[i][place.slice] for i, place in odd.entries]
                values = odd.site.rule.unpack(odd.site.module, blocks)
                for name, p in odd.site.parameters().items():
                    if p.grad is not None:
                        note(odd.groups[name], p, values[name])
        return found


def strided(gradient: Tensor) -> Tensor:
    """A gradient that is not sparse."""
    return gradient.to_dense() if gradient.layout is torch.sparse_coo else gradient


def _base(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, or the tensor itself."""
    return tensor if tensor._base is None else tensor._base


def _once(site: Site) -> bool:
    """Whether the parameters of each block fill it, number by number."""
    parameters = site.parameters()
    sizes = [sum(parameters[name].numel() for name in block.parameters) for block in site.blocks]
    return sizes == [block.places * block.domain[0] * block.domain[1] for block in site.blocks]
