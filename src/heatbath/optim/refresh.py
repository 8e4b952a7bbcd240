"""Averages and solver states of a stack, brought up to date.

Averages take in what was captured since the last time; states are prepared from the damped averages. A member whose refresh
fails keeps its last state and gets more damping, which decays again after good refreshes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatbath.curvature import Reduction, is_parallel, join_processes, update_average
from heatbath.operators import select
from heatbath.optim.corrected import correct, fold_squares
from heatbath.optim.damping import Damping
from heatbath.optim.policy import Policy
from heatbath.optim.stacks import Stack
from heatbath.optim.tally import Tally
from heatbath.solvers import Solver, clips_of, usable
from heatbath.work import Work

DAMPING_INCREASE = 10.0  # factor on a member's damping after a failed refresh
DAMPING_DECAY = 0.5  # factor on that increase after a good one, down to none


def update_averages(stacks: Sequence[Stack], policy: Policy, *, terms: Tensor | int | None, scale: Tensor | None) -> list[bool]:
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
    captured = [stack.sums.filled for stack in stacks]
    for stack in stacks:
        if stack.sums.filled:
            squares = stack.sums.collect_squares(reduction, terms=terms, scale=scale)
            fold_squares(stack, squares, policy.decay)
            batch, seen = stack.sums.collect(reduction, terms=terms, scale=scale)
            stack.mean = update_average(
                stack.mean, batch, ages=stack.ages, seen=seen, decay=policy.decay, spans=stack.sums.spans
            )
    return captured


@dataclass(frozen=True)
class Refresher:
    """How states of stacks are refreshed.

    Args:
        solver: for the damped curvature.
        damping: how λ joins it.
        corrected: correct eigenvalues.
        generator: of noisy solvers.
        tally: counts.
    """

    solver: Solver[Any]  # Any: any state
    damping: Damping
    corrected: bool
    generator: torch.Generator | None
    tally: Tally

    def refresh(self, stack: Stack, amount: float | Tensor, *, rotate: bool = True, cold: bool = False) -> None:
        """Prepare the state of a stack with a mean, and keep the last one of members for which that fails.

        Args:
            stack: the stack.
            amount: λ.
            rotate: find eigenbases anew, where eigenvalues are corrected.
            cold: start without the last state, since it knows nothing of a block that is new.
        """
        assert stack.mean is not None
        curvature, work = correct(stack, rotate=rotate) if self.corrected else (stack.mean, Work())
        self.tally.add_work(work)
        damped = self.damping(curvature, stack.boost * amount)
        previous = None if cold else stack.state
        state, work = self.solver.prepare(damped, previous=previous, generator=self.generator)
        self.tally.add_work(work)
        codes = self.solver.outcome(state)
        self.tally.add_prepared(Work(), codes, clips_of(state))
        good = usable(codes)
        decayed = (stack.boost * DAMPING_DECAY).clamp_min(1.0)
        stack.boost = torch.where(good, decayed, stack.boost * DAMPING_INCREASE)
        stack.state = state if stack.state is None else select(good, state, stack.state)
