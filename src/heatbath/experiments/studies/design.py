"""The cheapest machine that keeps the benefit: training says which precision does, prices say what it costs.

Trials train the recipe with AdamW, with digital K-FAC, and with thermodynamic K-FAC at every precision (bits of all converters,
settling time in τ), all with the recipe's own hyper-parameters. The benefit is the steps K-FAC saves on the way to the recipe's
target; a precision keeps it if it saves at least a share of them by itself: matrices that rounding made indefinite are handed
to the digital side, so a machine of too few bits can look perfect by doing nothing, and runs that did so do not count.

Every machine (precision, τ, how many) is then priced, and the cheapest that keeps the benefit within the budget is the answer.
What a machine costs to build is not published, so it is ordered by a proxy: bits held in couplings, machines · cells² · matrix
bits; among equals the slowest τ is the easiest to build.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from heatbath.costs import Bill, Digital
from heatbath.experiments.choice import Choice
from heatbath.experiments.optimizers import THERMODYNAMIC, choose
from heatbath.experiments.records import Record
from heatbath.experiments.studies.networks import shapes_of
from heatbath.experiments.studies.runtime import count, methods, with_time_constant
from heatbath.experiments.studies.step_bill import Hardware, Prices, step_prices
from heatbath.experiments.studies.step_work import StepWork, rescaled
from heatbath.experiments.trials import Recipe, Trial, Watch, run_trials, unwatched
from heatbath.machines import MachineSpec, with_bits
from heatbath.optim import Policy
from heatbath.solvers import Outcome

ROUTES = {"thermodynamic-inverse": "inverse", "thermodynamic-solve": "solve"}  # solvers, and the methods that count them
TIME_CONSTANTS = (1e-6, 1e-7, 1e-8)


@dataclass(frozen=True)
class Precision:
    """What decides how well a machine solves.

    Args:
        solver: of K-FAC's factors, a key of `THERMODYNAMIC`.
        bits: of all converters.
        settle: time to converge, in τ.
    """

    solver: str
    bits: int
    settle: float


@dataclass(frozen=True)
class Tried:
    """How many steps an optimizer took.

    Args:
        title: of the optimizer.
        steps: to the target for each seed; None where a run never was there.
        precision: of the machine; None for digital ones.
        fallback: largest share over the seeds of prepared blocks that the machine handed to the digital side.
    """

    title: str
    steps: tuple[int | None, ...]
    precision: Precision | None = None
    fallback: float = 0.0

    @property
    def mean(self) -> float | None:
        """Mean steps; None if a seed never arrived."""
        known = [steps for steps in self.steps if steps is not None]
        return sum(known) / len(known) if len(known) == len(self.steps) else None


@dataclass(frozen=True)
class Candidate:
    """A machine, priced.

    Args:
        tried: its precision, and what training with it took.
        tau: time constant, in seconds.
        machines: how many.
        cells: of each.
        bill: of a step.
        kept: whether the benefit is kept.
    """

    tried: Tried
    tau: float
    machines: int
    cells: int
    bill: Bill
    kept: bool

    @property
    def couplings(self) -> float:
        """Bits held in couplings by all machines, the proxy for what they cost."""
        assert self.tried.precision is not None
        return float(self.machines) * self.cells**2 * self.tried.precision.bits


@dataclass(frozen=True)
class Budget:
    """What a step may take; None: no limit.

    Args:
        seconds: a step.
        joules: a step; a bill with an unstated part never meets it.
        slowdown: a step, over the best digital K-FAC's.

    Raises:
        ValueError: no limit at all, or one that is not positive.
    """

    seconds: float | None = None
    joules: float | None = None
    slowdown: float | None = None

    def __post_init__(self) -> None:
        given = [limit for limit in (self.seconds, self.joules, self.slowdown) if limit is not None]
        if not given or min(given) <= 0:
            raise ValueError("a budget needs a positive limit: give --seconds, --joules or --slowdown")

    def allows(self, bill: Bill, digital: float) -> bool:
        """Whether a bill is within it."""
        if self.seconds is not None and bill.seconds > self.seconds:
            return False
        if self.joules is not None and (bill.unstated_joules or bill.joules > self.joules):
            return False
        return self.slowdown is None or bill.seconds <= self.slowdown * digital


@dataclass(frozen=True)
class Designed:
    """What the study found.

    Args:
        baseline: AdamW.
        digital: K-FAC by Cholesky.
        precisions: thermodynamic ones.
        digital_seconds: of a step of the best digital K-FAC.
        candidates: all machines.
    """

    baseline: Tried
    digital: Tried
    precisions: Sequence[Tried]
    digital_seconds: float
    candidates: Sequence[Candidate]

    def cheapest(self, budget: Budget) -> Candidate | None:
        """The cheapest machine that keeps the benefit within the budget; None if there is none."""
        fit = [c for c in self.candidates if c.kept and budget.allows(c.bill, self.digital_seconds)]
        return min(fit, key=lambda c: (c.couplings, -c.tau, c.bill.seconds), default=None)


@dataclass(frozen=True)
class Design:
    """The study's setting.

    Args:
        recipe: returns the task.
        spec: the machine, but for bits, settling time and τ.
        digital: the digital side.
        half: the same in lower precision.
        bits: levels to try.
        settle: levels to try, in τ.
        seeds: runs of each.
        steps: of each run; None: the recipe's.
        keep: share of the steps saved that must be kept, in (0, 1].
        fallback: share of prepared blocks that may be handed to the digital side, in [0, 1].
        every: steps between refreshes in the prices, as the runs have it in the long run.

    Raises:
        ValueError: nothing to try, or a share out of range.
    """

    recipe: Recipe
    spec: MachineSpec
    digital: Digital
    half: Digital | None = None
    bits: tuple[int, ...] = (3, 4, 6, 8)
    settle: tuple[float, ...] = (5.0, 50.0)
    seeds: int = 2
    steps: int | None = None
    keep: float = 0.8
    fallback: float = 0.0
    every: int = Policy().refresh_every

    def __post_init__(self) -> None:
        if not self.bits or not self.settle or self.seeds < 1:
            raise ValueError("a design needs at least one number of bits, one settling time and one seed")
        if not 0 < self.keep <= 1:
            raise ValueError(f"the share of the benefit to keep lies in (0, 1], got {self.keep}")
        if not 0 <= self.fallback <= 1:
            raise ValueError(f"the share that may fall back lies in [0, 1], got {self.fallback}")

    def run(self, folder: Path, *, jobs: int = 1, watch: Watch = unwatched) -> Designed:
        """Make the trials and counts that are missing, then price all machines.

        Args:
            folder: of records and counts.
            jobs: processes.
            watch: as in `run_trials`.
        """
        task = self.recipe()
        precisions = [Precision(*levels) for levels in product(THERMODYNAMIC, self.bits, self.settle)]
        choices = [choose(task, "adamw"), choose(task, "kfac"), *(self._choice(precision) for precision in precisions)]
        plans = [[self._trial(choice, seed) for seed in range(1, self.seeds + 1)] for choice in choices]
        records = {r.name: r for r in run_trials([t for plan in plans for t in plan], folder, jobs=jobs, watch=watch)}
        tried = []
        for plan, precision in zip(plans, [None, None, *precisions], strict=True):
            reached = [records[trial.name].reached() for trial in plan]
            steps = tuple(None if row is None else int(row["step"]) for row in reached)
            fallback = max(fallback_share(records[trial.name]) for trial in plan)
            tried.append(Tried(plan[0].choice.title, steps, precision, fallback))
        counted = count(shapes_of(task), methods(self.spec), folder).steps
        prices = {m.name: step_prices(counted[m.name], self._fleet(self.spec, None), half=m.half) for m in methods(self.spec)}
        digital = min(prices[name].per_step(self.every).seconds for name in ("cholesky", "newton-schulz", "newton-schulz-bf16"))
        baseline, best, *thermodynamic = tried
        candidates = [c for one in thermodynamic for c in self._machines(one, counted, self.kept(one, baseline, best))]
        return Designed(baseline, best, thermodynamic, digital, candidates)

    def kept(self, tried: Tried, baseline: Tried, digital: Tried) -> bool:
        """Whether a machine keeps the benefit by itself."""
        return tried.fallback <= self.fallback and keeps(tried, baseline, digital, self.keep)

    def _choice(self, precision: Precision) -> Choice:
        choice = choose(self.recipe(), "kfac", solver=precision.solver)
        return replace(choice, machine=self._spec(precision))

    def _spec(self, precision: Precision) -> MachineSpec:
        spec = with_bits(self.spec, matrix=precision.bits, drive=precision.bits, read=precision.bits)
        return replace(spec, settle_taus=precision.settle)

    def _trial(self, choice: Choice, seed: int) -> Trial:
        settle = "" if choice.machine is None else f"-settle{choice.machine.settle_taus:g}"
        steps = self.steps or self.recipe().steps
        return Trial(f"{choice.label}{settle}-seed{seed}", self.recipe, choice, steps=steps, seed=seed, eval_every=1)

    def _fleet(self, spec: MachineSpec, machines: int | None) -> Hardware:
        return Hardware(self.digital, spec, self.half, machines=machines)

    def _machines(self, tried: Tried, counted: dict[str, StepWork], kept: bool) -> list[Candidate]:
        """Every τ and number of machines at one precision."""
        precision = tried.precision
        assert precision is not None
        step = counted[ROUTES[precision.solver]]
        matrices = round(step.programming.programmings)
        cells = max(job.cells for job in step.programming.jobs)
        numbers = sorted({min(2**k, matrices) for k in range(matrices.bit_length() + 1)})
        found = []
        for tau, machines in product(TIME_CONSTANTS, numbers):
            spec = with_time_constant(self._spec(precision), tau)
            settle = precision.settle * tau / self.spec.default_settle_seconds
            scaled = rescaled(step, time=settle, bits=precision.bits / (self.spec.matrix_bits or 32))
            prices: Prices = step_prices(scaled, self._fleet(spec, machines))
            found.append(Candidate(tried, tau, machines, cells, prices.per_step(self.every), kept))
        return found


def fallback_share(record: Record) -> float:
    """Share of a run's prepared blocks that its machine handed to the digital side; 0 for runs without a machine."""
    reports = [row["optimizer"] for row in record.rows if "optimizer" in row]
    if not reports:
        return 0.0
    counts = {outcome: float(reports[-1].get(f"prepare.{outcome.name.lower()}", 0.0)) for outcome in Outcome}
    return counts[Outcome.FELL_BACK] / max(sum(counts.values()), 1.0)


def keeps(tried: Tried, baseline: Tried, digital: Tried, share: float) -> bool:
    """Whether at least `share` of the steps that digital K-FAC saves over the baseline are saved too.

    >>> keeps(Tried("", (12,)), Tried("", (30,)), Tried("", (10,)), 0.8)
    True
    """
    if tried.mean is None or baseline.mean is None or digital.mean is None or digital.mean >= baseline.mean:
        return False
    return baseline.mean - tried.mean >= share * (baseline.mean - digital.mean)


def frontier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that keep the benefit and that no other beats in both time and couplings, from the cheapest on."""
    best: list[Candidate] = []
    for candidate in sorted((c for c in candidates if c.kept), key=lambda c: (c.couplings, c.bill.seconds)):
        if not best or candidate.bill.seconds < best[-1].bill.seconds:
            best.append(candidate)
    return best
