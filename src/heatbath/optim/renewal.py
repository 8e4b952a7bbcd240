"""Averages and solver states of a stack, brought up to date.

Averages take in what was captured since the last time; states are prepared from the damped averages. A member whose refresh
fails keeps its last state, and

- where the solver started from that state and measured that it did not arrive (damping or curvature jumped, too far for a few
  warm steps), it is prepared from scratch at the next step: `WarmStarted` then takes Cholesky. One step is made with the old
  inverse; a bad one is never applied;
- else it gets more damping, which decays again after good refreshes.

With `Policy.refresh_above` a stack that is due is first asked, by a random vector, whether its old inverse still fits, and
members that it does not fit are refreshed at the next step. Both answers are `Deferred`, so no step waits for a device.

With `Policy.overlap` what is due at a step is prepared `beside` it, and judged and adopted at the next visit; flags of what
failed are read at the visit after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heatbath.curvature import Reduction, is_parallel, join_processes, update_average
from heatbath.operators import Kronecker, Operator, map_tensors, nodes_of, same_structure, select, upload
from heatbath.optim.beside import Streams, queue
from heatbath.optim.corrected import correct, fold_squares
from heatbath.optim.damping import Damping
from heatbath.optim.deferred import Deferred
from heatbath.optim.policy import Policy
from heatbath.optim.stacks import Pending, Stack
from heatbath.optim.tally import Tally
from heatbath.solvers import Inverse, Solver, clips_of, misfit, usable
from heatbath.work import Work

if TYPE_CHECKING:
    from heatbath.optim.natural import NaturalGradient


def renew_averages(stacks: Sequence[Stack], policy: Policy, *, terms: Tensor | int | None, scale: Tensor | None) -> list[bool]:
    """Fold what was captured into the averages of all stacks that capture at this step, over all processes.

    Args:
        stacks: all stacks.
        policy: says how the loss joins its terms, and how fast averages forget.
        terms: D; a 0-d tensor where outputs were observed, None if rows have to tell.
        scale: what captured gradients were multiplied by, 0-d; None: 1.

    Returns:
        Which stacks captured anything.
    """
    reduction = policy.reduction
    if isinstance(terms, Tensor) and not policy.fisher.observes and reduction is not Reduction.SUM:
        for sums in (stack.sums for stack in stacks if stack.sums.filled):  # whole terms, as pulled vectors bring them
            for tensor in sums.of_gradients():
                tensor.mul_(terms.to(tensor).square())
    if policy.distributed and is_parallel():
        terms = join_processes([stack.sums for stack in stacks if stack.awake], reduction, terms)
        reduction = Reduction.SUM
    seen_by = [stack.sums.filled for stack in stacks]
    for stack in stacks:
        if stack.sums.filled:
            squares = stack.sums.collect_squares(reduction, terms=terms, scale=scale)
            fold_squares(stack, squares, policy.decay)
            batch, seen = stack.sums.collect(reduction, terms=terms, scale=scale)
            options: dict[str, Any] = {"decay": policy.decay, "spans": stack.sums.spans}
            stack.mean = update_average(stack.mean, batch, ages=stack.ages, seen=seen, **options)
    return seen_by


@dataclass(frozen=True)
class Renewal:
    """How states of stacks are renewed.

    Args:
        solver: for the damped curvature.
        damping: how λ joins it.
        policy: says whether curvature is corrected, how damping rises and falls, and when an old inverse may stay.
        generator: of noisy solvers, and of probes.
        tally: counts.
        streams: of kinds of devices that can prepare beside the model's own passes.
    """

    solver: Solver[Any]  # Any: any state
    damping: Damping
    policy: Policy
    generator: torch.Generator | None
    tally: Tally
    streams: Mapping[str, Streams] = field(default_factory=dict)

    @staticmethod
    def of(optimizer: NaturalGradient) -> Renewal:
        """By an optimizer's solver, damping and policy as they are now."""
        values = optimizer.solver, optimizer.damping, optimizer.policy, optimizer.generator, optimizer._tally
        return Renewal(*values, optimizer._streams)

    @property
    def _shared(self) -> bool:
        """Whether several processes have to decide alike."""
        return self.policy.distributed and is_parallel()

    def visit(self, stack: Stack, amount: float | Tensor, *, due: bool, seen: bool, new: bool = False) -> bool:
        """Do what is to be done for one stack at a step: what the step before left over, and what is due now.

        Args:
            stack: the stack, with a mean.
            amount: λ.
            due: whether a refresh is due.
            seen: whether it captured at this step.
            new: whether it holds blocks of which its state knows nothing; then it is renewed from scratch and used at once.

        Returns:
            Whether it was renewed, all or part of it.
        """
        failed = [] if stack.failed is None else stack.failed.members()
        outgrown = [] if stack.misfit is None else stack.misfit.members()
        if stack.misfit is not None:
            self.tally.add_check(stack.length - len(outgrown))
        stack.failed, stack.unread, stack.misfit = stack.unread, None, None
        if stack.pending is not None:
            stack.failed = self._deferred(self._adopt(stack))
        elif stack.failed is not None and self._shared:
            stack.failed = stack.failed.joined(stack.boost.device)
        limit = self.policy.refresh_above
        if due and (new or limit is None or stack.state is None):
            self._renew(stack, amount, rotate=True, scratch=new or bool(failed), late=not new)
            return True
        if failed or outgrown:
            self._renew_members(stack, amount, sorted({*failed, *outgrown}), scratch=bool(failed))
        elif due and limit is not None:
            curvature = self.damping(_mean(stack), stack.boost * amount)
            residual = misfit(stack.state, curvature, self.generator)
            stack.misfit = Deferred(~(residual <= limit), shared=self._shared)
        elif seen and self.policy.corrected:
            self._renew(stack, amount, rotate=False, scratch=False)
        return bool(failed or outgrown)

    def settle(self, stack: Stack) -> None:
        """Adopt now what the next visit would, which changes no step: before a checkpoint.

        One process alone may save, so flags are joined with those of others at the visit, where all do it.
        """
        if stack.pending is not None:
            again = self._adopt(stack)
            stack.unread = None if again is None else Deferred(again)

    def _renew(self, stack: Stack, amount: float | Tensor, *, rotate: bool, scratch: bool, late: bool = True) -> None:
        """Prepare all members."""
        curvature, work = correct(stack, rotate=rotate) if self.policy.corrected else (_mean(stack), Work())
        self.tally.add_work(work)
        self._prepare(stack, curvature, stack.boost * amount, stack.state, None, scratch, late=late)

    def _renew_members(self, stack: Stack, amount: float | Tensor, members: Sequence[int], *, scratch: bool) -> None:
        """Prepare some members; the others keep their state."""
        if len(members) == stack.length:
            self._renew(stack, amount, rotate=True, scratch=scratch)
            return
        index = upload(members, stack.boost.device)
        curvature, old = _part(_mean(stack), index), _part(stack.state, index)
        self._prepare(stack, curvature, _part(stack.boost, index) * amount, old, index, scratch)

    def _prepare(
        self,
        stack: Stack,
        curvature: Operator,
        amount: Tensor,
        old: Any,  # Any: a state
        index: Tensor | None,
        scratch: bool,
        *,
        late: bool = True,
    ) -> None:
        """Prepare what is damped by `amount`; adopt it now, or at the next visit if it may be late (a first state may not)."""

        def prepare(curvature: Operator, amount: Tensor, previous: Any) -> Any:  # Any: states
            state, work = self.solver.prepare(self.damping(curvature, amount), previous=previous, generator=self.generator)
            self.tally.add_work(work)
            return state

        late = late and self.policy.overlap and stack.state is not None
        device = stack.boost.device
        streams = self.streams.get(device.type) if late else None
        queued = queue(streams, device, prepare, curvature, amount, None if scratch else old)
        stack.pending = Pending(queued, index, scratch)
        if not late:
            stack.failed = self._deferred(self._adopt(stack))

    def _deferred(self, flags: Tensor | None) -> Deferred | None:
        """Flags on their way to the host, joined with those of other processes."""
        return None if flags is None else Deferred(flags, shared=self._shared)

    def _adopt(self, stack: Stack) -> Tensor | None:
        """Judge what was prepared: a new state where it is good, the next boost; returns whom to prepare again, if known."""
        assert stack.pending is not None
        pending, stack.pending = stack.pending, None
        state = pending.queued.join()
        old, boost = _part(stack.state, pending.index), _part(stack.boost, pending.index)
        codes = self.solver.outcome(state)
        self.tally.add_prepared(Work(), codes, clips_of(state))
        if pending.index is not None and not same_structure(state, old):  # a machine emulated by another law: no mixing
            return torch.ones_like(stack.boost, dtype=torch.bool)
        good, again = usable(codes), None
        raised = boost * self.policy.boost
        if old is not None and not pending.scratch and any(node.residual is not None for node in nodes_of(state, Inverse)):
            again = ~good
            raised = torch.where(again, boost, raised)
        boost = torch.where(good, (boost * self.policy.relax).clamp_min(1.0), raised)
        state = state if old is None else select(good, state, old)
        if pending.index is not None:
            index = pending.index
            boost, state = _put(stack.boost, boost, index), _put(stack.state, state, index)
            again = None if again is None else _put(torch.zeros_like(boost, dtype=torch.bool), again, index)
        stack.boost, stack.state = boost, state
        return again


def _part(tree: Any, index: Tensor | None) -> Any:  # Any: a tree of tensors `[L, …]`
    """Some members of a stack; None: all."""
    return tree if index is None else map_tensors(lambda tensor: tensor.index_select(0, index), tree)


def _put(whole: Any, members: Any, index: Tensor) -> Any:  # Any: as above
    """A stack with some members exchanged."""
    return map_tensors(lambda old, new: old.index_copy(0, index, new), whole, members)


def _mean(stack: Stack) -> Kronecker:
    """Its averaged factors, which are there once it has captured."""
    assert stack.mean is not None
    return stack.mean
