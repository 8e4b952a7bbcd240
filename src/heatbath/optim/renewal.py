"""Averages and solver states of a stack, brought up to date.

Averages take in what was captured since the last time; states are prepared from the damped averages. Members whose refresh
fails keep their last state and get more damping, which decays again after good ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from heatbath.curvature import Reduction, is_parallel, join_processes, update_average
from heatbath.operators import select
from heatbath.optim.corrected import correct, fold_squares
from heatbath.optim.damping import Damping
from heatbath.optim.policy import Policy
from heatbath.optim.stacks import Stack
from heatbath.solvers import Solver, clips_of, usable
from heatbath.work import Work


def renew_averages(stacks: Sequence[Stack], policy: Policy, *, terms: Tensor | int | None, scale: Tensor | None) -> None:
    """Fold what was captured into the averages of all stacks, over all processes.

    Args:
        stacks: all stacks.
        policy: says how the loss joins its terms, and how fast averages forget.
        terms: D; a 0-d tensor for observed outputs, None if rows have to tell.
        scale: what captured gradients were multiplied by, 0-d; None: 1.
    """
    reduction = policy.reduction
    if policy.distributed and is_parallel():
        terms = join_processes([stack.sums for stack in stacks], reduction, terms)
        reduction = Reduction.SUM
    for stack in stacks:
        if stack.sums.filled:
            squares = stack.sums.collect_squares(reduction, terms=terms, scale=scale)
            fold_squares(stack, squares, policy.decay)
            batch, seen = stack.sums.collect(reduction, terms=terms, scale=scale)
            options: dict[str, Any] = {"decay": policy.decay, "spans": stack.sums.spans}
            stack.mean = update_average(stack.mean, batch, ages=stack.ages, seen=seen, **options)


def renew_state(
    stack: Stack,
    policy: Policy,
    *,
    solver: Solver[Any],  # Any: any state
    damping: Damping,
    amount: float | Tensor,
    generator: torch.Generator | None,
    rotate: bool,
) -> tuple[Work, Tensor, Tensor | None]:
    """Prepare the solver for the damped average of one stack.

    Args:
        stack: the stack, with a mean.
        policy: says whether curvature is corrected, and how damping rises and falls.
        solver: for the damped curvature.
        damping: how λ joins it.
        amount: λ.
        generator: of noisy solvers.
        rotate: find eigenbases anew, where curvature is corrected.

    Returns:
        What it took, how each member ended, codes `[L]`, and what machines clipped.
    """
    curvature, extra = correct(stack, rotate=rotate) if policy.corrected else (stack.mean, Work())
    assert curvature is not None
    state, work = solver.prepare(damping(curvature, stack.boost * amount), previous=stack.state, generator=generator)
    codes = solver.outcome(state)
    good = usable(codes)
    stack.boost = torch.where(good, (stack.boost * policy.relax).clamp_min(1.0), stack.boost * policy.boost)
    stack.state = state if stack.state is None else select(good, state, stack.state)
    return work + extra, codes, clips_of(state)
