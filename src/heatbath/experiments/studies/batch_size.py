"""Steps to a target against batch size, for first- and second-order optimizers.

At every batch size every optimizer is tuned anew, with the same number of trials: learning rate and momentum of SGD, learning
rate, β₁ and β₂ of Adam, learning rate, damping and clip of K-FAC. What is searched for are the fewest steps to the target on
held-out training data, and the search starts from what was best at the next smaller batch size. The best is run anew on all
training data, a few seeds, to the target on the test split. A run ends when it is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from heatbath.experiments.choice import Choice
from heatbath.experiments.experiment import Experiment, Target, held_out_name
from heatbath.experiments.optimizers import CURVED, SELF_PACED, choose
from heatbath.experiments.records import Record
from heatbath.experiments.runner import Ending
from heatbath.experiments.studies.bench import Bench, Outcome, Setting
from heatbath.experiments.studies.convergence import BASELINE_AXES, DIGITAL_AXES
from heatbath.experiments.studies.critical import Fit, fit_critical
from heatbath.experiments.trials import Watch, unwatched
from heatbath.experiments.tuned import Score


@dataclass(frozen=True)
class Contender:
    """An optimizer of the study.

    Args:
        optimizer: a key of `OPTIMIZERS`.
        solver: a key of `SOLVERS`, for K-FAC.
        machine: a preset or file, for thermodynamic solvers.
        bits: of that machine.
    """

    optimizer: str
    solver: str | None = None
    machine: str | None = None
    bits: int | None = None

    def choice(self, task: Experiment) -> Choice:
        """With the task's defaults."""
        return choose(task, self.optimizer, solver=self.solver, machine=self.machine, bits=self.bits)

    @property
    def axes(self) -> tuple[str, ...]:
        """What is searched."""
        if self.optimizer in SELF_PACED:
            return ("damping",)
        if self.optimizer in CURVED:
            return DIGITAL_AXES
        return ("lr", "momentum") if self.optimizer == "sgd" else BASELINE_AXES


CONTENDERS = (
    Contender("sgd"),
    Contender("adam"),
    Contender("kfac"),
    Contender("kfac", "thermodynamic-solve", bits=8),
)


@dataclass(frozen=True)
class Scaling:
    """What was found for one optimizer.

    Args:
        title: of the optimizer.
        outcomes: by batch size, smallest first.
        target: on the test split.
    """

    title: str
    outcomes: dict[int, Outcome]
    target: Target

    @property
    def steps(self) -> dict[int, list[int | None]]:
        """Steps to the target by batch size and seed; None where it was not reached."""
        return {size: [steps_to(run, self.target) for run in outcome.runs] for size, outcome in self.outcomes.items()}

    @property
    def reached(self) -> list[tuple[int, int]]:
        """Batch size and steps of each run that reached the target, at batch sizes where all did."""
        whole = {size: steps for size, steps in self.steps.items() if None not in steps}
        return [(size, step) for size, steps in whole.items() for step in steps if step is not None]

    @property
    def fit(self) -> Fit | None:
        """The law of the critical batch size; None where too few batch sizes reached the target."""
        points = self.reached
        return fit_critical([float(b) for b, _ in points], [float(s) for _, s in points])


def steps_to(record: Record, target: Target) -> int | None:
    """The first measured step at the target; a start that is there already does not count."""
    if record.ended != "finished":
        return None
    steps, _, values = record.metric(target.metric)
    return next((step for step, value in zip(steps, values, strict=True) if step > 0 and target.reached(value)), None)


def by_steps(target: Target) -> Score:
    """Rank trials by the steps to a target, those that did not reach it by how near they came."""

    def rank(record: Record) -> tuple[float, float]:
        step, value = steps_to(record, target), record.metric(target.metric)[2][-1]
        distance = (target.value - value) * (1 if target.higher else -1)
        return (math.inf if step is None else float(step)), (distance if math.isfinite(distance) else math.inf)

    return rank


@dataclass(frozen=True)
class BatchSize:
    """The study's setting.

    Args:
        setting: task, most steps of a run, steps between two measurements; its batch size is not used.
        batch_sizes: at least three different ones.
        target: on the test split, to be reached; None: the recipe's.
        contenders: optimizers.
        seeds: runs of the best.
        trials: of each search.

    Raises:
        ValueError: too few batch sizes, or numbers below 1.
    """

    setting: Setting
    batch_sizes: tuple[int, ...]
    target: Target | None = None
    contenders: Sequence[Contender] = field(default=CONTENDERS)
    seeds: int = 3
    trials: int = 8

    def __post_init__(self) -> None:
        if len(set(self.batch_sizes)) < 3 or min(self.batch_sizes) < 1:
            raise ValueError(f"at least 3 different batch sizes of at least 1 are needed, got {self.batch_sizes}")
        if self.seeds < 1 or self.trials < 1:
            raise ValueError(f"the study needs at least 1 seed and 1 trial, got {self.seeds} and {self.trials}")

    @property
    def goal(self) -> Target:
        """The target on the test split.

        Raises:
            ValueError: the task does not measure it.
        """
        task = self.setting.recipe()
        target = self.target or task.target
        if target.metric not in task.metrics:
            raise ValueError(f"{task.name} does not measure {target.metric!r}; it measures {', '.join(task.metrics)}")
        return target

    def run(self, folder: Path, *, jobs: int = 1, watch: Watch = unwatched) -> list[Scaling]:
        """Make the trials that are missing.

        Args:
            folder: of the records.
            jobs: processes.
            watch: as in `run_trials`.

        Raises:
            ValueError: a batch size above the number of training examples that a search has.
        """
        task, goal = self.setting.recipe(), self.goal
        there = len(task.source.load().train) * 9 // 10
        if max(self.batch_sizes) > there:
            raise ValueError(f"a batch of {max(self.batch_sizes)} is more than the {there} examples that a search trains on")
        searched = replace(goal, metric=held_out_name(goal.metric))
        found: list[dict[int, Outcome]] = [{} for _ in self.contenders]
        starts = [contender.choice(task) for contender in self.contenders]
        for size in sorted(set(self.batch_sizes)):
            bench = Bench(
                replace(self.setting, batch_size=size),
                folder,
                jobs,
                watch,
                prefix=f"b{size}-",
                rank=by_steps(searched),
                tuning=Ending(target=searched),
                ending=Ending(target=goal),
            )
            for i, contender in enumerate(self.contenders):
                found[i][size] = bench.tune(starts[i], contender.axes, at_least=self.trials, at_most=self.trials)
                starts[i] = found[i][size].tuned.choice
            runs = bench.runs({choice.label: choice for choice in starts}, range(1, self.seeds + 1))
            for i, choice in enumerate(starts):
                found[i][size] = replace(found[i][size], runs=runs[choice.label])
        return [Scaling(choice.title, outcomes, goal) for choice, outcomes in zip(starts, found, strict=True)]
