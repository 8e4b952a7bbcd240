"""AdamW for the parameters that no curvature rule treats (embeddings of positions, scales, exotic layers).

Decoupled weight decay, Loshchilov & Hutter 2019; the arithmetic is `torch.optim.adamw.adamw` in its fused form, which can leave
out a step on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from heatbath.curvature import piece
from heatbath.optim.packing import strided
from heatbath.work import Work, update


def fallback_step(parameters: Sequence[Tensor], state: dict[Any, Any], group: dict[str, Any], finite: Tensor) -> Work:
    """One AdamW step for the parameters that have a gradient, in place; returns what it took.

    Args:
        parameters: the parameters.
        state: the optimizer's per-parameter state.
        group: options: lr, fallback_scale, betas, eps, weight_decay, l2.
        finite: 0-d bool; where false, nothing changes.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    if not with_grad:
        return Work()
    gradients = [strided(p.grad) for p in with_grad if p.grad is not None]
    if group["l2"]:
        gradients = list(torch._foreach_add(gradients, with_grad, alpha=group["l2"]))
    adam_step(with_grad, gradients, state, group, finite, lr=group["lr"] * group["fallback_scale"])
    return Work.of(update(sum(p.numel() for p in with_grad), operations=16, touched=7))


def adam_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    state: dict[Any, Any],
    group: dict[str, Any],
    finite: Tensor,
    *,
    lr: float | Tensor,
) -> None:
    """AdamW's rule for given directions in place of gradients.

    Args:
        parameters: the parameters.
        gradients: one for each.
        state: the optimizer's per-parameter state.
        group: options: betas, eps, weight_decay.
        finite: 0-d bool; where false, nothing changes.
        lr: learning rate.
    """
    start_state(parameters, state)
    for p in parameters:
        state[p]["step"] = state[p]["step"].to(p.device)  # a no-op but for the first step and after loading
    beta1, beta2 = group["betas"]
    adamw(
        _real([piece(p) for p in parameters]),
        _real([piece(g) for g in gradients]),
        _real([piece(state[p]["exp_avg"]) for p in parameters]),
        _real([piece(state[p]["exp_avg_sq"]) for p in parameters]),
        [],
        [state[p]["step"] for p in parameters],
        fused=True,
        found_inf=(~finite).float(),
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _real(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same memory as real numbers, for complex tensors: each part is a parameter of its own, as in torch's AdamW."""
    return [torch.view_as_real(x) if x.is_complex() else x for x in tensors]


def start_state(parameters: Sequence[Tensor], state: dict[Any, Any]) -> None:  # Any: torch's own type
    """Averages of zero, for parameters that have none yet."""
    for p in parameters:
        if "exp_avg" not in state[p]:
            state[p].update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
