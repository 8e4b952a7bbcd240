"""How coarse, noisy, hasty and unequal a machine may be before K-FAC on it is no better than Adam.

What is measured, and what is tuned for, is the training loss at the end, L, the mean of the last steps. Digital K-FAC is tuned
over learning rate, damping and clip, AdamW and SGD likewise with at least as many trials, of a few runs each, of which the
worst counts. At some multiples of the best damping the learning rate of digital K-FAC is tuned anew. The machine then takes
over damping, clip and learning rate as they are, and its matrix bits and read bits are varied together, at each of these
dampings; then, at the best damping and with the machine's own converters, one imperfection at a time.

The share of the benefit that is kept,

    share = ln(L_adam / L) / ln(L_adam / L_kfac),       1: as good as digital K-FAC, 0: as good as AdamW,

is one of logarithms, since losses fall exponentially: of L_adam = 100 L_kfac a share of 90 % is a loss 1.6 times K-FAC's, where
a share of differences would be one eleven times K-FAC's. It is taken seed by seed: with one seed all runs have the same start
and the same batches.

**It is not only damping.** Digital K-FAC with a huge damping and no clip, its learning rate and momentum tuned, is all of K-FAC
but its curvature, and should do what SGD with momentum does. Both are run as controls, and every run tells the condition number
of its factors and how far its preconditioner is from a multiple of the identity (`optim.anisotropy`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from heatbath.experiments.choice import Choice
from heatbath.experiments.optimizers import choose, machine_spec
from heatbath.experiments.records import Record, Row
from heatbath.experiments.runner import Ending
from heatbath.experiments.studies.bench import Bench, Outcome, Setting
from heatbath.experiments.studies.convergence import BASELINE_AXES, DIGITAL_AXES, THERMODYNAMIC_AXES
from heatbath.experiments.studies.grid import SWEEPS, Grid
from heatbath.experiments.trials import Watch, unwatched
from heatbath.machines import with_bits
from heatbath.solvers import Outcome as Outcomes

KEPT = 0.9  # share of the benefit from which on it counts as kept
CONTROL_AXES = ("lr", "momentum")
HUGE = 1e9  # of the tuned damping: factors damped so are multiples of the identity to float32's precision
SEARCH_SEEDS = (0, 101, 102, 103, 104)  # of a search, the first few of them
ENDING = Ending(preconditioner=True)
SMOOTH, SMOOTH_SHARE = 5, 10  # the loss at the end is a mean over a tenth of the steps, at least five


@dataclass(frozen=True)
class Point:
    """One choice that was run.

    Args:
        group: "baseline", "digital", "control", "grid", or a key of `SWEEPS`.
        title: for people.
        choice: what was run.
        runs: one per seed.
        multiple: of the tuned damping.
        value: of the sweep.
    """

    group: str
    title: str
    choice: Choice
    runs: Sequence[Record]
    multiple: float | None = None
    value: float | None = None

    @property
    def losses(self) -> list[float]:
        """Training loss at the end, by seed; infinite where a run diverged."""
        return [final_loss(run) for run in self.runs]

    @property
    def preconditioner(self) -> Mapping[str, float]:
        """What the preconditioner was like at the end, mean over seeds; empty where there is none."""
        found = [run.rows[-1].get("preconditioner") or {} for run in self.runs]
        names = [name for name in found[0] if all(one.get(name) is not None for one in found)]
        return {name: fmean(one[name] for one in found) for name in names}

    @property
    def digital_share(self) -> float:
        """Share of the refreshed blocks that the machine could not hold and the digital side solved; mean over seeds."""
        return fmean(_share(run, Outcomes.FELL_BACK) for run in self.runs)

    @property
    def damped_share(self) -> float:
        """Share of the refreshed blocks that the machine could hold only with more damping; mean over seeds."""
        return fmean(_share(run, Outcomes.REDAMPED) for run in self.runs)


@dataclass(frozen=True)
class Findings:
    """What the study found.

    Args:
        tuning: of AdamW, SGD, digital K-FAC, K-FAC with huge damping, in this order.
        points: all that was run, the first four of them the bests of `tuning`.
    """

    tuning: Sequence[Outcome]
    points: Sequence[Point]

    @property
    def adam(self) -> Point:
        """The baseline."""
        return self.points[0]

    @property
    def digital(self) -> Point:
        """K-FAC in full precision, at its best damping."""
        return self.points[2]

    def shares(self, point: Point) -> list[float] | None:
        """Share of the benefit that a point keeps, by seed; −∞ where it diverged, None where there is no benefit to keep."""
        pairs = list(zip(self.adam.losses, self.digital.losses, strict=True))
        if not all(0 < kfac < adam < math.inf for adam, kfac in pairs):
            return None
        logs = [math.log(loss) if loss > 0 else -math.inf for loss in point.losses]
        return [(math.log(a) - x) / math.log(a / k) for (a, k), x in zip(pairs, logs, strict=True)]

    @property
    def bar(self) -> float:
        """The loss at which `KEPT` of the benefit is kept, mean over seeds."""
        pairs = zip(self.adam.losses, self.digital.losses, strict=True)
        return fmean(a ** (1 - KEPT) * k**KEPT for a, k in pairs)


def _share(run: Record, how: Outcomes) -> float:
    """How often refreshing a block ended in some way."""
    report: Row = next((row["optimizer"] for row in reversed(run.rows) if "optimizer" in row), {})
    ends = {outcome: float(report.get(f"prepare.{outcome.name.lower()}", 0.0)) for outcome in Outcomes}
    total = sum(ends.values())
    return ends[how] / total if total else 0.0


def by_final_loss(record: Record) -> tuple[float, float]:
    """What trials are ranked by: the training loss at the end."""
    return final_loss(record), 0.0


def final_loss(record: Record) -> float:
    """Mean training loss of the last steps; infinite for a run that diverged."""
    if record.ended != "finished":
        return math.inf
    values = record.metric("loss")[2][1:]  # row 0 is the loss before any step
    count = max(SMOOTH, len(values) // SMOOTH_SHARE)
    mean = fmean(values[-count:])
    return mean if math.isfinite(mean) else math.inf


@dataclass(frozen=True)
class Quantization:
    """The study's setting.

    Args:
        setting: task, steps, batch size.
        grid: what is varied.
        machine: a preset or file.
        seeds: runs of each point.
        trials: the most that a search may make for one optimizer.
        search_seeds: runs of each of them, of which the worst counts: the lowest loss of one start is often beside a cliff.

    Raises:
        ValueError: seeds or trials below 1, or more search seeds than there are.
    """

    setting: Setting
    grid: Grid = field(default_factory=Grid)
    machine: str | None = None
    seeds: int = 2
    trials: int = 40
    search_seeds: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.search_seeds <= len(SEARCH_SEEDS):
            raise ValueError(f"a search takes 1 to {len(SEARCH_SEEDS)} seeds, got {self.search_seeds}")
        if self.seeds < 1 or self.trials < 1:
            raise ValueError(f"the study needs at least 1 seed and 1 trial, got {self.seeds} and {self.trials}")

    def run(self, folder: Path, *, jobs: int = 1, watch: Watch = unwatched) -> Findings:
        """Make the trials that are missing.

        Args:
            folder: of the records.
            jobs: processes.
            watch: as in `run_trials`.
        """
        setting = replace(self.setting, eval_every=self.setting.steps)
        bench = Bench(
            setting, folder, jobs, watch, rank=by_final_loss, search_seeds=SEARCH_SEEDS[: self.search_seeds], ending=ENDING
        )
        tuning = self._tuned(bench)
        named = {
            "adamw": Point("baseline", "AdamW", tuning[0].tuned.choice, ()),
            "sgd": Point("control", "SGD with momentum", tuning[1].tuned.choice, ()),
            "digital": Point("digital", "K-FAC, digital", tuning[2].tuned.choice, (), multiple=1.0),
            "huge": Point("control", f"K-FAC, digital, damping × {HUGE:g}", tuning[3].tuned.choice, (), multiple=HUGE),
            **self._varied(bench, tuning[2].tuned.choice),
        }
        runs = bench.runs({name: point.choice for name, point in named.items()}, range(1, self.seeds + 1))
        return Findings(tuning, [replace(point, runs=runs[name]) for name, point in named.items()])

    def _tuned(self, bench: Bench) -> list[Outcome]:
        """AdamW, SGD, digital K-FAC and its control; none has fewer trials than digital K-FAC."""
        task = self.setting.recipe()
        digital = bench.tune(choose(task, "kfac"), DIGITAL_AXES, at_most=self.trials)
        budget = {"at_least": digital.tuned.trials, "at_most": self.trials}
        adam = bench.tune(choose(task, "adamw"), BASELINE_AXES, **budget)
        sgd = bench.tune(choose(task, "sgd"), CONTROL_AXES, **budget)
        best = digital.tuned.choice
        assert best.hyper.damping is not None
        damping = HUGE * best.hyper.damping
        plain = sgd.tuned.choice.hyper
        start = replace(plain, damping=damping, lr=damping * plain.lr, kl_clip=HUGE**2)  # v → g/λ, never clipped
        huge = replace(bench, prefix="huge-").tune(replace(best, hyper=start), CONTROL_AXES, **budget)
        return [adam, sgd, digital, huge]

    def _varied(self, bench: Bench, best: Choice) -> dict[str, Point]:
        """Digital K-FAC at other dampings, the grid, the sweeps; not run yet."""
        found, spec, grid = {}, machine_spec(self.machine, None), self.grid
        for multiple in grid.dampings:
            choice = best if multiple == 1 else self._damped(bench, best, multiple)
            if multiple != 1:
                found[f"digital-x{multiple:g}"] = Point(
                    "digital", f"K-FAC, digital, damping × {multiple:g}", choice, (), multiple=multiple
                )
            for solver in grid.solvers:
                for matrix in grid.matrix_bits:
                    for read in grid.read_bits:
                        analog = replace(choice, solver=solver, machine=with_bits(spec, matrix=matrix, read=read))
                        name = f"grid-{solver}-x{multiple:g}-m{matrix}-r{read}"
                        found[name] = Point("grid", analog.title, analog, (), multiple=multiple)
        for sweep in grid.sweeps:
            for solver in grid.solvers:
                for value in SWEEPS[sweep].values:
                    analog = replace(best, solver=solver, machine=SWEEPS[sweep].change(spec, value))
                    found[f"{sweep}-{solver}-{value:g}"] = Point(sweep, analog.title, analog, (), multiple=1.0, value=value)
        return found

    def _damped(self, bench: Bench, best: Choice, multiple: float) -> Choice:
        """Digital K-FAC at another damping, its learning rate tuned for it."""
        assert best.hyper.damping is not None
        hyper = replace(best.hyper, damping=float(f"{multiple * best.hyper.damping:.3g}"))
        other = replace(bench, prefix=f"damping{hyper.damping:g}-")
        return other.tune(replace(best, hyper=hyper), THERMODYNAMIC_AXES, at_most=self.trials).tuned.choice
