"""Noticing that a run goes wrong, from its losses alone.

Two things are told apart: a loss that is no number, after which going on is useless, and a loss that rose above the one the
run started from, which a sound optimizer never does for long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 5  # losses averaged before they are compared with the start: one odd mini-batch is no divergence


@dataclass(frozen=True)
class Judgement:
    """What was noticed.

    Args:
        fatal: whether going on is useless.
        step: where.
        message: what happened and what to change.
    """

    fatal: bool
    step: int
    message: str


def judge(start: float, steps: Sequence[int], losses: Sequence[float], *, advice: str) -> Judgement | None:
    """Judge the latest losses of a run.

    Args:
        start: the loss before the first update.
        steps: of the losses.
        losses: mini-batch losses, latest last.
        advice: what to change, for the message.

    Returns:
        The worst that was noticed, or None.
    """
    for step, loss in zip(steps, losses, strict=True):
        if not math.isfinite(loss):
            return Judgement(True, step, f"the loss became {loss} at step {step} (it started at {start:.4g}): {advice}")
    if len(losses) < WINDOW:
        return None
    recent = sum(losses[-WINDOW:]) / WINDOW
    if recent > start:
        return Judgement(
            False,
            steps[-1],
            f"the loss rose above its start: {recent:.4g} on average over steps {steps[-WINDOW]} to {steps[-1]}, "
            f"{start:.4g} at the start: {advice}",
        )
    return None
