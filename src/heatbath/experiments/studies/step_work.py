"""What one training step asks of hardware, by phase, counted by running the optimizer itself on torch's `meta` device.

Work is counted from shapes alone, so the library's own K-FAC with its own solvers can be stepped without data or memory, and
what it counts is what a real run counts. A step of K-FAC falls into

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

import torch
from torch import nn

from heatbath.experiments.counting import model_work, update_work
from heatbath.experiments.studies.networks import Network
from heatbath.optim import KFAC, KLClip, Policy
from heatbath.solvers import Solver
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


def first_order_step(network: Network, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> StepWork:
    """A step of an optimizer whose update rule is known to `update_work`.

    Args:
        network: the shapes.
        make: returns the optimizer.

    Raises:
        ValueError: its update rule is not known.
    """
    with torch.device("meta"):
        model, batch = network.model(), network.batch()
    optimizer = make(list(model.parameters()))
    update = update_work(optimizer)
    if update is None:
        raise ValueError(f"the update rule of {type(optimizer).__name__} is not counted; known are SGD, Adam, AdamW, NAdam")
    return StepWork(model_work(model, network.loss, batch), update)


@dataclass(frozen=True)
class Form:
    """How large factors are kept.

    Args:
        title: for people.
        max_dim: of `Policy`; None: in full.
        rank: of `Policy`, of factors above `max_dim`; None: they are cut into blocks.
    """

    title: str
    max_dim: int | None = None
    rank: int | None = None


FULL = Form("factors in full")
BLOCKS = Form("blocks of 1,024", 1024)
DEFAULT = Form(f"hb.KFAC's default (sketches above {Policy().max_dim:,})", Policy().max_dim, Policy().rank)


def second_order_step(network: Network, solver: Solver[Any], *, passes: Work | None = None, form: Form = FULL) -> StepWork:
    """A step of K-FAC in the long run: its second refresh is counted, which may start from the first.

    Args:
        network: the shapes.
        solver: of the damped factors; `Factorwise(…)`, or `Eigen()`. A machine's tolerance must be 0: the emulator may not
            look at values, of which there are none.
        passes: forward and backward, if they are known already.
        form: of large factors. Another form is another preconditioner, whose steps have to be measured as well.
    """
    with torch.device("meta"):
        model, batch = network.model(), network.batch()
    if passes is None:
        passes = model_work(model, network.loss, batch)
    policy = Policy(
        factor_every=1,
        refresh_every=2,
        patience=0,
        max_dim=form.max_dim,
        rank=form.rank,
        skip=network.skip,
        distributed=False,
        trust=KLClip(),
    )
    optimizer = KFAC(model, solver=solver, policy=policy)
    for refreshed in (True, False, True, False):
        before = optimizer.work
        optimizer.zero_grad()
        network.loss(model(*batch[:-1]), batch[-1]).backward()
        capture = _minus(optimizer.work, before)
        optimizer.step()
        if refreshed:
            whole = _minus(optimizer.work, before)
        else:
            apply = _minus(_minus(optimizer.work, before), capture)
    refresh = _minus(_minus(whole, capture), apply)
    stacks = [(stack.domain, stack.length) for stack in optimizer.stacks]
    first, second = split_sides(_jobs(apply), stacks)
    programmed = {job for job in refresh.jobs if job.upload_bits > 0}
    return StepWork(
        passes=passes,
        apply=Work(apply.kernels),
        capture=capture,
        refresh=Work(refresh.kernels),
        programming=Work(jobs={job: count for job, count in refresh.jobs.items() if job in programmed}),
        inversion=Work(jobs={job: count for job, count in refresh.jobs.items() if job not in programmed}),
        first=first,
        second=second,
    )


def _jobs(work: Work) -> Work:
    return Work(jobs=work.jobs)


def _minus(whole: Work, part: Work) -> Work:
    """What is left of `whole` without `part`, which it holds."""
    left = whole + part * -1
    return Work(
        {kernel: count for kernel, count in left.kernels.items() if count > 1e-9},
        {job: count for job, count in left.jobs.items() if count > 1e-9},
    )


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
