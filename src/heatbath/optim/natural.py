"""The one step of every layerwise natural-gradient method.

    capture rows → average factors → damp → prepare a solver → momentum of the gradients → solve → match the RMS → update

is the default, m ← μm + g, θ ← θ − lr·0.2·v/rms(v) with v = F⁻¹(g + μm). Step rules that know the loss's unit put momentum
last, θ ← θ − lr·m with m ← μm + ν·F⁻¹g (Martens & Grosse 2015; KL clip ν of Ba et al. 2017). Which curvature, solver, damping
and step rule are values handed in, so K-FAC, its thermodynamic forms and its relatives differ in a constructor. The step itself
is that of `base`. Nothing in it waits for a device, unless the solver, a GradScaler or the joining of processes does.
"""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from heatbath.curvature import Capture, Reduction, Sharing, Site, attach_hooks, is_parallel, norms, piece, share
from heatbath.layers import Rows
from heatbath.optim.base import CurvatureOptimizer
from heatbath.optim.corrected import correct
from heatbath.optim.coverage import Coverage, describe
from heatbath.optim.damping import Damping, LevenbergMarquardt, RelativeDamping
from heatbath.optim.direction import Direction
from heatbath.optim.layout import Layout
from heatbath.optim.monitor import StepMonitor
from heatbath.optim.observing import Seen, nothing_captured, passed_terms, summed_terms, turned_round
from heatbath.optim.options import at_rest, check_generator, complete_group, own_parameters
from heatbath.optim.packing import strided
from heatbath.optim.policy import Policy
from heatbath.optim.recut import check_blocks, is_cut_alike, recut
from heatbath.optim.refresh import Refresher, update_averages
from heatbath.optim.scaling import LossScale
from heatbath.optim.schedule import Timetable
from heatbath.optim.stacks import Stack
from heatbath.optim.tally import Pass, Tally
from heatbath.optim.trust import MatchedRMS
from heatbath.optim.updates import apply_momentum, apply_update, fallback_step, like_parameters, start_state
from heatbath.solvers import Eigen, Solver, usable


