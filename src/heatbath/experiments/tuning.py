"""Hyper-parameters by one search for all: every optimizer gets as many trials, as many steps, and ranges of one width.

The ranges are centred, on a log scale, on an optimizer's default for the task: what is known beforehand, in the same measure
for all. The i-th trial is the i-th point of a scrambled Sobol' sequence (Sobol' 1967; Owen 1998): one hyper-parameter or two,
each range is covered evenly, and more trials later go on where fewer ended. Trials train on nine tenths of the training
examples and are measured on the rest; the test split is never looked at.
The rule by which the best is chosen is `tuned.RULE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from heatbath.experiments.choice import Choice
from heatbath.experiments.experiment import Hyper
from heatbath.experiments.optimizers import SELF_PACED
from heatbath.experiments.trials import Recipe, Trial, Watch, run_trials, unwatched
from heatbath.experiments.tuned import RESULT, Tuned, pick, write_result

SPANS = {"lr": 30.0, "damping": 10.0}  # a range is the default divided and multiplied by this
EDGE = 0.1  # share of a range at either end in which a best value is called near the edge


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, log-uniform.

    Args:
        low: smallest, positive.
        high: largest.

    Raises:
        ValueError: not 0 < low < high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"a range needs 0 < low < high, got {self.low} and {self.high}")

    def at(self, share: float) -> float:
        """The value at a share in [0, 1] of the logarithm."""
        return float(f"{self.low * (self.high / self.low) ** share:.3g}")

    def near_edge(self, value: float) -> bool:
        """Whether a value is within `EDGE` of an end, so that a better one may lie outside."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return not EDGE <= share <= 1 - EDGE


def space(choice: Choice) -> dict[str, Range]:
    """What is searched for an optimizer: its learning rate unless it sets its own, and the damping where it has one."""
    names = [name for name in SPANS if name != "lr" or choice.optimizer not in SELF_PACED]
    values = {name: getattr(choice.hyper, name) for name in names}
    return {name: Range(value / SPANS[name], value * SPANS[name]) for name, value in values.items() if value is not None}


def candidates(choice: Choice, ranges: Mapping[str, Range], *, trials: int, seed: int) -> list[Choice]:
    """The choices to try.

    Args:
        choice: whose hyper-parameters are replaced.
        ranges: by name of the hyper-parameter.
        trials: how many; more are a continuation of fewer.
        seed: of the scrambling.

    Raises:
        ValueError: trials below 1.
    """
    if trials < 1:
        raise ValueError(f"a search needs at least 1 trial, got {trials}")
    points = torch.quasirandom.SobolEngine(len(ranges), scramble=True, seed=seed).draw(trials, dtype=torch.float64).tolist()
    return [
        replace(choice, hyper=replace(choice.hyper, **{n: r.at(x) for (n, r), x in zip(ranges.items(), point, strict=True)}))
        for point in points
    ]


@dataclass(frozen=True)
class Search:
    """How every optimizer is searched for.

    Args:
        recipe: returns the task.
        trials: of each optimizer.
        steps: of each trial.
        seed: of the candidates, and of everything random in every trial.
        device: where to compute.

    Raises:
        ValueError: trials or steps below 1.
    """

    recipe: Recipe
    trials: int
    steps: int
    seed: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable

    def __post_init__(self) -> None:
        if self.trials < 1 or self.steps < 1:
            raise ValueError(f"a search needs at least 1 trial of at least 1 step, got {self.trials} and {self.steps}")

    def plan(self, choice: Choice) -> list[Trial]:
        """The trials of one optimizer."""
        found = candidates(choice, space(choice), trials=self.trials, seed=self.seed)
        return [
            Trial(
                f"{choice.label}-{number:03d}",
                self.recipe,
                candidate,
                steps=self.steps,
                seed=self.seed,
                held_out=True,
                eval_every=self.steps,
                device=self.device,
            )
            for number, candidate in enumerate(found, start=1)
        ]


def search(
    how: Search,
    choices: Sequence[Choice],
    folder: Path,
    *,
    jobs: int = 1,
    watch: Watch = unwatched,
) -> list[Tuned]:
    """Tune each of some optimizers with the same budget, and write `best.json`.

    Args:
        how: the budget.
        choices: optimizers with their defaults; labels must differ.
        folder: of the records, one per trial; running again goes on with what is missing.
        jobs: processes.
        watch: as in `run_trials`.

    Raises:
        ValueError: as `run_trials`.
        OSError: as `run_trials`.
    """
    plans = [how.plan(choice) for choice in choices]
    records = run_trials([trial for plan in plans for trial in plan], folder, jobs=jobs, watch=watch)
    by_name = {record.name: record for record in records}
    found = []
    for choice, plan in zip(choices, plans, strict=True):
        ranges = space(choice)

        def near_edge(hyper: Hyper, ranges: Mapping[str, Range] = ranges) -> tuple[str, ...]:
            return tuple(name for name, values in ranges.items() if values.near_edge(getattr(hyper, name)))

        found.append(pick([trial.choice for trial in plan], [by_name[trial.name] for trial in plan], near_edge))
    write_result(folder / RESULT, found, records=records, seed=how.seed)
    return found
