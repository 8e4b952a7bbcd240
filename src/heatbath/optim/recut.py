"""A saved state whose stacks were cut otherwise, as `Policy(stagger=True)` does, put together as another optimizer has them.

Staggering cuts stacks into runs of blocks, so two layouts of one model differ in where the cuts are and in nothing else. All
tensors of a stack lead with its members: those of each block are taken from where they were and joined anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import from_plain, map_tensors, pack, same_structure, to_plain, unpack
from heatbath.optim.stacks import Stack

Row = dict[str, Any]  # Any: plain Python, of one stack: names of its blocks, their shape, its parameter group


def same_blocks(here: Sequence[Row], saved: Sequence[Row]) -> bool:
    """Whether two layouts have the same blocks in the same order and parameter groups, wherever stacks are cut.

    An old state does not know its groups: there the cuts must agree, too.
    """
    if not all("group" in row for row in saved):
        return [(row["blocks"], row["domain"]) for row in here] == [(row["blocks"], row["domain"]) for row in saved]
    blocks = [[(name, row["domain"], row["group"]) for row in layout for name in row["blocks"]] for layout in (here, saved)]
    return blocks[0] == blocks[1]


def is_cut_alike(here: Sequence[Row], saved: Sequence[Row]) -> bool:
    """Whether stacks are cut at the same blocks."""
    return [row["blocks"] for row in here] == [row["blocks"] for row in saved]


def check_blocks(here: Sequence[Row], saved: Sequence[Row]) -> None:
    """Refuse the layout of a model with other layers.

    Raises:
        ValueError: blocks differ; the message names them.
    """
    if same_blocks(here, saved):
        return
    own, other = ({name: tuple(row["domain"]) for row in rows for name in row["blocks"]} for rows in (here, saved))
    differing = sorted(n for n in own.keys() | other.keys() if own.get(n) != other.get(n))
    raise ValueError(
        "this state_dict is of a model with other layers: "
        + "; ".join(f"{n}: {other.get(n, 'absent')} saved, {own.get(n, 'absent')} here" for n in differing[:5])
        + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        + ("" if differing else "the same layers in other parameter groups or another order")
    )


@dataclass(frozen=True)
class _Source:
    """Where a block lies in a saved state."""

    stack: int
    block: int
    members: slice


def recut(plain: dict[str, Any], stacks: Sequence[Stack]) -> dict[str, Any]:  # Any: plain Python and tensors
    """Cut the stacks of a saved state as `stacks` are.

    Args:
        plain: a saved state of the same blocks in the same order.
        stacks: of the optimizer that is to take it over.

    Raises:
        ValueError: stacks are to be joined of which one has curvature already and another has none yet, or whose solver states
            are of different kinds.
    """
    past = json.loads(plain["past"])
    sources = _sources(past["layout"], stacks)

    def per_block(values: Sequence[Sequence[int]]) -> list[list[int]]:
        return [[values[s.stack][s.block] for s in one] for one in sources]

    def oldest(values: list[int | None] | int | None) -> list[int | None]:
        each: list[int | None] = values if isinstance(values, list) else [values for _ in past["layout"]]
        return [min((v for v in (each[s.stack] for s in one) if v is not None), default=None) for one in sources]

    past |= {name: per_block(past[name]) for name in ("ages", "square_ages")}
    past |= {name: oldest(past[name]) for name in ("last_factors", "last_refresh")}
    return {**plain, "past": json.dumps(past), "stacks": [_join(plain["stacks"], one) for one in sources]}


def _sources(layout: Sequence[Row], stacks: Sequence[Stack]) -> list[list[_Source]]:
    """For each stack, where its blocks are in the saved state."""
    places = {name: p.slice.stop - p.start for stack in stacks for name, p in zip(stack.names, stack.places, strict=True)}
    found: dict[str, _Source] = {}
    for index, row in enumerate(layout):
        start = 0
        for block, name in enumerate(row["blocks"]):
            found[name] = _Source(index, block, slice(start, start + places[name]))
            start += places[name]
    return [[found[name] for name in stack.names] for stack in stacks]


def _join(saved: Sequence[dict[str, Any]], sources: Sequence[_Source]) -> dict[str, Any]:  # Any: plain Python and tensors
    """One stack from members of others."""
    return {
        "boost": _take(sources, lambda i: saved[i]["boost"]),
        "momentum": _take(sources, lambda i: saved[i].get("momentum")),
        "mean": to_plain(pack(_take(sources, lambda i: unpack(from_plain(saved[i]["mean"]))))),
        "corrected": to_plain(_take(sources, lambda i: from_plain(saved[i]["corrected"]))),
        "state": to_plain(_take(sources, lambda i: unpack(from_plain(saved[i]["state"])))),
    }


def _take(sources: Sequence[_Source], tree: Callable[[int], Any]) -> Any:  # Any: a tree of tensors, or None
    """The members of all sources, joined; None where there are none."""
    trees = {index: tree(index) for index in dict.fromkeys(source.stack for source in sources)}
    empty = [value is None for value in trees.values()]
    if all(empty):
        return None
    if any(empty):
        raise ValueError(
            "this state_dict cuts stacks as another Policy(stagger=…) does, and some of them have no curvature yet: load it "
            "with the policy it was saved with, or save it after all layers have been trained"
        )

    first = [map_tensors(lambda tensor: tensor[:1], value) for value in trees.values()]
    if not all(same_structure(first[0], other) for other in first[1:]):
        raise ValueError(
            "this state_dict cuts stacks as another Policy(stagger=…) does, and their solver states differ in kind, as where "
            "machines are emulated by different laws: load it with the policy it was saved with"
        )

    def members(source: _Source) -> Any:  # Any: as above
        return map_tensors(lambda tensor: tensor[source.members], trees[source.stack])

    def join(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    return map_tensors(join, *(members(source) for source in sources))
