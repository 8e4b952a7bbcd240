"""Blocks of one shape, side by side: what the optimizer keeps for them.

Blocks that agree in shape, parameter group, dtype and device form one stack, so factors, solver states, momentum and updates
of all of them are single tensors and every operation on them is one batched call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heatbath.curvature import FactorSums, Sharing, Site
from heatbath.operators import Kronecker


@dataclass(frozen=True, eq=False)
class Place:
    """Where one block of a site lies in a stack.

    Args:
        site: the site.
        block: index into `site.blocks`.
        start: first member of the stack; the block takes `site.blocks[block].places` of them.
    """

    site: Site
    block: int
    start: int

    @property
    def slice(self) -> slice:
        """The members of the stack."""
        return slice(self.start, self.start + self.site.blocks[self.block].places)


@dataclass(eq=False)
class Stack:
    """L blocks of shape (O, I) and everything the optimizer keeps for them.

    Args:
        group: index of the parameter group of their first parameter; damping and momentum are read from it, lr and weight decay
            from each parameter's own.
        places: which block lies where.
        sums: factors being captured.
        ages: batches each member's average has seen.
        mean: averaged factors, or None before the first.
        state: solver state, or None before the first refresh.
        momentum: `[L, O, I]`, or None before the first step.
        boost: `[L]`, factor on the damping; raised where a refresh failed, decaying back to 1.
    """

    group: int
    places: list[Place]
    sums: FactorSums
    ages: list[int]
    boost: Tensor
    mean: Kronecker | None = None
    state: Any = None  # Any: the state type of the solver
    momentum: Tensor | None = None

    @property
    def length(self) -> int:
        """L."""
        return len(self.ages)

    @property
    def names(self) -> list[str]:
        """Names of the blocks, in order."""
        return [f"{p.site.name}[{p.block}]" for p in self.places]


@dataclass(eq=False)
class _Pending:
    """A stack while its members are being counted."""

    places: list[Place] = field(default_factory=list)
    length: int = 0


def build_stacks(sites: Sequence[Site], group_of: dict[int, int]) -> list[Stack]:
    """Sort the blocks of all sites into stacks.

    Args:
        sites: the sites.
        group_of: parameter id to index of its parameter group.
    """
    pending: dict[tuple[Any, ...], _Pending] = {}
    for site in sites:
        parameters = site.parameters()
        for index, block in enumerate(site.blocks):
            first = parameters[block.parameters[0]]
            dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
            key = (block.domain, block.diagonal_inputs, group_of[id(first)], dtype, first.device)
            entry = pending.setdefault(key, _Pending())
            entry.places.append(Place(site, index, entry.length))
            entry.length += block.places
    stacks = []
    for (domain, diagonal, group, dtype, device), entry in pending.items():
        sums = FactorSums.zeros(entry.length, domain, diagonal_inputs=diagonal, dtype=dtype, device=device)
        boost = torch.ones(entry.length, dtype=dtype, device=device)
        stacks.append(Stack(group, entry.places, sums, [0] * entry.length, boost))
    return stacks


def find_places(stacks: Sequence[Stack]) -> dict[int, list[tuple[Stack, Place]]]:
    """For each site (by id), the stack and place of each of its blocks, in block order."""
    found: dict[int, list[tuple[Stack, Place]]] = {}
    for stack in stacks:
        for place in stack.places:
            found.setdefault(id(place.site), []).append((stack, place))
    for entries in found.values():
        entries.sort(key=lambda entry: entry[1].block)
    return found


def sharing_of(site: Site, sharing: Mapping[str, Sharing]) -> Sharing:
    """The sharing chosen for a site, by its name; expand unless said otherwise."""
    return sharing.get(site.name, Sharing.EXPAND)
