"""Blocks of one shape, side by side: what the optimizer keeps for them.

Blocks that agree in shape, parameter group, dtype and device form one stack, so factors, solver states, momentum and updates
of all of them are single tensors and every operation on them is one batched call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.curvature import FactorSums, Form, Site, SquareSums
from heatbath.layers import Block
from heatbath.operators import (
    BlockDiagonal,
    Dense,
    EigenCorrected,
    Kronecker,
    empty_aligned,
    exchange,
    from_plain,
    lies_alike,
    map_tensors,
    mirrored,
    nodes_of,
    pack,
    same_structure,
    to_plain,
    unpack,
)
from heatbath.solvers import Inverse

StateDict = dict[str, Any]  # Any: plain Python and tensors


@dataclass(frozen=True, eq=False)
class Place:
    """Where one block of a site lies in a stack.

    Args:
        site: the site.
        block: index into `site.blocks`.
        index: which of the stack's blocks it is.
        start: first member of the stack; the block takes `site.blocks[block].places` of them.
    """

    site: Site
    block: int
    index: int
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
        ages: batches each block's average has seen.
        square_ages: batches each block's corrected eigenvalues have seen.
        mean: averaged factors, or None before the first.
        state: solver state, or None before the first refresh.
        boost: `[L]`, factor on the damping; raised where a refresh failed, decaying back to 1.
        corrected: eigenvalue-corrected curvature, or None where it is not wanted or not there yet.
        awake: whether it captures factors at the present step.
    """

    group: int
    places: list[Place]
    sums: FactorSums
    ages: list[int]
    square_ages: list[int]
    boost: Tensor
    mean: Kronecker | None = None
    state: Any = None  # Any: the state type of the solver
    corrected: EigenCorrected | None = None
    awake: bool = True

    @property
    def cost(self) -> float:
        """Of one refresh of all members [multiply–adds, up to a factor]."""
        return self.length * self.sums.form.cost

    @property
    def length(self) -> int:
        """L."""
        return self.sums.length

    @property
    def domain(self) -> tuple[int, int]:
        """(O, I)."""
        return self.sums.form.block.domain

    @property
    def dtype(self) -> torch.dtype:
        """Of everything held: float64 for float64 parameters, else float32."""
        return self.boost.dtype

    @property
    def names(self) -> list[str]:
        """Names of the blocks, in order."""
        return [f"{p.site.name}[{p.block}]" for p in self.places]

    def damping(self, groups: Sequence[dict[str, Any]]) -> float | Tensor:  # Any: torch's own type
        """λ by its parameter group, with the curvature of an L2 penalty."""
        group = groups[self.group]
        damping: float | Tensor = group["damping"] + group["l2"]
        return damping

    def state_dict(self) -> StateDict:
        """Everything but ages, which are host numbers; symmetric matrices as triangles.

        Where rounding left a factor unsymmetric, it is made symmetric here and in the stack itself, so that a run that was
        saved and one that goes on from there stay equal to the last bit.
        """
        _symmetrize_(self.mean)
        for inverse in nodes_of(self.state, Inverse):
            if inverse.symmetric:
                _symmetrize_(inverse.operator)
        return {
            "boost": self.boost,
            "mean": to_plain(pack(self.mean)),
            "corrected": to_plain(self.corrected),
            "state": to_plain(exchange(self.state, _pack_inverse)),
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        """From `state_dict`; tensors move to the stack's device and are copied, so that the source stays untouched.

        What was saved in another precision than the stack's (float64 of a model that is float32 now) is cast.
        """
        device, there, here = self.boost.device, state_dict["boost"].dtype, self.dtype

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, here if tensor.dtype == there else tensor.dtype, copy=True)

        self.boost = move(state_dict["boost"])
        self.mean = map_tensors(move, unpack(from_plain(state_dict["mean"])))
        self.corrected = map_tensors(move, from_plain(state_dict["corrected"]))
        self.sums.squares = None if self.corrected is None else SquareSums.zeros(self.corrected)
        self.state = map_tensors(move, unpack(from_plain(state_dict["state"])))

    def check_state_dict(self, state_dict: StateDict) -> None:
        """Refuse averages that this stack's sums cannot be added to.

        Raises:
            ValueError: factors are held in another form.
        """
        mean = from_plain(state_dict["mean"])
        for side, held in (("left", self.sums.form.left), ("right", self.sums.form.right)):
            if mean is None or held is None:
                continue
            found = map_tensors(lambda tensor: tensor[:1], getattr(mean, side))
            here = held.operator(held.zeros(1, self.dtype, torch.device("meta")))
            if not (same_structure(found, pack(here)) or same_structure(found, here)):
                which = "outputs" if side == "left" else "inputs"
                raise ValueError(
                    f"this optimizer holds the factor of the {which} of {self.names[0]} as {str(held) or 'a whole'}, the "
                    "saved state otherwise: build it with the Policy(max_dim=…, rank=…) it was saved with"
                )

    def empty(self, device: torch.device | str | None = None) -> Tensor:
        """An uninitialised `[L, O, I]` in aligned rows, on the stack's own device unless said otherwise."""
        return empty_aligned(self.length, *self.domain, dtype=self.dtype, device=device or self.boost.device)

    def settled(self, tensor: Tensor) -> Tensor:
        """A tensor `[L, O, I]` as `empty` lays it out: itself where it lies so already, else a copy."""
        model = self.empty("meta")
        return tensor if lies_alike(tensor, model) else self.empty(tensor.device).copy_(tensor)


