"""A natural-gradient optimizer's own state as tensors and plain Python, and back.

`torch.optim.Optimizer.load_state_dict` casts floating state to the parameters' dtype, which would turn float32 factors of bf16
weights into bf16; so curvature travels beside it, in a form that `torch.load(weights_only=True)` reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from heatbath.operators import from_plain, map_tensors, to_plain

if TYPE_CHECKING:
    from heatbath.optim.natural import NaturalGradient
    from heatbath.optim.stacks import Stack


def save(optimizer: NaturalGradient) -> dict[str, Any]:  # Any: plain Python and tensors
    """Counters, stacks, tally and random state."""
    generator = optimizer.generator
    return {
        "layout": layout(optimizer),
        "steps": optimizer.steps,
        "last_factors": optimizer._last_factors,
        "last_refresh": optimizer._last_refresh,
        "stacks": [_save_stack(stack) for stack in optimizer.stacks],
        "tally": optimizer._tally.to_plain(),
        "generator": None if generator is None else generator.get_state(),
    }


def restore(optimizer: NaturalGradient, plain: dict[str, Any]) -> None:  # Any: plain Python and tensors
    """Put a saved state into an optimizer of the same layout."""
    optimizer.steps = plain["steps"]
    optimizer._last_factors, optimizer._last_refresh = plain["last_factors"], plain["last_refresh"]
    for stack, saved in zip(optimizer.stacks, plain["stacks"], strict=True):
        _restore_stack(stack, saved)
    optimizer._tally.load_plain(plain["tally"])
    if optimizer.generator is not None and plain["generator"] is not None:
        optimizer.generator.set_state(plain["generator"].cpu())
    optimizer.capture.enabled = optimizer.policy.factors.due(optimizer.steps, optimizer._last_factors)


def layout(optimizer: NaturalGradient) -> list[dict[str, Any]]:  # Any: plain Python
    """Which block of which shape lies where."""
    return [
        {"blocks": stack.names, "domain": list(stack.places[0].site.blocks[stack.places[0].block].domain)}
        for stack in optimizer.stacks
    ]


def check_layout(optimizer: NaturalGradient, plain: dict[str, Any]) -> None:  # Any: plain Python
    """Refuse a state of another model.

    Raises:
        ValueError: blocks differ; the message names them.
    """
    here = {name: tuple(row["domain"]) for row in layout(optimizer) for name in row["blocks"]}
    there = {name: tuple(row["domain"]) for row in plain["layout"] for name in row["blocks"]}
    if layout(optimizer) == plain["layout"]:
        return
    differing = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
    raise ValueError(
        "this state_dict is of a model with other layers: "
        + "; ".join(f"{n}: {there.get(n, 'absent')} saved, {here.get(n, 'absent')} here" for n in differing[:5])
        + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        + ("the same layers in other parameter groups or another order" if not differing else "")
    )


def _save_stack(stack: Stack) -> dict[str, Any]:  # Any: plain Python and tensors
    """One stack."""
    return {
        "ages": list(stack.ages),
        "boost": stack.boost,
        "mean": to_plain(stack.mean),
        "state": to_plain(stack.state),
        "momentum": stack.momentum,
    }


def _restore_stack(stack: Stack, saved: dict[str, Any]) -> None:  # Any: plain Python and tensors
    """One stack; tensors move to the device the stack lives on and are copied, so the source stays untouched."""
    device = stack.boost.device

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, copy=True)

    stack.ages = list(saved["ages"])
    stack.boost = move(saved["boost"])
    stack.mean = map_tensors(move, from_plain(saved["mean"]))
    stack.state = map_tensors(move, from_plain(saved["state"]))
    stack.momentum = None if saved["momentum"] is None else move(saved["momentum"])
