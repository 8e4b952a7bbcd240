"""Averages and solver states of a stack, brought up to date.

Averages take in what was captured since the last time; states are prepared from the damped averages. A member whose refresh
fails keeps its last state, and

- where the solver started from that state and measured that it did not arrive (damping or curvature jumped, too far for a few
  warm steps), it is prepared from scratch at the next step: `WarmStarted` then takes Cholesky. One step is made with the old
  inverse; a bad one is never applied;
- else it gets more damping, which decays again after good refreshes.

With `Policy.refresh_above` a stack that is due is first asked, by a random vector, whether its old inverse still fits, and
members that it does not fit are refreshed at the next step. Both answers are `Deferred`, so no step waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatbath.curvature import Reduction, is_parallel, join_processes, update_average
from heatbath.operators import Kronecker, Operator, map_tensors, nodes_of, same_structure, select
from heatbath.optim.corrected import correct, fold_squares
from heatbath.optim.damping import Damping
from heatbath.optim.deferred import Deferred
from heatbath.optim.policy import Policy
from heatbath.optim.stacks import Stack
from heatbath.optim.tally import Tally
from heatbath.solvers import Inverse, Solver, clips_of, misfit, usable
from heatbath.work import Work


def renew_averages(stacks: Sequence[Stack], policy: Policy, *, terms: Tensor | int | None, scale: Tensor | None) -> list[bool]:
    """Fold what was captured into the averages of all stacks that capture at this step, over all processes.

    Args:
        stacks: all stacks.
        policy: says how the loss joins its terms, and how fast averages forget.
        terms: D; a 0-d tensor for observed outputs, None if rows have to tell.
        scale: what captured gradients were multiplied by, 0-d; None: 1.

    Returns:
        Which stacks captured anything.
    """
    reduction = policy.reduction
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
    """

    solver: Solver[Any]  # Any: any state
    damping: Damping
    policy: Policy
    generator: torch.Generator | None
    tally: Tally

    @property
    def _shared(self) -> bool:
        """Whether several processes have to decide alike."""
        return self.policy.distributed and is_parallel()

    def visit(self, stack: Stack, amount: float | Tensor, *, due: bool, seen: bool) -> bool:
        """Do what is to be done for one stack at a step: what the step before left over, and what is due now.

        Args:
            stack: the stack, with a mean.
            amount: λ.
            due: whether a refresh is due.
            seen: whether it captured at this step.

        Returns:
            Whether it was renewed, all or part of it.
        """
        failed = [] if stack.failed is None else stack.failed.members()
        outgrown = [] if stack.misfit is None else stack.misfit.members()
        if stack.misfit is not None:
            self.tally.add_check(stack.length - len(outgrown))
        stack.failed = stack.misfit = None
        limit = self.policy.refresh_above
        if due and (limit is None or stack.state is None):
            self._renew(stack, amount, rotate=True, scratch=bool(failed))
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

    def _renew(self, stack: Stack, amount: float | Tensor, *, rotate: bool, scratch: bool) -> None:
        """Prepare all members."""
        curvature, work = correct(stack, rotate=rotate) if self.policy.corrected else (_mean(stack), Work())
        self.tally.add_work(work)
        state, stack.boost, again = self._prepare(
            self.damping(curvature, stack.boost * amount), stack.state, stack.boost, scratch
        )
        stack.state = state
        stack.failed = None if again is None else Deferred(again, shared=self._shared)

    def _renew_members(self, stack: Stack, amount: float | Tensor, members: Sequence[int], *, scratch: bool) -> None:
        """Prepare some members; the others keep their state."""
        index = torch.tensor(members).to(stack.boost.device, non_blocking=True)

        def part(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, index)

        def put(whole: Tensor, members: Tensor) -> Tensor:
            return whole.index_copy(0, index, members)

        boost, old = part(stack.boost), map_tensors(part, stack.state)
        operator = self.damping(map_tensors(part, _mean(stack)), boost * amount)
        state, boost, again = self._prepare(operator, old, boost, scratch)
        if not same_structure(state, old):  # a machine emulated by another law: members cannot be mixed
            self._renew(stack, amount, rotate=True, scratch=scratch)
            return
        stack.boost = put(stack.boost, boost)
        stack.state = map_tensors(put, stack.state, state)
        if again is not None:
            stack.failed = Deferred(put(torch.zeros_like(stack.boost, dtype=torch.bool), again), shared=self._shared)

    def _prepare(
        self, operator: Operator, old: Any, boost: Tensor, scratch: bool
    ) -> tuple[Any, Tensor, Tensor | None]:  # Any: states
        """A new state where it is good, else the old one; the next boost; and whom to prepare from scratch, if known."""
        state, work = self.solver.prepare(operator, previous=None if scratch else old, generator=self.generator)
        codes = self.solver.outcome(state)
        self.tally.add_prepared(work, codes, clips_of(state))
        good, again = usable(codes), None
        raised = boost * self.policy.boost
        if old is not None and not scratch and any(node.residual is not None for node in nodes_of(state, Inverse)):
            again = ~good
            raised = torch.where(again, boost, raised)
        boost = torch.where(good, (boost * self.policy.relax).clamp_min(1.0), raised)
        return state if old is None else select(good, state, old), boost, again


def _mean(stack: Stack) -> Kronecker:
    """Its averaged factors, which are there once it has captured."""
    assert stack.mean is not None
    return stack.mean
