"""The one step of every layerwise natural-gradient method.

    capture rows → average factors → damp → prepare a solver → solve for the natural gradient → trust → momentum → update

with update θ ← θ − lr·m, m ← momentum·m + ν·F⁻¹g (Martens & Grosse 2015; KL clip ν of Ba et al. 2017). Which curvature, which
solver, which damping and trust are values handed in, so K-FAC, its thermodynamic forms and its relatives differ in a
constructor. This is the only file that knows how layers map to places in stacks. Nothing in `step` waits for a device,
unless the solver, a GradScaler or the joining of processes does.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from heatbath.curvature import Capture, Reduction, Site, is_parallel, join_processes, update_average
from heatbath.layers import Rows
from heatbath.operators import select
from heatbath.optim.checkpoint import OWN, check_layout, rehearse, restore, save
from heatbath.optim.corrected import correct, fold_squares
from heatbath.optim.coverage import Coverage, describe
from heatbath.optim.damping import Damping
from heatbath.optim.fallback import fallback_step
from heatbath.optim.layout import Layout
from heatbath.optim.observing import Seen, passed_terms
from heatbath.optim.options import complete_group
from heatbath.optim.policy import Policy
from heatbath.optim.proposal import Proposal, objective
from heatbath.optim.scaling import LossScale, loss_scale
from heatbath.optim.stacks import Stack, sharing_of
from heatbath.optim.tally import Tally
from heatbath.solvers import Solver, usable
from heatbath.work import Work


class NaturalGradient(torch.optim.Optimizer):
    """Layerwise natural gradient for a model, with AdamW for whatever has no curvature.

    Use a constructor such as `KFAC`; this class is what they share.

    Args:
        model: the model; its hooks are registered now, so build the optimizer before `torch.compile` or DDP wrap it.
        groups: parameter groups; options they leave out are taken from `defaults`.
        defaults: every option, also for groups that are added later.
        solver: for damped blocks.
        damping: how λ joins the curvature.
        policy: the rest: intervals, averaging, trust.
        generator: randomness for noisy solvers; its state is checkpointed.
    """

    _step_supports_amp_scaling = True  # see `scaling`

    def __init__(
        self,
        model: nn.Module,
        *,
        groups: Iterable[dict[str, Any]],
        defaults: dict[str, Any],  # Any: torch's own type
        solver: Solver[Any],  # Any: any state
        damping: Damping,
        policy: Policy,
        generator: torch.Generator | None = None,
    ) -> None:
        self.solver, self.damping, self.policy, self.generator = solver, damping, policy, generator
        self._built = False
        super().__init__(list(groups), defaults)
        self.model = model
        self.steps = 0
        self._last_factors: int | None = None
        self._last_refresh: int | None = None
        self._tally = Tally()
        self._warned: set[str] = set()
        self._lay_out()
        self._built = True

    # --- layout ------------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> list[Site]:
        """Modules treated by curvature."""
        return self.layout.sites

    @property
    def stacks(self) -> list[Stack]:
        """Their blocks, and everything kept for them."""
        return self.layout.stacks

    def _lay_out(self, old: Layout | None = None) -> None:
        """Find the sites and put hooks on them."""
        self.layout = Layout.of(self.model, self.param_groups, self.policy, old)
        self.capture = Capture(self.model, self.sites, counting=self.policy.reduction is Reduction.SUM)
        self.capture.listening = not self.policy.fisher.observes
        self.capture.attach(self._sink)
        self._start()

    def _start(self) -> None:
        """What a new optimizer and a copy have to do alike."""
        weakref.finalize(self, Capture.detach, self.capture).atexit = False
        self._entered = False
        self._forget()

    def refresh_layout(self) -> None:
        """Look at the model again: after unfreezing or freezing parameters, or adding layers.

        Parameters that are trainable but in no group get a group with the defaults. What was learned about layers that stay
        is kept. A compiled model must be compiled anew, because `torch.compile` does not see new hooks.
        """
        known = {id(p) for group in self.param_groups for p in group["params"]}
        new = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        if new:
            super().add_param_group(complete_group({"params": new}, self.defaults, self.policy.fallback_lr))
        self.capture.detach()
        self._last_factors = self._last_refresh = None
        self._lay_out(self.layout)

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # Any: torch's own type
        """Add parameters of the model, later-unfrozen layers for example; options left out are the defaults.

        Raises:
            ValueError: an option out of range.
        """
        super().add_param_group(complete_group(param_group, self.defaults, self.policy.fallback_lr))
        if self._built:
            self.refresh_layout()

    # --- capture -----------------------------------------------------------------------------------------------------

    def _sink(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        """Add the rows of one call to the sums of its stacks."""
        sharing = sharing_of(site, self.policy.sharing)
        options: dict[str, Any] = {"pass_number": pass_number, "sharing": sharing, "again": self.capture.pull > 0}
        for (stack, place), block_rows in zip(self.layout.places[id(site)], rows, strict=True):
            self._tally.add_work(stack.sums.add(place.index, block_rows, **options))

    @torch.compiler.disable
    def observe(self, outputs: Tensor, targets: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Let curvature see the outputs: the one line between forward and loss that sampled and exact Fishers need.

        It pulls vectors back through the network by `torch.autograd.grad`, touches no `.grad`, and is free on steps that
        capture no factors. Call it once for each forward pass. The passes are not counted in `work`.

        Args:
            outputs: what the loss is computed from, `[B, …]`.
            targets: the loss's targets, for likelihoods whose weights depend on them.
            mask: true where the loss counts, one entry for each term.

        Returns:
            The outputs.

        Raises:
            TypeError: outputs are no floating-point tensor.
            ValueError: shapes that do not fit the likelihood.
        """
        if torch.is_grad_enabled():
            generator = self.generator
            self._seen.look(outputs, targets, mask, policy=self.policy, capture=self.capture, generator=generator)
        return outputs

    def _enter(self) -> None:
        """An entry of state for each parameter, as `torch.distributed.checkpoint` expects."""
        if not self._entered:
            for p in (p for group in self.param_groups for p in group["params"] if p.requires_grad):
                self.state[p]  # a defaultdict
            self._entered = True

    def _forget(self) -> None:
        """Drop what belongs to a step that is over."""
        self._seen = Seen()
        self.capture.forget()
        for stack in self.stacks:
            stack.sums.drop()
        self.capture.enabled = self.policy.factors.due(self.steps, self._last_factors)

    def _update_factors(self, loss_scale: Tensor | None) -> None:
        """Fold what was captured since the last time into the averages."""
        reduction = self.policy.reduction
        terms = passed_terms(self.capture, reduction) if self._seen.terms is None else self._seen.terms
        if self.policy.distributed and is_parallel():
            terms = join_processes([stack.sums for stack in self.stacks], reduction, terms)
            reduction = Reduction.SUM
        for stack in self.stacks:
            if stack.sums.filled:
                decay, spans = self.policy.decay, stack.sums.spans
                fold_squares(stack, stack.sums.collect_squares(reduction, terms=terms, scale=loss_scale), decay)
                batch, seen = stack.sums.collect(reduction, terms=terms, scale=loss_scale)
                stack.mean = update_average(stack.mean, batch, ages=stack.ages, seen=seen, decay=decay, spans=spans)
        self._last_factors = self.steps

    # --- refresh -----------------------------------------------------------------------------------------------------

    def _refresh(self, *, rotate: bool = True) -> None:
        """Prepare the solver for the damped averages; members that fail keep their last state and get more damping.

        Args:
            rotate: find eigenbases anew, where curvature is eigenvalue-corrected.
        """
        for stack in self.stacks:
            if stack.mean is None:
                continue
            curvature, extra = correct(stack, rotate=rotate) if self.policy.corrected else (stack.mean, Work())
            operator = self.damping(curvature, stack.boost * stack.damping(self.param_groups))
            state, work = self.solver.prepare(operator, previous=stack.state, generator=self.generator)
            codes = self.solver.outcome(state)
            good = usable(codes)
            stack.boost = torch.where(good, (stack.boost * self.policy.relax).clamp_min(1.0), stack.boost * self.policy.boost)
            if stack.state is not None:
                state = select(good, state, stack.state)
            stack.state = state
            self._tally.add_refresh(work + extra, codes)
        self._last_refresh = self.steps if rotate else self._last_refresh
        for name in {site.name for site in self.layout.welcome()} - self._warned:
            self._warned.add(name)
            how = "gradients came, but through no call of the module; AdamW trains it till rows come"
            warnings.warn(f"{name or 'model'}: {how}", stacklevel=6)

    # --- the step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | None = None, *, evaluate: Callable[[], Tensor] | None = None
    ) -> Any:  # Any: closure's
        """One update of every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called once.
            evaluate: returns the loss of the same batch at the present parameters, without backward; called before and after
                the update on the steps where damping adapts (`Policy.adapt`), without gradients.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: damping adapts and there is no `evaluate`.
        """
        if self.policy.adapt is not None and evaluate is None:
            raise ValueError("damping adapts by the loss after a step: call step(evaluate=lambda: loss_fn(model(x), y))")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.bring_up_to_date(loss_scale(self)):
            return loss
        adapt = self.policy.adapt
        if adapt is not None and evaluate is not None and adapt.due(self.steps):
            before = objective(evaluate, self.param_groups)
            predicted = self._apply(predict=True)
            ratio = (before - objective(evaluate, self.param_groups)) / predicted
            for group in self.param_groups:
                group["damping"] = adapt(torch.as_tensor(group["damping"], dtype=ratio.dtype, device=ratio.device), ratio)
        else:
            self._apply()
        self.finish_step()
        return loss

    def finish_step(self) -> None:
        """Count a step, forget what belongs to it, and say whether the next one captures factors."""
        self.steps += 1
        self._forget()

    def bring_up_to_date(self, scale: LossScale) -> bool:
        """Bring gradients and curvature up to date before a step; false where there is nothing to do.

        Args:
            scale: what a GradScaler did to the gradients.
        """
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            warnings.warn(
                "step() found no gradients and changed nothing: call loss.backward() before each step()", stacklevel=4
            )
            return False
        captured = any(stack.sums.filled for stack in self.stacks)
        if not captured and all(group["lr"] == 0 for group in self.param_groups):
            if not self.state:
                rehearse(self)
            return False
        self._enter()
        if scale.overflow is not None and bool(scale.overflow > 0):
            self._tally.add_step(torch.ones_like(scale.overflow), torch.zeros_like(scale.overflow, dtype=torch.bool))
            self._forget()
            return False
        if scale.pending is not None:
            torch._foreach_mul_([p.grad for p in parameters], scale.pending.reciprocal())
        self._update_curvature(captured, scale.captured)
        return True

    def _update_curvature(self, captured: bool, loss_scale: Tensor | None) -> None:
        """Averages and solver states, where they are due."""
        if captured or (self.capture.enabled and self.policy.distributed and is_parallel()):
            self._update_factors(None if self.policy.fisher.observes else loss_scale)
            if self.policy.refresh.due(self.steps, self._last_refresh):
                self._refresh()
            elif self.policy.corrected:
                self._refresh(rotate=False)
        elif self.stacks and self.capture.enabled:
            how = "opt.observe(outputs)" if self.policy.fisher.observes else "backward()"
            warnings.warn(
                f"step() found gradients but no captured curvature since the last step: was {how} called, and is the "
                "model the one this optimizer was built for? The last curvature is used",
                stacklevel=5,
            )

    def propose(self) -> Proposal:
        """Gradients, natural gradients and what they predict, stack by stack."""
        grads = self.layout.packing.gather([group["l2"] for group in self.param_groups], self.layout.absent)
        reduction = self.policy.reduction
        count = passed_terms(self.capture, reduction) or 1 if reduction is Reduction.SUM else 1
        grads = {i: grad / count if count > 1 else grad for i, grad in grads.items()}
        natural = {}
        for i, grad in grads.items():
            stack = self.stacks[i]
            solution = self.solver.solve(stack.state, grad, generator=self.generator)
            self._tally.add_solve(solution)
            if solution.state is not None:
                stack.state = solution.state
            natural[i] = torch.where(usable(solution.outcome).view(-1, 1, 1), solution.value, 0.0)
        rest = [p.grad for params in (*self.layout.fallback, *self.layout.strays) for p in params if p.grad is not None]
        return Proposal.of(self.stacks, self.param_groups, grads, natural, rest)

    def _apply(self, *, predict: bool = False) -> Tensor:
        """Solve, trust, and move all parameters; returns the predicted reduction of the loss, 0-d, if asked to, else 0."""
        proposal = self.propose()
        predicted = torch.zeros_like(proposal.finite, dtype=torch.float32)
        if proposal.natural:
            damping = [stack.damping(self.param_groups) for stack in self.stacks]
            if self.policy.quadratic is None:
                scale, momentum = self.policy.trust(proposal.change(), proposal.length), None
            else:
                shared = self.policy.distributed and is_parallel()
                scale, momentum = proposal.minimize(self._seen.linear, self.layout.packing, damping, shared)
            self._tally.add_step(scale, proposal.finite)
            moves = {i: proposal.advance(i, scale, momentum) for i in proposal.natural}
            predicted = proposal.reduction(moves, damping) if predict else predicted
            self._move(moves, proposal.finite)
        for params, strays, group in zip(self.layout.fallback, self.layout.strays, self.param_groups, strict=True):
            fallback_step([*params, *strays], self.state, group, proposal.finite)
        return predicted

    def _move(self, moves: dict[int, Tensor], finite: Tensor) -> None:
        """Decoupled weight decay, then θ ← θ − lr·m for every treated parameter that has a gradient."""
        for index, (parameters, values) in self.layout.packing.scatter(moves, self.layout.absent).items():
            group = self.param_groups[index]
            if group["weight_decay"]:
                wide = torch.promote_types(parameters[0].dtype, torch.float32)
                torch._foreach_mul_(parameters, 1 - finite.to(wide) * (group["lr"] * group["weight_decay"]))
            torch._foreach_add_(parameters, values, alpha=-group["lr"])

    # --- what it did, and its state ----------------------------------------------------------------------------------

    @property
    def work(self) -> Work:
        """Everything this optimizer asked of hardware so far, backward passes aside."""
        return self._tally.work

    def report(self) -> dict[str, float | str]:
        """Refreshes, outcomes, skipped and clipped steps, notes of the solver; waits for the device."""
        return self._tally.report()

    def coverage(self) -> Coverage:
        """Which layer is treated how, and the bytes of state held."""
        return describe(self.layout, self.model)

    def state_dict(self) -> dict[str, Any]:  # Any: torch's own type
        """Everything needed to go on bit-equal: groups, fallback state, factors, solver states, momentum, counters.

        Curvature lies in the first parameter group, where `torch.distributed.checkpoint` keeps it.
        """
        state = super().state_dict()
        state["param_groups"][0]["natural"] = save(self)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Any: torch's own type
        """Restore from `state_dict`; dtypes of curvature stay as they were saved.

        Raises:
            ValueError: it is of another kind of optimizer, or of a model with other layers.
        """
        natural = next((g["natural"] for g in state_dict["param_groups"] if "natural" in g), None)
        if natural is None:
            raise ValueError("this state_dict holds no curvature: it was not saved by this kind of optimizer")
        check_layout(self, natural)
        groups = [{k: v for k, v in group.items() if k != "natural"} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
        restore(self, natural)

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        return {name: self.__dict__[name] for name in ("defaults", "state", "param_groups", *OWN)}

    def __setstate__(self, state: dict[str, Any]) -> None:  # Any: attributes
        super().__setstate__(state)
        if "capture" in state:  # a copy; torch's load_state_dict comes by here too
            self.capture.connect(self._sink)
            self.layout.index(self.param_groups)
            self._start()
