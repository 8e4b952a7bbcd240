"""K-FAC: natural gradient with a Kronecker-factored Fisher, layer by layer.

    ΔW = −lr · B⁻¹ (∂L/∂W) A⁻¹,    A = E[a aᵀ],    B = E[g gᵀ]

with a the layer's inputs (1 appended for the bias), g the gradients at its outputs, both damped (Martens & Grosse 2015, arXiv
1503.05671; convolutions: Grosse & Martens 2016, arXiv 1602.01407; other shared weights: Eschenhagen et al. 2023, arXiv
2311.00636). With a thermodynamic solver it is the system of Donatella et al. 2025, arXiv 2502.08603.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from heatbath.curvature import find_sites
from heatbath.optim.damping import ExactDamping, FactoredDamping
from heatbath.optim.natural import NaturalGradient
from heatbath.optim.policy import Policy
from heatbath.solvers import Cholesky, Eigen, Factorwise, Guarded, Solver


class KFAC(NaturalGradient):
    """Train every parameter of a model: layers with a curvature rule by K-FAC, the rest by AdamW.

    Use it in an ordinary loop: forward, `loss.backward()`, `opt.step()`, `opt.zero_grad()`. The loss is a mean over examples
    unless `policy` says otherwise. Build it before `torch.compile` or DDP wraps the model. A step costs two products per layer
    above the gradient; factors and inverses are renewed every few steps.

    Args:
        model: the model.
        groups: parameter groups with their own lr, damping, momentum, weight_decay; parameters not named get the defaults.
        lr: learning rate.
        damping: λ ≥ 0, in units of the curvature of the mean loss.
        momentum: heavy-ball momentum in [0, 1).
        weight_decay: decoupled, per unit of lr.
        solver: for the damped factors; None: `Cholesky()`. A solver that works on a machine is guarded by `Guarded`.
        policy: everything else: intervals, averaging, damping rule, trust, loss reduction, layer rules.
        generator: randomness for noisy solvers; None: torch's global one.

    Raises:
        ValueError: nothing to train, or an option out of range.
        TypeError: the model is no module.

    >>> model = nn.Linear(3, 1)
    >>> opt = KFAC(model, lr=0.1, damping=1e-3)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> opt.step()
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Mapping[str, Any]] = (),  # Any: torch's own type
        *,
        lr: float = 0.1,
        damping: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        solver: Solver[Any] | None = None,  # Any: any state
        policy: Policy | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"KFAC takes the model itself, not its parameters: expected nn.Module, got {type(model).__name__}")
        policy = Policy() if policy is None else policy
        defaults: dict[str, Any] = {"lr": lr, "damping": damping, "momentum": momentum, "weight_decay": weight_decay}
        defaults |= {"fallback_lr": policy.fallback_lr, "betas": (0.9, 0.999), "eps": 1e-8}
        prepared = _complete_groups(model, groups, defaults)
        chosen = [id(p) for group in prepared for p in group["params"]]
        sites = find_sites(model, policy.rules, policy.skip)
        sites = [site for site in sites if all(id(p) in chosen for p in site.parameters().values())]
        if not sites:
            warnings.warn("no layer of this model has a curvature rule: AdamW trains all of it", stacklevel=2)
        solver = Cholesky() if solver is None else solver
        exact = isinstance(solver, Eigen)
        super().__init__(
            model,
            sites=sites,
            groups=prepared,
            solver=_factorwise(solver),
            damping=policy.damping_rule or (ExactDamping() if exact else FactoredDamping()),
            policy=policy,
            generator=generator,
        )


def _factorwise(solver: Solver[Any]) -> Solver[Any]:  # Any: any state
    """Fit a solver for single matrices to Kronecker products; watch it unless it is a plain digital one."""
    if isinstance(solver, Eigen | Factorwise):
        return solver
    return Factorwise(solver if isinstance(solver, Cholesky | Guarded) else Guarded(solver))


def _complete_groups(
    model: nn.Module, groups: Iterable[Mapping[str, Any]], defaults: dict[str, Any]
) -> list[dict[str, Any]]:  # Any: torch's own type
    """Groups with every option set and every trainable parameter in one of them.

    Raises:
        ValueError: an option out of range, a parameter that is not the model's, or nothing to train.
    """
    complete = []
    own = {id(p) for p in model.parameters()}
    taken: set[int] = set()
    for group in groups:
        params = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
        if any(id(p) not in own for p in params):
            raise ValueError("a parameter group holds a parameter that is not one of the model's")
        taken |= {id(p) for p in params}
        complete.append({**defaults, **group, "params": params})
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    if rest:
        complete.append({**defaults, "params": rest})
    if not complete:
        raise ValueError("the model has no parameter that requires gradients: nothing to train")
    for group in complete:
        _check_options(group)
        group["fallback_scale"] = group.pop("fallback_lr") / group["lr"] if group["lr"] else 0.0
    return complete


def _check_options(group: Mapping[str, Any]) -> None:  # Any: torch's own type
    """Raise a ValueError for an option out of range."""
    for name in ("lr", "damping", "weight_decay", "fallback_lr"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must be at least 0, got {group[name]}")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
