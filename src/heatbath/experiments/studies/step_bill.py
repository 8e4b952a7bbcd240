"""What a training step costs on a digital side and a fleet of machines, amortized over the interval between refreshes.

    bill = passes + apply + first + second + (capture + refresh + programming + inversion) / every

Phases are priced one after the other, since each needs the one before; within a phase every machine works at once. The digital
side waits while machines work and machines wait while it does: nothing is overlapped, on either side of the comparison.

Where machines are fewer than the matrices that are solved with in a step (method 2), matrices displace one another, and each is
sent in every step: `programming` is then part of `first` and `second`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from heatbath.costs import Bill, Digital, price, send_again
from heatbath.experiments.studies.step_work import StepWork, replicate
from heatbath.machines import MachineSpec
from heatbath.work import Work

MANY = 10**12  # machines, where there is one for every matrix


@dataclass(frozen=True)
class Hardware:
    """Who does the work.

    Args:
        digital: the digital side.
        spec: the machine.
        half: the digital side with products in lower precision, for refreshes by products; None: it has none.
        machines: in all; None: one for every matrix that is held, times `replicas`.
        replicas: machines that hold the same matrix and share its drives.

    Raises:
        ValueError: no machine.
    """

    digital: Digital
    spec: MachineSpec
    half: Digital | None = None
    machines: int | None = None
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.replicas < 1 or (self.machines is not None and self.machines < 1):
            raise ValueError(f"a fleet needs at least one machine, got machines={self.machines}, replicas={self.replicas}")

    def cost(self, work: Work, *, half: bool = False) -> Bill:
        """One phase."""
        digital = self.half if half and self.half is not None else self.digital
        return price(work, digital=digital, machines={self.spec.name: self.spec}, copies=self.machines or MANY)


@dataclass(frozen=True)
class Prices:
    """A step in two parts.

    Args:
        always: of every step.
        renewed: what a step costs more in which factors and solver are renewed.
    """

    always: Bill
    renewed: Bill

    def per_step(self, every: int) -> Bill:
        """Mean over the long run, with a refresh every `every` steps."""
        return self.always + self.renewed * (1 / every)


def step_prices(step: StepWork, hardware: Hardware, *, half: bool = False, passes: bool = True) -> Prices:
    """Price a step.

    Args:
        step: its work.
        hardware: who does it.
        half: do products of the refresh in lower precision, where the hardware has it.
        passes: false: leave out forward, backward and outer products, which every method of one network shares.
    """
    step = replicate(step, hardware.replicas) if hardware.replicas > 1 else step
    solved_with = sum((step.first + step.second).jobs.values())
    if hardware.machines is not None and hardware.machines < solved_with:
        first, second = send_again(step.first, step.programming), send_again(step.second, step.programming)
        step = replace(step, first=first, second=second, programming=Work())
    shared = [step.passes] if passes else []
    always = [hardware.cost(work) for work in (*shared, step.apply, step.first, step.second)]
    renewed = [hardware.cost(work) for work in (*([step.capture] if passes else []), step.programming, step.inversion)]
    return Prices(sum(always, Bill()), sum(renewed, hardware.cost(step.refresh, half=half)))


def cell_seconds(step: StepWork, every: int) -> float:
    """Seconds that cells are at work in a step, summed over all cells: times the power of a cell it is their energy."""

    def at_work(work: Work) -> float:
        jobs = work.jobs.items()
        return float(sum(n * job.cells * job.drives * (job.settle_seconds + job.read_seconds) for job, n in jobs))

    return at_work(step.first) + at_work(step.second) + (at_work(step.inversion) + at_work(step.programming)) / every


def by_fluctuations(step: StepWork, spec: MachineSpec, *, error: float) -> StepWork:
    """The same step with matrices inverted from the covariance of undriven cells, as first published.

    A relative error ε takes at least (n + 1)/ε² time constants, whatever the temperature, with one read in each: a lower bound.

    Args:
        step: one that inverts by drives.
        spec: the machine.
        error: ε.

    Raises:
        ValueError: an error that is not positive.
    """
    if not error > 0:
        raise ValueError(f"the relative error must be positive, got {error}")
    jobs = {}
    for job, count in step.inversion.jobs.items():
        reads = math.ceil((job.cells + 1) / error**2)
        watched = replace(
            job,
            drives=1,
            drive_bits=0.0,
            read_bits=float(job.cells * (spec.read_bits or 32) * reads),
            settle_seconds=spec.default_settle_seconds,
            read_seconds=reads * spec.time_constant,
            conversions_in=0,
            conversions_out=job.cells * reads,
        )
        jobs[watched] = count
    return replace(step, inversion=Work(jobs=jobs))
