"""Options of parameter groups: defaults, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def default_options(
    *, lr: float | torch.Tensor, damping: float, momentum: float, weight_decay: float, l2: float
) -> dict[str, Any]:  # Any: torch's own type
    """Options that groups take over; AdamW's betas are none of them, or schedules would cycle these instead of momentum."""
    return {"lr": lr, "damping": damping, "momentum": momentum, "weight_decay": weight_decay, "l2": l2}


@dataclass(frozen=True)
class AdamW:
    """AdamW's options for parameters without curvature.

    Args:
        lr: learning rate; None: that of the group.
        betas: of the moving averages.
        eps: added to the root of the second moment.
    """

    lr: float | None = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


SCALE_FREE = AdamW(lr=None, betas=(0.9, 0.99), eps=1e-22)  # squares of smaller gradients underflow in float32


def complete_group(
    group: Mapping[str, Any], defaults: Mapping[str, Any], fallback: AdamW
) -> dict[str, Any]:  # Any: torch's own type
    """A group with every option set; `fallback_at_lr` is its lr now, to which `fallback_lr` belongs.

    Raises:
        ValueError: an option out of range.
    """
    complete = {"betas": fallback.betas, "eps": fallback.eps, **defaults, **group}
    rate = complete.setdefault("fallback_lr", fallback.lr)
    if rate is not None and not rate >= 0:
        raise ValueError(f"fallback_lr must be at least 0, got {rate}")
    if "fallback_at_lr" not in complete:
        lr = complete["lr"]
        if isinstance(lr, torch.Tensor):  # which a schedule may change in place
            lr = lr.clone() if lr != 0 else 0.0
        complete["fallback_at_lr"] = lr
    for name in ("lr", "damping", "weight_decay", "l2"):
        if not complete[name] >= 0:
            raise ValueError(f"{name} must be at least 0, got {complete[name]}")
    if not 0 <= complete["momentum"] < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {complete['momentum']}")
    return complete


def fallback_rate(group: Mapping[str, Any]) -> float | torch.Tensor:
    """AdamW's learning rate now: `fallback_lr`, scaled as lr was since the group was made.

    Where lr was 0 then, it is `fallback_lr` whatever lr is; without a `fallback_lr` it is lr.
    """
    rate, at = group["fallback_lr"], group["fallback_at_lr"]
    lr: float | torch.Tensor = group["lr"]
    if rate is None:
        return lr
    return rate if not isinstance(at, torch.Tensor) and at == 0 else rate * (lr / at)


def check_generator(generator: torch.Generator | None, model: nn.Module) -> None:
    """Refuse a generator that draws on another device than a GPU's parameters lie on, where every draw would raise.

    Raises:
        ValueError: it does; the message says which generator to use.
    """
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    if generator is not None and devices and generator.device.type not in {device.type for device in devices}:
        device = min(map(str, devices))
        raise ValueError(
            f"the generator draws on {generator.device}, the parameters lie on {device}: pass torch.Generator({device!r})"
        )


def at_rest(groups: Iterable[Mapping[str, Any]], *, fresh: bool) -> bool:  # Any: torch's own type
    """Whether all learning rates are zero, as when `torch.distributed.checkpoint` makes an optimizer allocate its state.

    Args:
        groups: parameter groups.
        fresh: whether there is no state yet; a learning rate that is a tensor is read only then.
    """
    rates = [group["lr"] for group in groups]
    return all(rate == 0 for rate in rates) if fresh else not any(isinstance(r, torch.Tensor) or r != 0 for r in rates)


def own_parameters(model: nn.Module, group: Mapping[str, Any]) -> list[torch.Tensor]:  # Any: torch's own type
    """The parameters of a group, as a list.

    Raises:
        ValueError: one that is not the model's.
    """
    own = {id(p) for p in model.parameters()}
    params = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
    if any(id(p) not in own for p in params):
        raise ValueError("a parameter group holds a parameter that is not one of the model's")
    return params


def check_groups(groups: object) -> list[Mapping[str, Any]]:
    """The groups as a list.

    Raises:
        TypeError: something else stands where groups do: parameters, or a learning rate.
    """
    instead = (
        "the model says which parameters there are, and options go by name, KFAC(model, lr=…); "
        "groups are dicts, [{'params': …, 'lr': …}]"
    )
    if not isinstance(groups, Iterable) or isinstance(groups, torch.Tensor | Mapping | str):
        raise TypeError(f"groups cannot be of type {type(groups).__name__}: {instead}")
    listed = list(groups)
    for group in listed:
        if not isinstance(group, Mapping):
            raise TypeError(f"groups cannot hold a {type(group).__name__}: {instead}")
        if "params" not in group:
            raise TypeError(f"a group has the options {sorted(group)} and no 'params': {instead}")
    return listed


def complete_groups(
    model: nn.Module, groups: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any], fallback: AdamW
) -> list[dict[str, Any]]:  # Any: torch's own type
    """Groups with every option set and every trainable parameter in one of them.

    Raises:
        TypeError: groups of another kind.
        ValueError: an option out of range, a parameter that is not the model's, or nothing to train.
    """
    complete = []
    taken: set[int] = set()
    for group in check_groups(groups):
        params = own_parameters(model, group)
        taken |= {id(p) for p in params}
        complete.append(complete_group({**group, "params": params}, defaults, fallback))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    if rest:
        complete.append(complete_group({"params": rest}, defaults, fallback))
    if not complete:
        raise ValueError("the model has no parameter that requires gradients: nothing to train")
    return complete
