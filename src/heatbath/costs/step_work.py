"""The work of one training step, by phase.

    passes      forward and backward, every step
    capture     outer products of layer inputs and gradients, where factors are renewed
    refresh     digital work of preparing the solver, where it is refreshed
    programming matrices sent to machines, at a refresh
    inversion   drives at a refresh (method 1)
    apply       digital work of the preconditioner and the update, every step
    sides       drives of every step (method 2): first the inputs' side, then the outputs' side, which needs its result

Machines of one phase work side by side, phases one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from heatbath.work import Job, Work

NOTHING = Work()


@dataclass(frozen=True)
class StepWork:
    """Work of the phases of a step; see the module."""

    passes: Work
    apply: Work
    capture: Work = NOTHING
    refresh: Work = NOTHING
    programming: Work = NOTHING
    inversion: Work = NOTHING
    first: Work = NOTHING
    second: Work = NOTHING

    def each(self, change: Callable[[Work], Work]) -> StepWork:
        """The same with every phase changed."""
        return StepWork(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Plain values; `from_json` is the inverse."""
        return {field.name: getattr(self, field.name).to_json() for field in fields(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> StepWork:  # Any: as above
        """Rebuild from `to_json`."""
        return StepWork(**{name: Work.from_json(work) for name, work in data.items()})


def split_sides(drives: Work, stacks: Sequence[tuple[tuple[int, int], int]]) -> tuple[Work, Work]:
    """Sort the drives of a step into those on the inputs' side, which come first, and those on the outputs' side.

    A stack of L blocks (O, I) sends O drives to each of L machines of I cells, then I drives to each of L machines of O cells.

    Args:
        drives: of all stacks.
        stacks: shape (O, I) and length L of each.
    """
    inputs: Counter[tuple[int, int]] = Counter()
    for (rows, columns), length in stacks:
        inputs[columns, rows] += length
    first: dict[Job, float] = {}
    second: dict[Job, float] = {}
    for job, count in drives.jobs.items():
        share = min(inputs[job.cells, job.drives], count)
        first |= {job: share} if share else {}
        second |= {job: count - share} if count > share else {}
    return Work(jobs=first), Work(jobs=second)


def replicate(step: StepWork, machines: int) -> StepWork:
    """The same with every matrix held by several machines, which share its drives; each of them is programmed.

    Args:
        step: with one machine for a matrix.
        machines: that hold one matrix; more than there are drives stay idle and are not programmed.

    Raises:
        ValueError: no machine.
    """
    if machines < 1:
        raise ValueError(f"a matrix needs at least one machine, got {machines}")
    most = max((job.drives for phase in (step.inversion, step.first, step.second) for job in phase.jobs), default=1)
    return step.each(lambda work: _replicate(work, min(machines, most)))


def _replicate(work: Work, machines: int) -> Work:
    jobs: dict[Job, float] = {}
    for job, count in work.jobs.items():
        share = job if job.drives == 0 else replace(job, drives=-(-job.drives // machines))
        times = machines if job.drives == 0 else job.drives / share.drives
        jobs[share] = jobs.get(share, 0.0) + count * times
    return Work(work.kernels, jobs)


def rescaled(step: StepWork, *, time: float = 1.0, bits: float = 1.0) -> StepWork:
    """The same on other machines.

    Args:
        step: as counted.
        time: factor on settling and reading, for another time constant or another number of them.
        bits: factor on all numbers that are sent, for other converters.
    """

    def change(work: Work) -> Work:
        jobs: dict[Job, float] = {}
        for job, count in work.jobs.items():
            new = replace(
                job,
                settle_seconds=job.settle_seconds * time,
                read_seconds=job.read_seconds * time,
                upload_bits=job.upload_bits * bits,
                drive_bits=job.drive_bits * bits,
                read_bits=job.read_bits * bits,
            )
            jobs[new] = jobs.get(new, 0.0) + count
        return Work(work.kernels, jobs)

    return step.each(change)
