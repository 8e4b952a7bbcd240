"""The one step of every layerwise natural-gradient method.

    capture rows → average factors → damp → prepare a solver → solve for the natural gradient → trust → momentum → update

with update θ ← θ − lr·m, m ← momentum·m + ν·F⁻¹g (Martens & Grosse 2015; KL clip ν of Ba et al. 2017). Which curvature, which
solver, which damping and trust are values handed in, so K-FAC, its thermodynamic forms and its relatives differ in a
constructor. This is the only file that knows how layers map to places in stacks. Nothing in `step` waits for a device,
unless the solver does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heatbath.curvature import Capture, Reduction, Site, update_average
from heatbath.layers import Rows
from heatbath.operators import select
from heatbath.optim.checkpoint import check_layout, restore, save
from heatbath.optim.coverage import Coverage, describe
from heatbath.optim.damping import Damping
from heatbath.optim.fallback import fallback_step
from heatbath.optim.policy import Policy
from heatbath.optim.stacks import Stack, build_stacks, find_places, sharing_of
from heatbath.optim.tally import Tally
from heatbath.solvers import Solver, usable
from heatbath.work import Work


class NaturalGradient(torch.optim.Optimizer):
    """Layerwise natural gradient for a model, with AdamW for whatever has no curvature.

    Use a constructor such as `KFAC`; this class is what they share.

    Args:
        model: the model; its hooks are registered now, so build the optimizer before `torch.compile` or DDP wrap it.
        sites: modules treated by curvature, from `find_sites`.
        groups: parameter groups with all options set.
        solver: for damped blocks.
        damping: how λ joins the curvature.
        policy: the rest: intervals, averaging, trust.
        generator: randomness for noisy solvers; its state is checkpointed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sites: Sequence[Site],
        groups: Iterable[dict[str, Any]],
        solver: Solver[Any],  # Any: any state
        damping: Damping,
        policy: Policy,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(list(groups), {})
        self.solver, self.damping, self.policy, self.generator = solver, damping, policy, generator
        self.sites = list(sites)
        self._group_of = {id(p): i for i, group in enumerate(self.param_groups) for p in group["params"]}
        self.stacks = build_stacks(self.sites, self._group_of)
        self._places = find_places(self.stacks)
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._kinds = {id(p): type(m).__name__ for m in model.modules() for p in m.parameters(recurse=False)}
        treated = {id(p) for site in self.sites for p in site.parameters().values()}
        self._fallback = [[p for p in group["params"] if id(p) not in treated] for group in self.param_groups]
        self._frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
        self.steps = 0
        self._last_factors: int | None = None
        self._last_refresh: int | None = None
        self._tally = Tally()
        self.capture = Capture(model, self.sites, self._sink)
        self.capture.attach()

    # --- capture -----------------------------------------------------------------------------------------------------

    def _sink(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        """Add the rows of one call to the sums of its stacks."""
        sharing = sharing_of(site, self.policy.sharing)
        for (stack, place), block_rows in zip(self._places[id(site)], rows, strict=True):
            stack.sums.add(place.start, block_rows, pass_number=pass_number, sharing=sharing)

    def _update_factors(self) -> None:
        """Fold what was captured since the last time into the averages."""
        for stack in self.stacks:
            batch, seen = stack.sums.collect(self.policy.reduction)
            if any(seen):
                stack.mean = update_average(stack.mean, batch, ages=stack.ages, seen=seen, decay=self.policy.decay)
        self._last_factors = self.steps

    # --- refresh -----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Prepare the solver for the damped averages; members that fail keep their last state and get more damping."""
        for stack in self.stacks:
            if stack.mean is None:
                continue
            amount = stack.boost * self.param_groups[stack.group]["damping"]
            state, work = self.solver.prepare(self.damping(stack.mean, amount), previous=stack.state, generator=self.generator)
            codes = self.solver.outcome(state)
            good = usable(codes)
            stack.boost = torch.where(good, (stack.boost * self.policy.relax).clamp_min(1.0), stack.boost * self.policy.boost)
            if stack.state is not None:
                state = select(good, state, stack.state)
            stack.state = state
            self._tally.add_refresh(work, codes)
        self._last_refresh = self.steps

    # --- the step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # Any: what the closure returns
        """One update of every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called once.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not any(p.grad is not None for group in self.param_groups for p in group["params"]):
            warnings.warn(
                "step() found no gradients and changed nothing: call loss.backward() before each step()", stacklevel=2
            )
            return loss
        captured = any(c.rows for stack in self.stacks for c in stack.sums.counts)
        if captured:
            self._update_factors()
        elif self.stacks and self.capture.enabled:
            warnings.warn(
                "step() found gradients but no captured curvature since the last step: was backward() called, and is the "
                "model the one this optimizer was built for? The last curvature is used",
                stacklevel=2,
            )
        if captured and self.policy.refresh.due(self.steps, self._last_refresh):
            self._refresh()
        self._apply()
        self.steps += 1
        self.capture.enabled = self.policy.factors.due(self.steps, self._last_factors)
        self.capture.batches.clear()
        return loss

    def _apply(self) -> None:
        """Solve, trust, and move all parameters."""
        grads = self._packed()
        ready = [stack for stack in self.stacks if stack.state is not None and id(stack) in grads]
        natural, predicted = [], []
        for stack in ready:
            solution = self.solver.solve(stack.state, grads[id(stack)], generator=self.generator)
            self._tally.add_solve(solution)
            if solution.state is not None:
                stack.state = solution.state
            value = torch.where(usable(solution.outcome).view(-1, 1, 1), solution.value, 0.0)
            group = self.param_groups[stack.group]
            reach = group["lr"] / (1 - group["momentum"])  # what momentum makes of a sustained step
            predicted.append((value * grads[id(stack)]).sum().float() * reach**2)
            natural.append(value)
        rest = [p.grad for params in self._fallback for p in params if p.grad is not None]
        finite = _all_finite([*predicted, *(g.sum().float() for g in rest)])
        if predicted:
            scale = self.policy.trust(torch.stack(predicted).sum())
            self._tally.add_step(scale, finite)
            moves = {id(s): self._momentum(s, v * scale, finite) for s, v in zip(ready, natural, strict=True)}
            self._move(moves, finite)
        for params, group in zip(self._fallback, self.param_groups, strict=True):
            fallback_step(params, self.state, group, finite)

    def _packed(self) -> dict[int, Tensor]:
        """Gradients of each stack that has any, `[L, O, I]`, per example if the loss is a sum; by the stack's id."""
        parts: dict[int, list[Tensor]] = {}
        active: set[int] = set()
        for site in self.sites:
            grads = {name: p.grad for name, p in site.parameters().items() if p.grad is not None}
            for (stack, _), block in zip(self._places[id(site)], site.rule.pack(site.module, grads), strict=True):
                parts.setdefault(id(stack), []).append(block.to(stack.boost.dtype))
                if grads:
                    active.add(id(stack))
        count = max(sum(self.capture.batches), 1) if self.policy.reduction is Reduction.SUM else 1
        packed = {key: torch.cat(blocks) if len(blocks) > 1 else blocks[0] for key, blocks in parts.items() if key in active}
        return {key: grad / count if count > 1 else grad for key, grad in packed.items()}

    def _momentum(self, stack: Stack, natural: Tensor, finite: Tensor) -> Tensor:
        """The heavy-ball average of a stack's natural gradients, `[L, O, I]`; zero, and nothing averaged, where not finite."""
        momentum = self.param_groups[stack.group]["momentum"]
        if momentum:
            old = torch.zeros_like(natural) if stack.momentum is None else stack.momentum
            natural = old * momentum + natural
            stack.momentum = torch.where(finite, natural, old)
        return torch.where(finite, natural, 0.0)

    def _move(self, moves: dict[int, Tensor], finite: Tensor) -> None:
        """Decoupled weight decay, then θ ← θ − lr·m for every treated parameter that has a gradient."""
        changes: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for site in self.sites:
            entries = self._places[id(site)]
            if not all(id(stack) in moves for stack, _ in entries):
                continue
            update = site.rule.unpack(site.module, [moves[id(stack)][place.slice] for stack, place in entries])
            for name, parameter in site.parameters().items():
                if parameter.grad is not None:
                    parameters, values = changes.setdefault(self._group_of[id(parameter)], ([], []))
                    parameters.append(parameter)
                    values.append(update[name].to(parameter.dtype))
        for index, (parameters, values) in changes.items():
            group = self.param_groups[index]
            if group["weight_decay"]:
                decay = torch.where(finite, 1 - group["lr"] * group["weight_decay"], 1.0)
                torch._foreach_mul_(parameters, decay)
            torch._foreach_add_(parameters, values, alpha=-group["lr"])

    # --- what it did, and its state ----------------------------------------------------------------------------------

    @property
    def work(self) -> Work:
        """Everything this optimizer asked of hardware so far, the model's own forward and backward passes aside."""
        return self._tally.work

    def report(self) -> dict[str, float | str]:
        """Refreshes, outcomes, skipped and clipped steps, notes of the solver; waits for the device."""
        return self._tally.report()

    def coverage(self) -> Coverage:
        """Which layer is treated how, and the bytes of state held."""
        return describe(self.stacks, self.sites, self._fallback, self._names, self._kinds, self._frozen)

    def state_dict(self) -> dict[str, Any]:  # Any: torch's own type
        """Everything needed to go on bit-equal: groups, fallback state, factors, solver states, momentum, counters."""
        return {**super().state_dict(), "natural": save(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Any: torch's own type
        """Restore from `state_dict`; dtypes of curvature stay as they were saved.

        Raises:
            ValueError: it is of another kind of optimizer, or of a model with other layers.
        """
        if "natural" not in state_dict:
            raise ValueError("this state_dict holds no curvature: it was not saved by this kind of optimizer")
        check_layout(self, state_dict["natural"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "natural"})
        restore(self, state_dict["natural"])


def _all_finite(values: Sequence[Tensor]) -> Tensor:
    """Whether all of some 0-d tensors are finite, a 0-d bool."""
    return torch.isfinite(torch.stack(list(values))).all()
