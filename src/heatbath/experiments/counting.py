"""All the work of a run, and in how many of its steps each part of it was asked for.

`Occasions` count the steps in which work was asked for: a total alone does not tell a stack of twelve every twelfth step from
one problem each step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from heatbath.costs.count import update_work
from heatbath.optim import NaturalGradient, Pass
from heatbath.work import Work


def total_work(
    optimizer: torch.optim.Optimizer, *, model_step: Work, steps: int, passes: Mapping[Pass, Work] | None = None
) -> Work | None:
    """Everything `steps` steps asked for: the model's passes, and the optimizer's own count or its update rule.

    Args:
        optimizer: that made the steps.
        model_step: of a forward and a backward pass.
        steps: how many.
        passes: of each further pass that the optimizer counts; those it counts and this lacks are free.

    Returns:
        None where neither is known: half a count would flatter.
    """
    if steps == 0:
        return Work()
    own = getattr(optimizer, "work", None)
    if isinstance(own, Work):
        counts = optimizer.passes if isinstance(optimizer, NaturalGradient) else {}
        further = sum(((passes or {}).get(kind, Work()) * count for kind, count in counts.items()), Work())
        return model_step * steps + own + further
    update = update_work(optimizer)
    return None if update is None else model_step * steps + update * steps


class Occasions:
    """In how many steps of a run each kernel and job was asked for.

    Attributes:
        steps: a `Work` whose counts are these numbers of steps.
    """

    def __init__(self) -> None:
        self.steps = self._seen = Work()

    def see(self, total: Work) -> None:
        """Count one step.

        Args:
            total: everything asked for until its end.
        """
        seen = self._seen
        kernels = {kernel: 1.0 for kernel, count in total.kernels.items() if count > seen.kernels.get(kernel, 0)}
        jobs = {job: 1.0 for job, count in total.jobs.items() if count > seen.jobs.get(job, 0)}
        self.steps, self._seen = self.steps + Work(kernels, jobs), total

    def load(self, steps: Work, total: Work) -> None:
        """Go on from a checkpoint.

        Args:
            steps: as it was.
            total: everything asked for until then.
        """
        self.steps, self._seen = steps, total


def split_by_occasions(work: Work, occasions: Work) -> list[tuple[Work, float]]:
    """Take the work of a run apart by how often its parts ran.

    Args:
        work: of all steps.
        occasions: `Occasions.steps` of the same run.

    Returns:
        parts that add up to `work`, each with the number of steps it ran in.
    """
    parts: dict[float, Work] = {}
    for kernel, count in work.kernels.items():
        steps = occasions.kernels[kernel]
        parts[steps] = parts.get(steps, Work()) + Work.of(kernel, count)
    for job, count in work.jobs.items():
        steps = occasions.jobs[job]
        parts[steps] = parts.get(steps, Work()) + Work.of(job, count)
    return [(part, steps) for steps, part in parts.items()]
