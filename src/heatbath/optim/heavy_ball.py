"""Heavy-ball momentum (Polyak 1964): m ← μm + v, θ ← (1 − lr·wd) θ − lr·m."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def heavy_ball_step(
    parameters: Sequence[Tensor], directions: Sequence[Tensor], state: dict[Any, Any], group: dict[str, Any], finite: Tensor
) -> None:
    """One step, in place.

    Args:
        parameters: the parameters.
        directions: v of each.
        state: the optimizer's per-parameter state.
        group: options: lr, momentum, weight_decay.
        finite: 0-d bool; where false, nothing changes (directions are zeros then).
    """
    moves = list(directions)
    if group["momentum"]:
        held = [state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        one = held[0].new_ones(())
        torch._foreach_mul_(held, torch.where(finite, group["momentum"] * one, one))
        torch._foreach_add_(held, moves)
        moves = list(torch._foreach_mul(held, finite.to(held[0])))
    if group["weight_decay"]:
        torch._foreach_mul_(list(parameters), 1 - finite.to(parameters[0]) * (group["lr"] * group["weight_decay"]))
    descend(parameters, moves, group["lr"])


def average_gradients(
    gradients: Mapping[Tensor, Tensor], state: dict[Any, Any], *, momentum: float, nesterov: bool, finite: Tensor
) -> dict[Tensor, Tensor]:
    """Do m ← μm + g for each parameter, in `state[p]["momentum_buffer"]` as torch's SGD keeps it.

    Args:
        gradients: by parameter.
        state: the optimizer's per-parameter state.
        momentum: μ; where 0, nothing is kept and the gradients are returned.
        nesterov: return g + μm instead of m.
        finite: 0-d bool; where false, m stays as it is.
    """
    if not momentum or not gradients:
        return dict(gradients)
    for p, g in gradients.items():
        if "momentum_buffer" not in state[p]:
            state[p]["momentum_buffer"] = torch.zeros_like(g)
    held = [state[p]["momentum_buffer"] for p in gradients]
    new = [g.nan_to_num(0.0, 0.0, 0.0) for g in gradients.values()]
    torch._foreach_mul_(new, finite.to(new[0].dtype))
    torch._foreach_mul_(held, torch.where(finite, momentum, 1.0).to(held[0].dtype))
    torch._foreach_add_(held, new)
    ahead = torch._foreach_add(new, held, alpha=momentum) if nesterov else held
    return dict(zip(gradients, ahead, strict=True))


def descend(parameters: Sequence[Tensor], moves: Sequence[Tensor], lr: float | Tensor) -> None:
    """θ ← θ − lr·m, in place; a learning rate that is a 0-d tensor stays on its device."""
    moves = [m if m.dtype == p.dtype else m.to(p.dtype) for m, p in zip(moves, parameters, strict=True)]
    if isinstance(lr, Tensor):  # as `alpha` it would be read on the host
        torch._foreach_sub_(list(parameters), torch._foreach_mul(moves, lr))
    else:
        torch._foreach_add_(list(parameters), moves, alpha=-lr)
