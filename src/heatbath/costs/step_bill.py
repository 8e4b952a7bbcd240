"""What a training step costs on a digital side and a fleet of machines, amortized over the interval between refreshes.

    bill = passes + apply + first + second + (capture + refresh + programming + inversion) / every

Phases are priced one after the other, since each needs the one before; within a phase every machine works at once. The digital
side waits while machines work and machines wait while it does: nothing is overlapped, on either side of the comparison.

Where machines are fewer than the matrices that are solved with in a step (method 2), matrices displace one another, and each is
sent in every step: `programming` is then part of `first` and `second`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from heatbath.costs.bill import PARTS, Bill
from heatbath.costs.digital import Digital
from heatbath.costs.price import price
from heatbath.costs.reprogramming import send_again
from heatbath.costs.step_work import StepWork, replicate
from heatbath.machines import MachineSpec
from heatbath.work import Work

PHASES = ("passes", "capture", "refresh", "solve")
MANY = 10**12  # machines, where there is one for every matrix


@dataclass(frozen=True)
class Hardware:
    """Who does the work.

    Args:
        digital: the digital side.
        spec: the machine; None: there is none.
        half: the digital side with products in lower precision, for refreshes by products; None: it has none.
        machines: in all; None: one for every matrix that is held, times `replicas`.
        replicas: machines that hold the same matrix and share its drives.
        link: bits per second that all machines share, whatever each of them could take; None: no such limit.

    Raises:
        ValueError: no machine, or a link that is not positive.
    """

    digital: Digital
    spec: MachineSpec | None = None
    half: Digital | None = None
    machines: int | None = None
    replicas: int = 1
    link: float | None = None

    def __post_init__(self) -> None:
        if self.replicas < 1 or (self.machines is not None and self.machines < 1):
            raise ValueError(f"a fleet needs at least one machine, got machines={self.machines}, replicas={self.replicas}")
        if self.link is not None and not 0 < self.link < math.inf:
            raise ValueError(f"a link carries a positive number of bits per second, got {self.link}; None sets no limit")

    def cost(self, work: Work, *, half: bool = False) -> Bill:
        """One phase."""
        digital = self.half if half and self.half is not None else self.digital
        machines = {} if self.spec is None else {self.spec.name: self.spec}
        bill = price(work, digital=digital, machines=machines, copies=self.machines or MANY)
        return bill if self.link is None else bill + _wait(work, bill, self.link)


def _wait(work: Work, bill: Bill, link: float) -> Bill:
    """Seconds that machines wait for one link: what all bits take on it, less what the machines take anyway."""
    uploaded = sum(count * job.upload_bits for job, count in work.jobs.items())
    driven = sum(count * job.drives * (job.drive_bits + job.read_bits) for job, count in work.jobs.items())
    machines = bill.seconds - bill.seconds_by_part.get("digital", 0.0)
    wait = (uploaded + driven) / link - machines
    if wait <= 0:
        return Bill()
    share = uploaded / (uploaded + driven)
    return Bill({"upload": wait * share, "drive": wait * (1 - share)})


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


def placed(step: StepWork, hardware: Hardware, matrices: Work | None = None) -> StepWork:
    """The same step on so many machines: copies of matrices share drives, and what is displaced is sent again.

    Args:
        step: with one machine for every matrix.
        hardware: says how many there are.
        matrices: what it takes to send all of them; None: what this step sends.
    """
    step = replicate(step, hardware.replicas) if hardware.replicas > 1 else step
    matrices = step.programming if matrices is None else matrices
    solved_with = sum((step.first + step.second).jobs.values())
    if hardware.machines is None or hardware.machines >= solved_with:
        return step
    first, second = send_again(step.first, matrices), send_again(step.second, matrices)
    return replace(step, first=first, second=second, programming=Work())


def step_prices(step: StepWork, hardware: Hardware, *, half: bool = False, passes: bool = True) -> Prices:
    """Price a step.

    Args:
        step: its work.
        hardware: who does it.
        half: do products of the refresh in lower precision, where the hardware has it.
        passes: false: leave out forward, backward and outer products, which every method of one network shares.
    """
    step = placed(step, hardware)
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


@dataclass(frozen=True)
class StepBill(Bill):
    """What a step costs in the mean over one period of refreshes, by part and by phase.

    Args:
        phases: the same by phase: `passes` (forward, backward and further passes), `capture` (of factors), `refresh` (of the
            solver: digital work, programming and drives of machines) and `solve` (preconditioner, momentum and update).
        work: what each phase asks for, in the mean.
        hidden: the bill if machines were refreshed while the passes of the next step run, which would use the old inverses:
            of each refresh only the seconds that those passes do not cover are left. The accelerator's own work is not hidden.
        period: steps that the mean is over.
    """

    phases: Mapping[str, Bill] = field(default_factory=dict)
    work: Mapping[str, Work] = field(default_factory=dict)
    hidden: Bill = field(default_factory=Bill)
    period: int = 1

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Phase, seconds of digital hardware, of uploads, of machines otherwise, and in all; the last rows are totals."""
        named = {**self.phases, "total": self, "refreshes hidden": self.hidden}
        return [(name, *_columns(bill)) for name, bill in named.items()]

    def __str__(self) -> str:
        rows = [("a step", "digital", "upload", "machine", "total", "energy")]
        bills = [*self.phases.values(), self, self.hidden]
        rows += [(*row, bill.rows()[-1][2]) for row, bill in zip(self.table(), bills, strict=True)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (zip(row, widths, strict=True) for row in rows)
        return "\n".join("  ".join(word.ljust(width) for word, width in line).rstrip() for line in lines)


def _columns(bill: Bill) -> tuple[str, str, str, str]:
    """Seconds as text: digital, upload, the other parts of machines, all."""
    groups = (("digital",), ("upload",), tuple(part for part in PARTS if part not in ("digital", "upload")), PARTS)
    texts = []
    for parts in groups:
        seconds = {part: bill.seconds_by_part[part] for part in parts if part in bill.seconds_by_part}
        rows = Bill(seconds, unstated_seconds=bill.unstated_seconds & set(parts)).rows()
        texts.append(rows[-1][1] if len(rows) > 1 else "–")
    return tuple(texts)  # type: ignore[return-value]  # four of them


def mean_bill(steps: Sequence[StepWork], hardware: Hardware) -> StepBill:
    """Price steps that follow one another, and take the mean.

    Args:
        steps: one period of them; after the last comes the first again.
        hardware: who does the work.

    Raises:
        ValueError: no step, or work that the hardware cannot do.
    """
    if not steps:
        raise ValueError("a mean over no steps: give at least one")
    kinds: list[tuple[StepWork, int]] = []  # few, however long the period
    for step in steps:
        same = next((i for i, (kind, _) in enumerate(kinds) if kind == step), None)
        if same is None:
            kinds.append((step, 1))
        else:
            kinds[same] = (step, kinds[same][1] + 1)
    matrices = sum((kind.programming for kind, _ in kinds), Work())
    phases, work, saved = dict.fromkeys(PHASES, Bill()), dict.fromkeys(PHASES, Work()), Bill()
    for step, count in kinds:
        share = count / len(steps)
        placed_step = placed(step, hardware, matrices)
        machine = hardware.cost(placed_step.programming) + hardware.cost(placed_step.inversion)
        passes = hardware.cost(step.passes)
        bills = {
            "passes": passes,
            "capture": hardware.cost(step.capture),
            "refresh": hardware.cost(step.refresh, half=True) + machine,
            "solve": sum((hardware.cost(w) for w in (step.apply, placed_step.first, placed_step.second)), Bill()),
        }
        works = {
            "passes": step.passes,
            "capture": step.capture,
            "refresh": step.refresh + placed_step.programming + placed_step.inversion,
            "solve": step.apply + placed_step.first + placed_step.second,
        }
        for name in PHASES:
            phases[name] = phases[name] + bills[name] * share
            work[name] = work[name] + works[name] * share
        if machine.seconds > 0:
            covered = min(1.0, passes.seconds / machine.seconds)
            saved = saved + Bill({part: s * covered * share for part, s in machine.seconds_by_part.items()})
    total = sum(phases.values(), Bill())
    left = {part: s - saved.seconds_by_part.get(part, 0.0) for part, s in total.seconds_by_part.items()}
    hidden = Bill(left, total.joules_by_part, total.unstated_seconds, total.unstated_joules)
    plain = {name: bill for name, bill in phases.items() if bill != Bill()}
    return StepBill(
        total.seconds_by_part,
        total.joules_by_part,
        total.unstated_seconds,
        total.unstated_joules,
        phases=MappingProxyType(plain),
        work=MappingProxyType({name: work[name] for name in plain}),
        hidden=hidden,
        period=len(steps),
    )
