"""A natural-gradient optimizer's own state as tensors and plain Python, and back.

`torch.optim.Optimizer.load_state_dict` casts floating state to the parameters' dtype, which would turn float32 factors of bf16
weights into bf16; so curvature travels beside it, in a form that `torch.load(weights_only=True)` reads.

`torch.distributed.checkpoint` loads into the nested dicts and lists of a fresh optimizer, key by key. So everything whose form
depends on the past (counters, tallies) is one text in JSON, and the rest has the same keys from the first step on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heatbath.curvature import SquareSums, share
from heatbath.operators import (
    BlockDiagonal,
    Dense,
    exchange,
    from_plain,
    map_tensors,
    mirrored,
    nodes_of,
    pack,
    same_structure,
    to_plain,
    unpack,
)
from heatbath.optim.corrected import correct
from heatbath.optim.recut import recut, same_blocks
from heatbath.optim.updates import start_state
from heatbath.solvers import Inverse, Solver

if TYPE_CHECKING:
    from heatbath.optim.natural import NaturalGradient
    from heatbath.optim.stacks import Stack

OWN = (  # attributes that make up an optimizer, beside torch's own; all others are found from these
    *("model", "solver", "damping", "_policy", "generator", "layout", "capture"),
    *("steps", "_timetable", "_tally", "_warned", "_built"),
)


def save(optimizer: NaturalGradient) -> dict[str, Any]:  # Any: plain Python and tensors
    """Counters, stacks, tally and random state."""
    generator = optimizer.generator
    past = {
        "layout": layout(optimizer),
        "solver": recipe(optimizer.solver),
        "steps": optimizer.steps,
        **optimizer._timetable.to_plain(),
        "ready": sorted(optimizer.layout.ready),
        "ages": [stack.ages for stack in optimizer.stacks],
        "square_ages": [stack.square_ages for stack in optimizer.stacks],
        "tally": texts(optimizer._tally.to_plain()),
    }
    return {
        "past": json.dumps(past),
        "stacks": [_save_stack(stack) for stack in optimizer.stacks],
        "generator": None if generator is None else generator.get_state(),
    }


def restore(optimizer: NaturalGradient, plain: dict[str, Any]) -> None:  # Any: plain Python and tensors
    """Put a saved state into an optimizer of the same blocks; where stacks were cut otherwise, they are cut anew."""
    if _cuts(json.loads(plain["past"])["layout"]) != _cuts(layout(optimizer)):
        plain = recut(plain, optimizer.stacks)
    past = json.loads(plain["past"])
    optimizer.steps = past["steps"]
    optimizer._timetable.load_plain(past)
    optimizer.layout.ready = set(past["ready"])
    _restore_momentum(optimizer, plain["stacks"])
    ages = zip(past["ages"], past["square_ages"], strict=True)
    for stack, saved, (age, square_age) in zip(optimizer.stacks, plain["stacks"], ages, strict=True):
        _restore_stack(stack, saved)
        stack.ages, stack.square_ages = age, square_age
    optimizer._tally.load_plain(tensors(past["tally"]))
    if optimizer.generator is not None and plain["generator"] is not None:
        optimizer.generator.set_state(plain["generator"].cpu())
    optimizer._forget()
    optimizer.layout.settle()


def _restore_momentum(optimizer: NaturalGradient, stacks: Sequence[dict[str, Any]]) -> None:  # Any: plain Python and tensors
    """Momentum of version 0.1, which kept it by stack; later ones keep it in torch's own state."""
    old = {
        i: optimizer.stacks[i].empty().copy_(saved["momentum"])
        for i, saved in enumerate(stacks)
        if saved.get("momentum") is not None
    }
    parameters = [p for site in optimizer.sites for p in site.parameters().values()]
    for p, value in optimizer.layout.packing.scatter(old, parameters).items():
        optimizer.state[p]["momentum_buffer"] = share(value.to(p.dtype, copy=True), p)


def enter(optimizer: NaturalGradient) -> None:
    """An entry of state for each parameter, as `torch.distributed.checkpoint` expects."""
    if not optimizer._entered:
        for p in (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad):
            optimizer.state[p]  # a defaultdict
        optimizer._entered = True


def rehearse(optimizer: NaturalGradient) -> None:
    """Allocate all state without counting anything as done.

    `torch.distributed.checkpoint` loads into the state that an optimizer already has, and to make it have some it calls
    `step()` once with gradients of zero and a learning rate of zero. Solver states are then of a multiple of the identity.
    """
    generator = optimizer.generator
    before = None if generator is None else generator.get_state()
    with torch.random.fork_rng({stack.boost.device.index for stack in optimizer.stacks if stack.boost.is_cuda}):
        for stack in optimizer.stacks:
            stack.mean = stack.sums.collect(None)[0]
            curvature = correct(stack, rotate=True)[0] if optimizer.policy.corrected else stack.mean
            operator = optimizer.damping(curvature, torch.ones_like(stack.boost))
            stack.state, _ = optimizer.solver.prepare(operator, generator=generator)
    if generator is not None and before is not None:
        generator.set_state(before)
    for params in optimizer.layout.fallback:
        start_state(params, optimizer.state)
    treated = {id(p) for site in optimizer.sites for p in site.parameters().values()}
    for group in optimizer.param_groups:
        if group["momentum"] or optimizer.policy.quadratic is not None:
            for p in (p for p in group["params"] if id(p) in treated):
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    enter(optimizer)


