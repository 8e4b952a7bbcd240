"""K-FAC in front of somebody else's optimizer: `.grad` becomes the natural gradient just before `step`.

The natural gradient F⁻¹g, scaled by the trust rule at the optimizer's own learning rate, takes the place of g for every layer
with curvature; other parameters keep their gradient. Momentum, weight decay and schedules stay the optimizer's. An optimizer
that divides by the size of gradients (Adam) undoes much of it: `Unclipped` trust suits it, since a scale that changes from step
to step only disturbs its averages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from heatbath.curvature import piece, share
from heatbath.optim.arguments import as_solver, check_kind
from heatbath.optim.coverage import Coverage
from heatbath.optim.kfac import damping_rule, fit_solver
from heatbath.optim.natural import NaturalGradient
from heatbath.optim.options import AdamW, complete_group, default_options
from heatbath.optim.policy import Policy
from heatbath.optim.scaling import loss_scale
from heatbath.optim.trust import KLClip, MatchedRMS
from heatbath.solvers import Cholesky, Solver
from heatbath.work import Work


def preconditioned(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    damping: float = 1e-3,
    solver: Solver[Any] | None = None,  # Any: any state
    policy: Policy | None = None,
    generator: torch.Generator | None = None,
) -> Preconditioner:
    """Put K-FAC in front of an optimizer; the training loop stays as it is.

    Args:
        optimizer: any optimizer of first order, of all or some of the model's parameters (a bias may be in another);
            groups that are added to it later are followed.
        model: the model; call this before `torch.compile` or DDP wraps it.
        damping: λ ≥ 0, in units of the curvature of the mean loss.
        solver: for the damped factors; None: `Cholesky()`.
        policy: as for `KFAC`; the quadratic model and adaptive damping need an optimizer of their own and are refused.
        generator: randomness for noisy solvers; None: torch's global one.

    Returns:
        A handle: reports, checkpoints, `observe`, and `detach` to take K-FAC away again.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an option out of range, a policy that cannot be followed, LBFGS, or no layer to treat.

    >>> model = nn.Linear(3, 1)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> curvature = preconditioned(sgd, model)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> sgd.step()
    """
    check_kind("optimizer", optimizer, torch.optim.Optimizer, "an instance of a torch optimizer")
    check_kind("model", model, nn.Module, "the model itself, not its parameters")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS calls its closure many times in a step and measures curvature by differences of gradients, "
            "which preconditioning would change between calls: use KFAC, or an optimizer of first order"
        )
    policy = Policy() if policy is None else policy
    check_kind("policy", policy, Policy, "Policy(…); JointPolicy belongs to NGD")
    policy = policy.completed(KLClip())
    if policy.quadratic is not None or policy.adapt is not None:
        raise ValueError("the quadratic model and adaptive damping choose the step themselves: use KFAC instead")
    solver = fit_solver(Cholesky() if solver is None else as_solver(solver))
    defaults = default_options(lr=1.0, damping=damping, momentum=0.0, weight_decay=0.0, l2=policy.l2)
    groups = [complete_group({"params": group["params"]}, defaults, AdamW(0.0)) for group in optimizer.param_groups]
    rule = damping_rule(solver, policy)
    natural = NaturalGradient(
        model,
        groups=groups,
        defaults=defaults,
        solver=solver,
        damping=rule,
        policy=policy,
        generator=generator,
    )
    if not natural.sites:
        natural.detach()
        raise ValueError(
            "this optimizer has no parameter of a layer with a curvature rule, so nothing could be preconditioned: "
            "check that the model is the one whose parameters it trains, and Policy(rules=…, skip=…)"
        )
    return Preconditioner(optimizer, natural)


class Preconditioner:
    """What `preconditioned` returns.

    Args:
        optimizer: the optimizer that moves parameters.
        natural: finds natural gradients; it never steps itself.

    Attributes:
        scaler: the GradScaler that scales the loss, if any; needed only where something else than `scaler.step` calls the
            optimizer's `step`.
    """

    scaler: torch.amp.GradScaler | None = None

    def __init__(self, optimizer: torch.optim.Optimizer, natural: NaturalGradient) -> None:
        self.natural = natural
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def observe(self, outputs: Tensor, targets: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """As `NaturalGradient.observe`."""
        return self.natural.observe(outputs, targets, mask=mask)

    @property
    def work(self) -> Work:
        """Everything asked of hardware so far, backward passes aside."""
        return self.natural.work

    def report(self) -> dict[str, float | str]:
        """As `NaturalGradient.report`."""
        return self.natural.report()

    def coverage(self) -> Coverage:
        """Which layer is treated how; "adamw" stands for the optimizer alone."""
        return self.natural.coverage()

    def state_dict(self) -> dict[str, Any]:  # Any: torch's own type
        """Curvature, to be saved beside the optimizer's own state."""
        return self.natural.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Any: torch's own type
        """Restore from `state_dict`."""
        self.natural.load_state_dict(state_dict)

    def detach(self) -> None:
        """Take K-FAC away: the optimizer gets plain gradients again."""
        self._hook.remove()
        self.natural.capture.detach()

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:  # Any: torch's own protocol
        """Precondition now, or after the closure that `step` was given."""
        step, *rest = args  # the optimizer itself comes first
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            self._exchange(optimizer)
            return None
        wrapped = self._after(closure, optimizer)
        return ((step, wrapped, *rest[1:]), kwargs) if rest else (args, {**kwargs, "closure": wrapped})

    def _after(self, closure: Callable[[], Any], optimizer: torch.optim.Optimizer) -> Callable[[], Any]:  # Any: a loss
        """A closure that preconditions what the given one leaves in `.grad`."""

        def run() -> Any:  # Any: as above
            loss = closure()
            self._exchange(optimizer)
            return loss

        return run

    @torch.no_grad()
    def _exchange(self, optimizer: torch.optim.Optimizer) -> None:
        """Put natural gradients into `.grad`, where all of them are finite."""
        natural = self.natural
        new = optimizer.param_groups[len(natural.param_groups) :]
        for mine, theirs in zip(natural.param_groups, optimizer.param_groups, strict=False):
            mine["lr"] = theirs["lr"]
            mine["momentum"] = 0.0 if natural.policy.scale_free else theirs.get("momentum", 0.0)
        scale = loss_scale(optimizer, self.scaler)
        if not natural.bring_up_to_date(scale):
            return
        gradients, finite = natural.gradients()
        if gradients:
            direction, rule = natural.solve(gradients, finite), natural.policy.trust
            length = torch.ones_like(finite, dtype=torch.float32)
            if isinstance(rule, MatchedRMS):
                values = rule(direction.values(), direction.finite)
            else:
                assert rule is not None
                length = rule(direction.change(), direction.length)
                values = {p: v * length.to(v.dtype) for p, v in direction.values().items()}
            natural._tally.add_step(length, direction.finite)
            natural._monitor.add(length, direction.finite)
            for p, value in values.items():
                exchanged = share(value.to(p.dtype, copy=True, memory_format=torch.contiguous_format), p)
                p.grad = torch.where(direction.finite, exchanged, gradients[p])
        if scale.pending is not None:
            every = [p.grad for group in natural.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_([piece(g) for g in every], scale.pending)
        natural.finish_step()
        for group in new:
            natural.add_param_group({"params": group["params"]})
