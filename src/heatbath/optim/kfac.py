"""K-FAC: natural gradient with a Kronecker-factored Fisher, layer by layer.

    ΔW ∝ −lr · B⁻¹ M A⁻¹,    A = E[a aᵀ],    B = E[g gᵀ]

with M the gradient ∂L/∂W or its momentum, a the layer's inputs (1 appended for the bias), g the gradients at its outputs, both
factors damped (Martens & Grosse 2015, arXiv 1503.05671; convolutions: Grosse & Martens 2016, arXiv 1602.01407; other shared
weights: Eschenhagen et al. 2023, arXiv 2311.00636). With a thermodynamic solver it is the system of Donatella et al. 2025,
arXiv 2502.08603.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from heatbath.optim.arguments import as_solver, check_kind
from heatbath.optim.damping import Damping, ExactDamping, FactoredDamping, InputDamping, RelativeDamping
from heatbath.optim.natural import NaturalGradient
from heatbath.optim.options import complete_groups, default_options
from heatbath.optim.policy import Policy
from heatbath.optim.trust import MatchedRMS
from heatbath.solvers import Cholesky, Eigen, Factorwise, Guarded, Solver


class KFAC(NaturalGradient):
    """Train every parameter of a model: layers with a curvature rule by K-FAC, the rest by AdamW.

    Use it in an ordinary loop: forward, `loss.backward()`, `opt.step()`, `opt.zero_grad()`. The loss is a mean over examples
    unless `policy` says otherwise. Build it before `torch.compile` or DDP wraps the model, after `fully_shard`. A step costs
    two products per layer above the gradient; factors and inverses are renewed every few steps.

    The empirical Fisher is the default; sampled and exact ones need one line more, `opt.observe(outputs)` before the loss.

    Args:
        model: the model.
        groups: parameter groups with their own lr, damping, momentum, weight_decay; parameters not named get the defaults.
        lr: learning rate; as a 0-d tensor it is never read on the host. None: 0.01 for `MatchedRMS`, else 0.1.
        damping: λ ≥ 0, relative to the eigenvalues of a block for `MatchedRMS`, else in units of the curvature of the mean
            loss. None: 0.1, or 1e-3.
        momentum: in [0, 1), of the gradients for `MatchedRMS`, else of the natural gradients. None: 0.95, or 0.9.
        weight_decay: decoupled, per unit of lr.
        fallback_lr: AdamW's learning rate, for parameters without curvature; a group option, too. From the lr given
            here on, schedules of lr scale it along; where that is 0, it stays as it is. None: `Policy.fallback_lr`.
        solver: for the damped factors, or its name ("newton-schulz"); None: `Cholesky()`.
            A solver that works on a machine is guarded by `Guarded`.
        policy: everything else: intervals, averaging, damping rule, trust, loss reduction, layer rules.
        generator: randomness for noisy solvers; None: torch's global one.

    Raises:
        ValueError: nothing to train, or an option out of range.
        TypeError: the model is no module, or another argument of the wrong kind.

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
        lr: float | torch.Tensor | None = None,
        damping: float | None = None,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        fallback_lr: float | None = None,
        solver: Solver[Any] | None = None,  # Any: any state
        policy: Policy | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"KFAC takes the model itself, not its parameters: expected nn.Module, got {type(model).__name__}")
        policy = Policy() if policy is None else policy
        check_kind("policy", policy, Policy, "Policy(…); JointPolicy belongs to NGD")
        policy = policy.completed(MatchedRMS())
        if fallback_lr is not None:
            policy = replace(policy, fallback_lr=fallback_lr)
        solver = fit_solver(Cholesky() if solver is None else as_solver(solver))
        rule = damping_rule(solver, policy)
        defaults = default_options(
            lr=(0.01 if policy.scale_free else 0.1) if lr is None else lr,
            damping=(0.1 if isinstance(rule, RelativeDamping) else 1e-3) if damping is None else damping,
            momentum=(0.95 if policy.scale_free else 0.9) if momentum is None else momentum,
            weight_decay=weight_decay,
            l2=policy.l2,
        )
        super().__init__(
            model,
            groups=complete_groups(model, groups, defaults, policy.fallback),
            defaults=defaults,
            solver=solver,
            damping=rule,
            policy=policy,
            generator=generator,
        )
        shapeless = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
        if shapeless is not None:
            warnings.warn(
                f"{shapeless} has no shape yet: to treat its layer by curvature, run one batch through the model first, or "
                "call opt.refresh_layout() after it; till then AdamW trains it",
                stacklevel=2,
            )
        if not self.sites:
            warnings.warn("no layer of this model has a curvature rule: AdamW trains all of it", stacklevel=2)


def damping_rule(solver: Solver[Any], policy: Policy) -> Damping:  # Any: any state
    """The damping a policy asks for, or the one that fits.

    Raises:
        ValueError: the policy asks for what this solver cannot do.
    """
    exact = isinstance(solver, Eigen)
    if policy.corrected and not exact:
        raise ValueError("corrected eigenvalues need an eigenbasis: pass solver=Eigen()")
    if policy.damping_rule is not None:
        return policy.damping_rule
    if policy.scale_free:
        return RelativeDamping(exact)
    if exact:
        return ExactDamping()
    return InputDamping() if policy.fisher.inputs_only else FactoredDamping()


def fit_solver(solver: Solver[Any]) -> Solver[Any]:  # Any: any state
    """Fit a solver for single matrices to Kronecker products; watch it unless it is a plain digital one."""
    if isinstance(solver, Eigen | Factorwise):
        return solver
    return Factorwise(solver if isinstance(solver, Cholesky | Guarded) else Guarded(solver))