class NaturalGradient(CurvatureOptimizer):
    """Layerwise natural gradient for a model, with AdamW for whatever has no curvature.

    Use a constructor such as `KFAC`; this class is what they share.

    Args:
        model: the model; hooks are registered now, so build this before `torch.compile` or DDP wrap it, after `fully_shard`.
        groups: parameter groups; options they leave out are taken from `defaults`.
        defaults: every option, also for groups that are added later.
        solver: for damped blocks.
        damping: how λ joins the curvature.
        policy: the rest: intervals, averaging, trust.
        generator: randomness for noisy solvers; its state is checkpointed.
    """

    KEY = "natural"
    OWN = (
        "model",
        "solver",
        "damping",
        "_policy",
        "generator",
        "layout",
        "capture",
        "steps",
        "_timetable",
        "_tally",
        "_warned",
        "_built",
    )
    _timetable: Timetable
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
        self._built = False
        model = getattr(model, "_orig_mod", model)  # of torch.compile, whose wrapper cannot be copied while hooks lead to it
        check_generator(generator, model)
        self.solver, self.damping, self._policy, self.generator = solver, damping, policy, generator
        super().__init__(list(groups), defaults)
        self.model = model
        self.steps = 0
        self._tally = Tally()
        self._warned: set[str] = set()
        self._lay_out()
        self._built = True

    @property
    def policy(self) -> Policy:
        """Everything about a step but solver and damping; fixed when the optimizer is built."""
        return self._policy

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
        whole = isinstance(self.solver, Eigen)  # whose bases are of matrices in full
        self.layout = Layout.of(self.model, self.param_groups, self.policy, old, whole=whole)
        self._timetable = self.policy.timetable([stack.cost for stack in self.stacks])
        self.capture = Capture(self.model, self.sites, batch_dim=self.policy.batch_dim)
        self.capture.counting = self.policy.reduction is Reduction.SUM
        quadratic = self.policy.quadratic
        known = None if quadratic is None else quadratic.likelihood
        self.capture.likelihood = self.policy.fisher.likelihood or known
        self.capture.listening = not self.policy.fisher.observes
        attach_hooks(self.capture, self._sink)
        self._start()

    def _start(self) -> None:
        """What a new optimizer and a copy have to do alike."""
        weakref.finalize(self, Capture.detach, self.capture).atexit = False
        self._entered = False  # parameters into `state`
        self._monitor = StepMonitor()
        self._forget()

    def detach(self) -> None:
        """Take the hooks off the model: to script, trace, quantize or copy it without them.

        Parameters go on by the last curvature. `refresh_layout()` puts the hooks back.
        """
        self.capture.detach()

    def refresh_layout(self) -> None:
        """Look at the model again: after unfreezing or freezing parameters, or adding layers.

        Parameters that are trainable but in no group get a group with the defaults. What was learned about layers that stay
        is kept.
        """
        known = {id(p) for group in self.param_groups for p in group["params"]}
        new = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        if new:
            super().add_param_group(complete_group({"params": new}, self.defaults, self.policy.fallback))
        self.capture.detach()
        self._lay_out(self.layout)

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # Any: torch's own type
        """Add parameters of the model, later-unfrozen layers for example; options left out are the defaults.

        Raises:
            ValueError: an option out of range, or a parameter that is not the model's.
        """
        if self._built:
            param_group = {**param_group, "params": own_parameters(self.model, param_group)}
        super().add_param_group(complete_group(param_group, self.defaults, self.policy.fallback))
        if self._built:
            self.refresh_layout()

    # --- capture -----------------------------------------------------------------------------------------------------

    def _sink(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        """Add the rows of one call to the sums of its stacks."""
        sharing = self.layout.sharing.get(site, Sharing.EXPAND)
        options: dict[str, Any] = {"pass_number": pass_number, "sharing": sharing, "again": self.capture.pull > 0}
        for (stack, place), block_rows in zip(self.layout.places[id(site)], rows, strict=True):
            if stack.awake:
                if self.capture.anew:
                    stack.sums.drop_block(place.index)
                self._tally.add_work(stack.sums.add(place.index, block_rows, **options))

    @_disable_dynamo  # as torch.compiler.disable, but imports Dynamo when first called
    def observe(self, outputs: Tensor, targets: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Let curvature see the outputs: the one line between forward and loss that sampled and exact Fishers need.

        It pulls vectors back through the network by `torch.autograd.grad`, touches no `.grad`, and is free on steps that
        capture no factors. Call it once for each forward pass. The passes count in `passes`, not in `work`.

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
            options: dict[str, Any] = {"policy": self.policy, "capture": self.capture, "generator": self.generator}
            self._tally.add_passes(self._seen.look(outputs, targets, mask, **options))
        return outputs

    def _forget(self) -> None:
        """Drop what belongs to a step that is over."""
        self._seen = Seen()
        self.capture.forget()
        for stack in self.stacks:
            stack.sums.drop()
        self._wake()

    def _wake(self) -> None:
        """Say who captures factors at the present step."""
        self.capture.resting = self.layout.wake(self._timetable.captures(self.steps))
        self.capture.enabled = len(self.capture.resting) < len(self.sites)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and with them what ordinary backward passes have brought to the curvature.

        So the backward pass of another loss through this model (of the generator, in an adversarial
        pair) leaves no trace. Nor does it where somebody else sets gradients to None, as
        `model.zero_grad()` does: capture sees that. Where they are filled with zeros instead, call
        this method.

        Args:
            set_to_none: drop the gradients instead of filling them with zeros.
        """
        super().zero_grad(set_to_none)
        if not self.policy.fisher.observes:
            for stack in self.stacks:
                stack.sums.drop()
        self.capture.terms.clear()

    # --- refresh -----------------------------------------------------------------------------------------------------

    def _refresh(self, seen: list[bool]) -> None:
        """Renew the solver states that are due, or were found wanting at the last step.

        Args:
            seen: which stacks captured at this step.
        """
        refresher = Refresher(self.solver, self.damping, self.policy.corrected, self.generator, self._tally)
        new = [s and self.layout.has_newcomers(stack) for s, stack in zip(seen, self.stacks, strict=True)]
        self._timetable.hasten(new)
        due = self._timetable.refreshes(self.steps)
        for stack, is_due, is_seen, is_new in zip(self.stacks, due, seen, new, strict=True):
            if stack.mean is not None and (is_due or (is_seen and self.policy.corrected)):
                refresher.refresh(stack, self._amount(stack), rotate=is_due, cold=is_new)
        self._timetable.refreshed(self.steps, due)
        self._tally.refreshes += any(due)
        uncalled = self.layout.welcome() if any(seen) else ()
        for site in (site for site in uncalled if site not in self.capture.unread):
            how = "gradients came, but through no call of the module; AdamW trains it till rows come"
            self._warn_once(f"{site.name or 'model'}: {how}")

    def _amount(self, stack: Stack) -> float | Tensor:
        """λ of a stack; relative damping leaves out the curvature of an L2 penalty, which has a unit."""
        if isinstance(self.damping, RelativeDamping):
            amount: float | Tensor = self.param_groups[stack.group]["damping"]
            return amount
        return stack.damping(self.param_groups)

    def _warn_once(self, message: str | None) -> None:
        """Say something, if there is something to say, at the line that called `step` and the first time only."""
        if message is not None and message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=7)

    # --- the step ----------------------------------------------------------------------------------------------------

    @property
    def adaptation(self) -> LevenbergMarquardt | None:
        """The policy's."""
        return self.policy.adapt

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
        if not captured and at_rest(self.param_groups, fresh=not self.state):
            if not self.state:
                self._allocate_state()
            self._forget()
            return False
        if not self._entered:
            self._init_param_state()
            self._entered = True
        if scale.overflow is not None and bool(scale.overflow > 0):
            self._tally.add_step(torch.ones_like(scale.overflow), torch.zeros_like(scale.overflow, dtype=torch.bool))
            self._forget()
            return False
        if scale.pending is not None:
            torch._foreach_mul_([piece(p.grad) for p in parameters], scale.pending.reciprocal())
        self._update_curvature(captured, scale.captured)
        return True

    def _update_curvature(self, captured: bool, loss_scale: Tensor | None) -> None:
        """Averages and solver states, where they are due."""
        seen = [False] * len(self.stacks)
        if captured or (self.capture.enabled and self.policy.distributed and is_parallel()):
            self._warn_once(turned_round(self.stacks, self.capture))
            terms = passed_terms(self.capture, self.policy.reduction) if self._seen.terms is None else self._seen.terms
            scale = None if self.policy.fisher.observes else loss_scale
            seen = update_averages(self.stacks, self.policy, terms=terms, scale=scale)
            self._timetable.captured(self.steps, seen)
        elif self.stacks and all(stack.awake for stack in self.stacks):
            warnings.warn(nothing_captured(self.stacks, self.capture, self.policy.fisher), stacklevel=5)
        self._refresh(seen)

    def _count(self) -> int:
        """What gradients are divided by to be those of a mean over examples: D of a summed loss, else 1."""
        count, complaint = summed_terms(self.capture, self.policy.reduction)
        self._warn_once(complaint)
        return count

    def gradients(self) -> tuple[dict[Tensor, Tensor], Tensor]:
        """Gradients of the mean loss with the L2 penalty, of the parameters with curvature.

        Returns:
            Gradients by parameter, and whether those of all parameters are finite, a 0-d bool.
        """
        count, treated = self._count(), set(self.layout.treated)
        every = {p: strided(p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None}
        finite = torch.isfinite(torch.stack([n.float() for n in norms(list(every.values()))])).all()
        found = {}
        for group in self.param_groups:
            own = {p: every[p] for p in group["params"] if p in every and p in treated}
            if own and (count > 1 or group["l2"]):
                values = torch._foreach_div(list(own.values()), count)
                torch._foreach_add_(values, list(own), alpha=group["l2"])
                own = dict(zip(own, values, strict=True))
            found.update(own)
        return found, finite

    def momentum(
        self,
        values: Mapping[Tensor, Tensor],
        finite: Tensor,
        *,
        coefficient: Tensor | None = None,
        nesterov: bool = False,
    ) -> dict[Tensor, Tensor]:
        """Momentum of gradients or of natural gradients; `coefficient` is used in place of the groups'."""
        found = {}
        for group in self.param_groups:
            own = {p: values[p] for p in group["params"] if p in values}
            mu = group["momentum"] if coefficient is None else coefficient
            found.update(apply_momentum(own, self.state, mu, finite, nesterov=nesterov))
        return found

    def solve(self, gradients: Mapping[Tensor, Tensor], finite: Tensor) -> Direction:
        """Natural gradients; zero for members that no solver could solve.

        Passes over `[L, O, I]` are chosen for what they take: `where` costs five times what `nan_to_num` and a product do.

        Args:
            gradients: by parameter.
            finite: 0-d bool; where false, nothing may move.
        """
        packed, natural, products = self.layout.packing.gather(gradients), {}, []
        for i, gradient in packed.items():
            stack = self.stacks[i]
            solution = self.solver.solve(stack.state, gradient, generator=self.generator)
            self._tally.add_solve(solution)
            if solution.state is not None:
                stack.state = solution.state
            v, solved = solution.value, usable(solution.outcome)
            products.append(torch.where(solved, (v * gradient).sum((1, 2)), 0.0).sum())
            natural[i] = v.nan_to_num(0.0, 0.0, 0.0).mul_(solved.view(-1, 1, 1))
        finite = torch.isfinite(torch.stack(products)).all() & finite if products else finite
        return Direction(
            self.stacks, self.param_groups, self.layout.packing, list(gradients), packed, natural, products, finite
        )

    def _apply(self, *, predict: bool = False) -> Tensor:
        """Solve, and move all parameters; returns the predicted reduction of the loss, 0-d, if asked to, else 0."""
        gradients, finite = self.gradients()
        moves, scale = {}, torch.ones_like(finite, dtype=torch.float32)
        predicted, damping = torch.zeros_like(scale), [stack.damping(self.param_groups) for stack in self.stacks]
        if gradients:
            rule = self.policy.trust
            if isinstance(rule, MatchedRMS):
                gradients = self.momentum(gradients, finite, nesterov=rule.nesterov)
                direction = self.solve(gradients, finite)
                moves = like_parameters(rule(direction.values(), direction.finite))
            else:
                direction = self.solve(gradients, finite)
                scale, coefficient = self._step_length(direction, damping)
                usable = direction.finite & torch.isfinite(scale)  # the quadratic model's may overflow
                if coefficient is not None:
                    usable = usable & torch.isfinite(coefficient)
                direction.finite = usable
                usable_scale = torch.where(usable, scale, 0.0)
                values = {p: v * usable_scale.to(v.dtype) for p, v in direction.values().items()}
                moves = self.momentum(like_parameters(values), usable, coefficient=coefficient)
            finite = direction.finite
            predicted = direction.reduction(moves, damping) if predict else predicted
            self._tally.add_step(scale, finite)
        for index, group in enumerate(self.param_groups):
            own = {p: moves[p] for p in group["params"] if p in moves}
            self._tally.add_work(apply_update(own, group, finite))
            options = {**group, "l2": group["l2"] * self._count()}
            rest = [*self.layout.fallback[index], *self.layout.strays[index]]
            self._tally.add_work(fallback_step(rest, self.state, options, finite))
        self._monitor.add(scale, finite, [p for group in self.param_groups for p in group["params"]])
        return predicted

    def _step_length(self, direction: Direction, damping: Sequence[float | Tensor]) -> tuple[Tensor, Tensor | None]:
        """Scale of the natural gradient, and momentum in place of the groups', by the step rule or by the quadratic model."""
        if self.policy.quadratic is None:
            assert self.policy.trust is not None and not isinstance(self.policy.trust, MatchedRMS)
            return self.policy.trust(direction.change(), direction.length), None
        shared = self.policy.distributed and is_parallel()
        before = {p: self.state[p]["momentum_buffer"] for p in direction.parameters if "momentum_buffer" in self.state[p]}
        self._tally.add_passes({Pass.PUSH: 2 * len(self._seen.linear)})  # both directions
        return direction.minimize(self._seen.linear, before, damping, shared)

    # --- what it did, and its state ----------------------------------------------------------------------------------

    @property
    def passes(self) -> dict[Pass, int]:
        """Passes through the model beside forward and backward of the loss, by kind."""
        return dict(self._tally.passes)

    def coverage(self) -> Coverage:
        """Which layer is treated how, and the bytes of state held."""
        return describe(self.layout, self.model, self.state)

    def _rows(self) -> list[dict[str, Any]]:  # Any: plain Python
        """Which block of which shape lies where."""
        return [{"blocks": stack.names, "domain": list(stack.domain), "group": stack.group} for stack in self.stacks]

    def _save(self) -> dict[str, Any]:  # Any: plain Python and tensors
        past = self._past(
            layout=self._rows(),
            ready=sorted(self.layout.ready),
            ages=[stack.ages for stack in self.stacks],
            square_ages=[stack.square_ages for stack in self.stacks],
            **self._timetable.state_dict(),
        )
        return {
            "past": past,
            "stacks": [stack.state_dict() for stack in self.stacks],
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def _check(self, own: dict[str, Any]) -> None:  # Any: plain Python and tensors
        saved = json.loads(own["past"])["layout"]
        check_blocks(self._rows(), saved)
        own = own if is_cut_alike(self._rows(), saved) else recut(own, self.stacks)  # raises where it cannot be done
        for stack, state in zip(self.stacks, own["stacks"], strict=True):
            stack.check_state_dict(state)

    def _restore(self, own: dict[str, Any]) -> None:  # Any: plain Python and tensors
        if not is_cut_alike(self._rows(), json.loads(own["past"])["layout"]):
            own = recut(own, self.stacks)
        past = self._load_common(own)
        self._timetable.load_state_dict(past)
        self.layout.ready = set(past["ready"])
        self._restore_momentum(own["stacks"])
        ages = zip(past["ages"], past["square_ages"], strict=True)
        for stack, state, (age, square_age) in zip(self.stacks, own["stacks"], ages, strict=True):
            stack.load_state_dict(state)
            stack.ages, stack.square_ages = age, square_age
        self._forget()
        self.layout.settle()

    def _restore_momentum(self, stacks: Sequence[dict[str, Any]]) -> None:  # Any: plain Python and tensors
        """Momentum of format 1, which kept it by stack; later ones keep it in torch's own state."""
        old = {
            i: self.stacks[i].empty().copy_(state["momentum"])
            for i, state in enumerate(stacks)
            if state.get("momentum") is not None
        }
        parameters = [p for site in self.sites for p in site.parameters().values()]
        for p, value in self.layout.packing.scatter(old, parameters).items():
            self.state[p]["momentum_buffer"] = share(value.to(p.dtype, copy=True), p)

    def _allocate_state(self) -> None:
        """Allocate all state without counting anything as done.

        `torch.distributed.checkpoint` loads into the state that an optimizer already has, and to make it have some it calls
        `step()` once with gradients of zero and a learning rate of zero. Solver states are then of a multiple of the identity.
        """
        before = None if self.generator is None else self.generator.get_state()
        with torch.random.fork_rng({stack.boost.device.index for stack in self.stacks if stack.boost.is_cuda}):
            for stack in self.stacks:
                stack.mean = stack.sums.collect(None)[0]
                curvature = correct(stack, rotate=True)[0] if self.policy.corrected else stack.mean
                operator = self.damping(curvature, torch.ones_like(stack.boost))
                stack.state, _ = self.solver.prepare(operator, generator=self.generator)
        if self.generator is not None and before is not None:
            self.generator.set_state(before)
        for params in self.layout.fallback:
            start_state(params, self.state)
        treated = {id(p) for site in self.sites for p in site.parameters().values()}
        for group in self.param_groups:
            if group["momentum"] or self.policy.quadratic is not None:
                for p in (p for p in group["params"] if id(p) in treated):
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        self._init_param_state()

    def __setstate__(self, state: dict[str, Any]) -> None:  # Any: attributes
        super().__setstate__(state)
        if "capture" in state:  # a copy; torch's load_state_dict comes by here too
            self.capture.connect(self._sink)
            self.layout.index(self.param_groups)
            self._start()
