"""Hyper-parameters by one search for all: every optimizer gets as many trials, as many steps, and ranges of one width.

The ranges are centred, on a log scale, on an optimizer's default for the task: what is known beforehand, in the same measure
for all. The i-th trial is the i-th point of a scrambled Sobol' sequence (Sobol' 1967; Owen 1998): one hyper-parameter or two,
each range is covered evenly, and more trials later go on where fewer ended. Trials train on nine tenths of the training
examples and are measured on the rest; the test split is never looked at.

**The rule.** Best is the best value of the task's judged metric on the held-out examples after the last step; a trial that
diverged is worst; between equal values the lower last training loss decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from heatbath.experiments.environment import command, host, versions
from heatbath.experiments.experiment import Hyper
from heatbath.experiments.optimizers import Choice, choice_from_json
from heatbath.experiments.records import Record
from heatbath.experiments.trials import Recipe, Trial, run_trials

RULE = "best held-out {metric} after the last step; diverged is worst; ties go to the lower last training loss"
SPANS = {"lr": 30.0, "damping": 10.0}  # a range is the default divided and multiplied by this
EDGE = 0.1  # share of a range at either end in which a best value is called near the edge
RESULT = "best.json"
FORMAT = 1


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
    """What is searched for an optimizer: its learning rate, and the damping where it has one."""
    values = {name: getattr(choice.hyper, name) for name in SPANS}
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


def score(record: Record) -> tuple[float, float]:
    """What trials are ranked by, lower is better.

    Returns:
        The judged metric at the end, or its negative where more is better, then the last training loss; infinite where a trial
        diverged or ended in no number.
    """
    if record.ended != "finished":
        return math.inf, math.inf
    value, loss = record.measured[-1]["metrics"].get(record.target.metric), record.rows[-1]["loss"]
    if value is None or loss is None:
        return math.inf, math.inf
    return (-value if record.target.higher else value), loss


@dataclass(frozen=True)
class Tuned:
    """What a search found for one optimizer.

    Args:
        choice: the best.
        value: of the judged metric on held-out data; None if every trial diverged.
        trials: how many were made.
        diverged: how many of them diverged.
        near_edge: hyper-parameters whose best value lies near an end of what was tried.
        record: file name of the best trial.
    """

    choice: Choice
    value: float | None
    trials: int
    diverged: int
    near_edge: tuple[str, ...]
    record: str

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Plain values."""
        return {"title": self.choice.title, **asdict(self), "choice": self.choice.to_json()}


def pick(choices: Sequence[Choice], records: Sequence[Record], near_edge: Callable[[Hyper], tuple[str, ...]]) -> Tuned:
    """The best of some trials by the rule.

    Args:
        choices: that were tried.
        records: of each.
        near_edge: which hyper-parameters of a value lie near an end of what was tried.
    """
    scores = [score(record) for record in records]
    best = min(range(len(scores)), key=scores.__getitem__)
    value = None if math.isinf(scores[best][0]) else records[best].measured[-1]["metrics"][records[best].target.metric]
    diverged = sum(math.isinf(s[0]) for s in scores)
    return Tuned(choices[best], value, len(choices), diverged, near_edge(choices[best].hyper), records[best].path.name)


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
    watch: Callable[[Trial, Record, bool], None] = lambda trial, record, fresh: None,
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


def write_result(path: Path, found: Sequence[Tuned], *, records: Sequence[Record], seed: int) -> None:
    """Write what a search found, with what is needed to judge it."""
    header = records[0].header
    result = {
        "format": FORMAT,
        "recipe": header["experiment"],
        "metric": records[0].target.metric,
        "rule": RULE.format(metric=records[0].target.metric.removeprefix("held-out ")),
        "steps": header["steps"],
        "batch_size": header["batch_size"],
        "seed": seed,
        "dataset": header["dataset"],
        "tuned": [tuned.to_json() for tuned in found],
        "versions": versions(),
        "host": host(torch.device("cpu")),
        "command": command(),
    }
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tuned_choice(path: Path, recipe: str, choice: Choice) -> Choice:
    """The choice a search found for an optimizer.

    Args:
        path: of a `best.json`, or of the folder that holds it.
        recipe: name of the task.
        choice: whose optimizer, solver and machine are wanted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a result, of another task, or of other optimizers.
    """
    path = path / RESULT if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no result of a search {path}: make one with heatbath tune {recipe} --out {path.parent}"
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        found = {t["title"]: choice_from_json(t["choice"]) for t in result["tuned"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of heatbath tune ({type(error).__name__}: {error})") from error
    if result["recipe"] != recipe:
        raise ValueError(f"{path} was tuned on {result['recipe']}, not on {recipe}: tune again, or train that recipe")
    if choice.title not in found:
        raise ValueError(f"{path} has no {choice.title}; it has {'; '.join(found)}")
    return found[choice.title]
