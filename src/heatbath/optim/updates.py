"""Momentum, and what moves parameters: heavy ball (Polyak 1964) and AdamW (Loshchilov & Hutter 2019).

    m ← μm + v,    θ ← (1 − lr·wd) θ − lr·m

Momentum lies in `state[p]["momentum_buffer"]`, as torch's SGD keeps it. AdamW trains the parameters that no layer rule treats
(embeddings of positions, scales, exotic layers); its arithmetic is `torch.optim.adamw.adamw` in its fused form, which can leave
out a step on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from heatbath.curvature import piece, share
from heatbath.operators import scalar
from heatbath.optim.options import fallback_rate
from heatbath.optim.packing import strided
from heatbath.work import Work, update


def apply_momentum(
    values: Mapping[Tensor, Tensor],
    state: dict[Any, Any],  # Any: torch's own type
    momentum: float | Tensor,
    finite: Tensor,
    *,
    nesterov: bool = False,
) -> dict[Tensor, Tensor]:
    """Do m ← μm + v for each parameter.

    Args:
        values: v by parameter, laid out as the parameter.
        state: the optimizer's per-parameter state.
        momentum: μ; where it is the number 0, nothing is kept.
        finite: 0-d bool; where false, m stays as it is and zeros are returned.
        nesterov: return v + μm instead of m.

    Returns:
        m by parameter, never the buffer itself.
    """
    if not values:
        return {}
    new = [v.nan_to_num(0.0, 0.0, 0.0) for v in values.values()]
    torch._foreach_mul_(new, finite.to(new[0].dtype))
    if isinstance(momentum, Tensor) or momentum:
        for p in values:
            if "momentum_buffer" not in state[p]:
                state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [state[p]["momentum_buffer"] for p in values]
        mu = scalar(momentum, new[0])
        torch._foreach_mul_(buffers, torch.where(finite, mu, torch.ones_like(mu)))
        torch._foreach_add_(buffers, new)
        ahead = torch._foreach_add(new, torch._foreach_mul(buffers, mu)) if nesterov else buffers
        new = list(torch._foreach_mul(ahead, finite.to(new[0].dtype)))
    return dict(zip(values, new, strict=True))


def like_parameters(values: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Values that every process has in full, laid out as their parameters are."""
    return {p: share(v, p) for p, v in values.items()}


def apply_update(moves: Mapping[Tensor, Tensor], group: Mapping[str, Any], finite: Tensor) -> Work:  # Any: torch's own type
    """Decoupled weight decay, then θ ← θ − lr·m, in place; returns what that took, momentum included.

    Args:
        moves: m by parameter, laid out as the parameter.
        group: their parameter group.
        finite: 0-d bool; where false, m is zero and nothing decays.
    """
    if not moves:
        return Work()
    parameters, lr = [piece(p) for p in moves], group["lr"]
    values = [piece(m).to(p.dtype) for m, p in zip(moves.values(), parameters, strict=True)]
    if group["weight_decay"]:
        wide = torch.promote_types(parameters[0].dtype, torch.float32)
        torch._foreach_mul_(parameters, 1 - finite.to(wide) * (lr * group["weight_decay"]))
    if isinstance(lr, Tensor):  # as `alpha` it would be read on the host
        torch._foreach_sub_(parameters, torch._foreach_mul(values, lr))
    else:
        torch._foreach_add_(parameters, values, alpha=-lr)
    return Work.of(update(sum(p.numel() for p in parameters), operations=5, touched=5))


def fallback_step(parameters: Sequence[Tensor], state: dict[Any, Any], group: dict[str, Any], finite: Tensor) -> Work:
    """One AdamW step for the parameters that have a gradient, in place; returns what it took.

    Args:
        parameters: the parameters.
        state: the optimizer's per-parameter state.
        group: options: lr, fallback_lr, fallback_at_lr, betas, eps, weight_decay, l2.
        finite: 0-d bool; where false, nothing changes.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    if not with_grad:
        return Work()
    gradients = [strided(p.grad) for p in with_grad if p.grad is not None]
    if group["l2"]:
        gradients = list(torch._foreach_add(gradients, with_grad, alpha=group["l2"]))
    adam_step(with_grad, gradients, state, group, finite, lr=fallback_rate(group))
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