def layout(optimizer: NaturalGradient) -> list[dict[str, Any]]:  # Any: plain Python
    """Which block of which shape lies where."""
    return [{"blocks": stack.names, "domain": list(stack.domain), "group": stack.group} for stack in optimizer.stacks]


def _cuts(rows: list[dict[str, Any]]) -> list[list[str]]:  # Any: plain Python
    return [row["blocks"] for row in rows]


def recipe(solver: Solver[Any]) -> str:  # Any: any state
    """Which solvers are inside which, whatever their options: what decides the form of a state."""
    parts: list[Any] = [getattr(solver, f.name) for f in fields(solver)] if is_dataclass(solver) else []  # Any: options
    return f"{type(solver).__name__}({', '.join(recipe(part) for part in parts if isinstance(part, Solver))})"


def check_layout(optimizer: NaturalGradient, plain: dict[str, Any]) -> None:  # Any: plain Python
    """Refuse a state of another solver or model, or with factors that are held otherwise.

    Raises:
        ValueError: solvers, blocks or forms differ; the message names them.
    """
    past = json.loads(plain["past"])
    if past["solver"] != recipe(optimizer.solver):
        raise ValueError(
            f"this state_dict was saved with the solver {past['solver']}, this optimizer has {recipe(optimizer.solver)}: "
            "build it with the solver it was saved with"
        )
    here = {name: tuple(row["domain"]) for row in layout(optimizer) for name in row["blocks"]}
    there = {name: tuple(row["domain"]) for row in past["layout"] for name in row["blocks"]}
    if same_blocks(layout(optimizer), past["layout"]):
        if _cuts(past["layout"]) != _cuts(layout(optimizer)):
            plain = recut(plain, optimizer.stacks)  # raises where it cannot be done
        for stack, saved in zip(optimizer.stacks, plain["stacks"], strict=True):
            _check_form(stack, from_plain(saved["mean"]))
        return
    differing = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
    raise ValueError(
        "this state_dict is of a model with other layers: "
        + "; ".join(f"{n}: {there.get(n, 'absent')} saved, {here.get(n, 'absent')} here" for n in differing[:5])
        + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        + ("" if differing else "the same layers in other parameter groups or another order")
    )


def _check_form(stack: Stack, mean: Any) -> None:  # Any: None, or factors with triangles in the place of matrices
    """Refuse averages that this optimizer's sums cannot be added to."""
    for side, held in (("left", stack.sums.form.left), ("right", stack.sums.form.right)):
        if mean is None or held is None:
            continue
        found = map_tensors(lambda tensor: tensor[:1], getattr(mean, side))
        here = held.operator(held.zeros(1, stack.dtype, torch.device("meta")))
        if not (same_structure(found, pack(here)) or same_structure(found, here)):
            which = "outputs" if side == "left" else "inputs"
            raise ValueError(
                f"this optimizer holds the factor of the {which} of {stack.names[0]} as {str(held) or 'a whole'}, the saved "
                "state otherwise: build it with the Policy(max_dim=…, rank=…) it was saved with"
            )


def texts(tally: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """A tally with its device-side sums as numbers; reads the device."""
    sums = {name: [str(t.dtype).removeprefix("torch."), t.tolist()] for name, t in tally["device"].items()}
    return {**tally, "device": sums}


def tensors(tally: dict[str, Any]) -> dict[str, Any]:  # Any: as above
    """The inverse of `texts`."""
    sums = {name: torch.tensor(values, dtype=getattr(torch, kind)) for name, (kind, values) in tally["device"].items()}
    return {**tally, "device": sums}


def _save_stack(stack: Stack) -> dict[str, Any]:  # Any: plain Python and tensors
    """One stack; symmetric matrices as triangles.

    Where rounding left a factor unsymmetric, it is made symmetric here and in the stack itself, so that a run that was saved
    and one that goes on from there stay equal to the last bit.
    """
    _settle(stack.mean)
    for inverse in nodes_of(stack.state, Inverse):
        if inverse.symmetric:
            _settle(inverse.operator)
    return {
        "boost": stack.boost,
        "mean": to_plain(pack(stack.mean)),
        "corrected": to_plain(stack.corrected),
        "state": to_plain(exchange(stack.state, _pack_inverse)),
    }


def _settle(value: Any) -> None:  # Any: a tree
    """Make matrices symmetric in place, where rounding left them otherwise; reads the device."""
    for matrix in (*(d.matrix for d in nodes_of(value, Dense)), *(d.blocks for d in nodes_of(value, BlockDiagonal))):
        if not torch.equal(matrix, matrix.mT):
            matrix.copy_(mirrored(matrix))


def _pack_inverse(node: Any) -> Any:  # Any: a node of a tree
    """An inverse that is symmetric as a triangle."""
    return replace(node, operator=pack(node.operator)) if isinstance(node, Inverse) and node.symmetric else node


def _restore_stack(stack: Stack, saved: dict[str, Any]) -> None:  # Any: plain Python and tensors
    """One stack; tensors move to the device the stack lives on and are copied, so the source stays untouched."""
    device = stack.boost.device

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, copy=True)

    stack.boost = move(saved["boost"])
    stack.mean = map_tensors(move, unpack(from_plain(saved["mean"])))
    stack.corrected = map_tensors(move, from_plain(saved["corrected"]))
    stack.sums.squares = None if stack.corrected is None else SquareSums.zeros(stack.corrected)
    stack.state = map_tensors(move, unpack(from_plain(saved["state"])))
