"""Natural gradient descent with the exact Fisher matrix of the whole network.

    v = (G + λI)⁻¹ g,    θ ← θ − lr·v,    G = (1/D) Jᵀ H J,

J the Jacobian of the outputs, H the Hessian of the loss at them, g the gradient (Amari 1998; G equals the Fisher matrix for the
likelihoods in `heatbath.curvature`: Martens 2020, arXiv 1412.1193). The n × n matrix G is never formed: `SmallSide` solves in
the m = examples × outputs dimensions of the batch by Woodbury's identity, `ConjugateGradient` needs products alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from heatbath.curvature import Fisher
from heatbath.optim.arguments import as_solver, check_kind
from heatbath.optim.joint import JointNaturalGradient
from heatbath.optim.joint_policy import JointPolicy
from heatbath.optim.options import AdamW, complete_groups, default_options
from heatbath.solvers import ConjugateGradient, Full, SmallSide, Solver


class NGD(JointNaturalGradient):
    """Exact natural gradient of all trainable parameters.

    A step costs, beside the gradient, m·n numbers and 2m²n operations (`SmallSide`), or two to three passes through the model
    for each of the solver's steps and no memory (`ConjugateGradient`). For layerwise curvature at the price of a few products
    use `KFAC`.

    Args:
        model: the model.
        groups: parameter groups with their own lr, momentum, weight_decay; parameters not named get the defaults.
        fisher: whose root: `ExactFisher(likelihood)`, `SampledFisher(likelihood)` (fewer rows), or `EmpiricalFisher()`.
        solver: None: `SmallSide(Cholesky())`. A solver of dense matrices is wrapped into `SmallSide`; give `Full(solver)` for
            the n × n matrix, `ConjugateGradient()` for products alone.
        lr: learning rate; 1 is a full Gauss–Newton step.
        damping: λ ≥ 0, in units of the curvature of the mean loss; must be positive where m < n.
        momentum: heavy-ball momentum in [0, 1).
        weight_decay: decoupled, per unit of lr.
        policy: trust, adaptive damping, loss reduction.
        generator: randomness of sampled Fishers and noisy solvers; None: torch's global one.

    Raises:
        ValueError: nothing to train, or an option out of range.
        TypeError: the model is no module, or the Fisher has no vectors at the outputs.

    >>> from heatbath.curvature import ExactFisher, Gaussian
    >>> model = nn.Linear(3, 1)
    >>> opt = NGD(model, fisher=ExactFisher(Gaussian()), lr=1.0, damping=1e-6)
    >>> opt.observe(model(torch.ones(4, 3))).square().mean().backward()
    >>> opt.step()
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Mapping[str, Any]] = (),  # Any: torch's own type
        *,
        fisher: Fisher,
        solver: Solver[Any] | None = None,  # Any: any state
        lr: float = 0.1,
        damping: float = 1e-2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        policy: JointPolicy | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"NGD takes the model itself, not its parameters: expected nn.Module, got {type(model).__name__}")
        policy = JointPolicy() if policy is None else policy
        check_kind("policy", policy, JointPolicy, "JointPolicy(…); Policy belongs to KFAC")
        defaults = default_options(lr=lr, damping=damping, momentum=momentum, weight_decay=weight_decay, l2=0.0)
        super().__init__(
            model,
            groups=complete_groups(model, groups, defaults, AdamW(0.0)),
            defaults=defaults,
            fisher=fisher,
            solver=SmallSide() if solver is None else fit_solver(as_solver(solver)),
            policy=policy,
            generator=generator,
        )


def fit_solver(solver: Solver[Any]) -> Solver[Any]:  # Any: any state
    """Fit a solver to Gram operators: one that knows dense matrices alone gets the small side."""
    inner: Any = solver  # Any: what wrappers hold
    while isinstance(inner, Solver):
        if isinstance(inner, ConjugateGradient | Full | SmallSide):
            return solver
        inner = getattr(inner, "inner", None)
    return SmallSide(solver)
