"""Work to a bill: seconds and joules on given hardware.

The digital side does its kernels one kind after the other; then the jobs, which are independent of one another, run on a fleet
of `copies` machines of each kind, all at once. Time is that of the machine that is done last, energy that of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from heatbath.costs.analog import job_bill
from heatbath.costs.bill import Bill
from heatbath.costs.digital import Digital
from heatbath.costs.fleet import assign
from heatbath.costs.pbits import pbit_bill
from heatbath.machines import MachineSpec, PbitSpec, pbit_presets, presets
from heatbath.work import Job, Work

Spec = MachineSpec | PbitSpec


def price(work: Work, *, digital: Digital, machines: Mapping[str, Spec] | None = None, copies: int = 1) -> Bill:
    """What `work` costs.

    Price the work of one step and scale the bill, rather than the other way round: kernels and jobs of one `Work` are taken to
    be ready at the same time.

    Args:
        work: what was asked of hardware.
        digital: who does the kernels.
        machines: specifications by the names that the jobs carry; None: the presets.
        copies: machines of each kind, working side by side.

    Raises:
        ValueError: a job on a machine that is not in `machines`, or with more cells than it has; fewer than one copy.
    """
    machines = {**presets(), **pbit_presets()} if machines is None else machines
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    fleets: dict[str, list[tuple[Bill, float]]] = {}
    for job, count in work.jobs.items():
        fleets.setdefault(job.machine, []).append((_job_bill(job, machines), count))
    bill = _digital_bill(work, digital)
    if fleets:
        bill = bill + _fleets_bill([_fleet_bill(jobs, copies) for jobs in fleets.values()])
    return bill


def _job_bill(job: Job, machines: Mapping[str, Spec]) -> Bill:
    spec = _machine(job, machines)
    return pbit_bill(job, spec) if isinstance(spec, PbitSpec) else job_bill(job, spec)


def _machine(job: Job, machines: Mapping[str, Spec]) -> Spec:
    if job.machine not in machines:
        known = ", ".join(machines) or "none"
        raise ValueError(f"the work visited machine {job.machine!r}, given are {known}; pass it in machines={{name: spec}}")
    spec = machines[job.machine]
    if spec.cells is not None and job.cells > spec.cells:
        raise ValueError(f"a job of {job.cells} cells does not fit machine {job.machine!r} of {spec.cells}; pass a larger one")
    return spec


def _digital_bill(work: Work, digital: Digital) -> Bill:
    seconds = digital.seconds(work)
    if seconds == 0:
        return Bill()
    if digital.watts is None:
        return Bill({"digital": seconds}, unstated_joules=frozenset({"digital"}))
    return Bill({"digital": seconds}, {"digital": seconds * digital.watts})


def _fleet_bill(jobs: list[tuple[Bill, float]], copies: int) -> Bill:
    """Time of the machine that is done last, energy of all."""
    total = sum((bill * count for bill, count in jobs), Bill())
    if copies >= sum(math.ceil(count) for _, count in jobs):  # a machine for every job: nothing to plan
        last = max((bill * min(count, 1.0) for bill, count in jobs), key=lambda bill: bill.seconds)
        return Bill(last.seconds_by_part, total.joules_by_part, total.unstated_seconds, total.unstated_joules)
    plan = assign([(bill.seconds, count) for bill, count in jobs], machines=copies)
    loads = (sum((bill * count for (bill, _), count in zip(jobs, load, strict=True)), Bill()) for load in plan)
    last = max(loads, key=lambda bill: bill.seconds, default=Bill())
    return Bill(last.seconds_by_part, total.joules_by_part, total.unstated_seconds, total.unstated_joules)


def _fleets_bill(fleets: list[Bill]) -> Bill:
    total = sum(fleets, Bill())
    last = max(fleets, key=lambda bill: bill.seconds)
    return Bill(last.seconds_by_part, total.joules_by_part, total.unstated_seconds, total.unstated_joules)