def _symmetrize_(value: Any) -> None:  # Any: a tree
    """Make matrices symmetric in place, where rounding left them otherwise; reads the device."""
    for matrix in (*(d.matrix for d in nodes_of(value, Dense)), *(d.blocks for d in nodes_of(value, BlockDiagonal))):
        if not torch.equal(matrix, matrix.mT):
            matrix.copy_(mirrored(matrix))


def _pack_inverse(node: Any) -> Any:  # Any: a node of a tree
    """An inverse that is symmetric as a triangle."""
    return replace(node, operator=pack(node.operator)) if isinstance(node, Inverse) and node.symmetric else node


@dataclass(eq=False)
class _Draft:
    """A stack while its members are being counted."""

    block: Block
    places: list[Place] = field(default_factory=list)
    length: int = 0


def build_stacks(
    sites: Sequence[Site],
    group_of: dict[int, int],
    *,
    inputs_only: bool = False,
    max_dim: int | None = None,
    rank: int | None = None,
    parts: int = 1,
) -> list[Stack]:
    """Sort the blocks of all sites into stacks.

    Args:
        sites: the sites.
        group_of: parameter id to index of its parameter group.
        inputs_only: hold no output side.
        max_dim: the largest factor held in full.
        rank: of the sketches that larger ones are held as; None: in diagonal blocks.
        parts: stacks are divided till each costs at most its share of a refresh in so many parts, if blocks are small enough;
            at most `parts` stacks more than without it.
    """
    drafts: dict[tuple[Any, ...], _Draft] = {}
    for site in sites:
        parameters = site.parameters()
        for index, block in enumerate(site.blocks):
            first = parameters[block.parameters[0]]
            dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
            kind = (block.domain, block.diagonal_inputs, block.gradient_inputs)
            entry = drafts.setdefault((kind, group_of[id(first)], dtype, first.device), _Draft(block))
            entry.places.append(Place(site, index, len(entry.places), entry.length))
            entry.length += block.places
    forms = {
        key: Form(entry.block, key[2], key[3], inputs_only=inputs_only, max_dim=max_dim, rank=rank)
        for key, entry in drafts.items()
    }
    costs = {key: entry.length * forms[key].cost for key, entry in drafts.items()}
    stacks = []
    for key, entry in _divided(drafts, costs, parts):
        form, (_, group, dtype, device) = forms[key], key
        spans = [place.site.blocks[place.block].places for place in entry.places]
        boost = torch.ones(entry.length, dtype=dtype, device=device)
        stacks.append(Stack(group, entry.places, FactorSums(spans, form), [0] * len(spans), [0] * len(spans), boost))
    return stacks


def _divided(
    drafts: dict[tuple[Any, ...], _Draft], costs: dict[tuple[Any, ...], float], parts: int
) -> Iterator[tuple[tuple[Any, ...], _Draft]]:
    """The stacks, those that cost more than their share in `parts` cut into runs of blocks."""
    share = sum(costs.values()) / parts
    for key, whole in drafts.items():
        count = min(len(whole.places), math.ceil(costs[key] / share - 1e-9)) if parts > 1 else 1
        for part in range(count):
            cut = slice(part * len(whole.places) // count, (part + 1) * len(whole.places) // count)
            entry = _Draft(whole.block)
            for place in whole.places[cut]:
                entry.places.append(Place(place.site, place.block, len(entry.places), entry.length))
                entry.length += place.site.blocks[place.block].places
            yield key, entry


def find_places(stacks: Sequence[Stack]) -> dict[int, list[tuple[Stack, Place]]]:
    """For each site (by id), the stack and place of each of its blocks, in block order."""
    found: dict[int, list[tuple[Stack, Place]]] = {}
    for stack in stacks:
        for place in stack.places:
            found.setdefault(id(place.site), []).append((stack, place))
    for entries in found.values():
        entries.sort(key=lambda entry: entry[1].block)
    return found


def carry_over(old: Sequence[Stack], new: Sequence[Stack]) -> None:
    """Copy what was learned about blocks that are in both; solver states and eigenbases are left to the next refresh.

    Averages that are held in another form than before (`Policy.max_dim`, `rank`) start anew.
    """
    known = {(p.site.name, p.block, stack.domain): (stack, p) for stack in old for p in stack.places}
    for stack in new:
        for place in stack.places:
            found = known.get((place.site.name, place.block, stack.domain))
            if found is None:
                continue
            source, there = found
            stack.boost[place.slice] = source.boost[there.slice]
            same = (source.sums.form.left, source.sums.form.right) == (stack.sums.form.left, stack.sums.form.right)
            if source.mean is not None and source.ages[there.index] and same:
                stack.ages[place.index] = source.ages[there.index]
                stack.mean = stack.sums.collect(None)[0] if stack.mean is None else stack.mean
                _copy(stack.mean, place.slice, source.mean, there.slice)


def _copy(target: Kronecker, to: slice, source: Kronecker, members: slice) -> None:
    """Copy members of one stack of factors into another, in place."""

    def copy(a: Tensor, b: Tensor) -> Tensor:
        a[to] = b[members]
        return a

    map_tensors(copy, target, source)
