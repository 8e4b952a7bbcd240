"""What tuning found, by one rule, and its file.

**The rule.** Best is the best value of the task's judged metric on held-out training data after the last step; a trial that
diverged is worst; between equal values the lower last training loss decides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from heatbath.experiments.choice import Choice, choice_from_json
from heatbath.experiments.environment import command, host, versions
from heatbath.experiments.experiment import Hyper
from heatbath.experiments.records import Record

RULE = "best held-out {metric} after the last step; diverged is worst; ties go to the lower last training loss"
RESULT = "best.json"
FORMAT = 1


Score = Callable[[Record], tuple[float, float]]  # what trials are ranked by, lower is better; infinite: no result


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


def pick(
    choices: Sequence[Choice],
    records: Sequence[Record],
    near_edge: Callable[[Hyper], tuple[str, ...]],
    *,
    rank: Score = score,
) -> Tuned:
    """The best of some trials by the rule.

    Args:
        choices: that were tried.
        records: of each.
        near_edge: which hyper-parameters of a value lie near an end of what was tried.
        rank: the rule.
    """
    scores = [rank(record) for record in records]
    best = min(range(len(scores)), key=scores.__getitem__)
    value = None if math.isinf(scores[best][0]) else records[best].measured[-1]["metrics"][records[best].target.metric]
    diverged = sum(math.isinf(s[0]) for s in scores)
    return Tuned(choices[best], value, len(choices), diverged, near_edge(choices[best].hyper), records[best].path.name)


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
    text = json.dumps({**result, "sha256": _digest(result)}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _digest(result: Mapping[str, Any]) -> str:  # Any: JSON values
    """SHA-256 of a result without its own entry, whatever its spaces."""
    rest = {key: value for key, value in result.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def tuned_choice(path: Path, recipe: str, choice: Choice) -> Choice:
    """The choice a search found for an optimizer.

    Args:
        path: of a `best.json`, or of the folder that holds it.
        recipe: name of the task.
        choice: whose optimizer, solver and machine are wanted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a result, damaged, of another task, or of other optimizers. A result without "sha256", as version 0.1
            wrote it, is not verified.
    """
    path = path / RESULT if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no result of a search {path}: make one with heatbath tune {recipe} --out {path.parent}"
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if "sha256" in result and result["sha256"] != _digest(result):
            raise ValueError("its checksum is wrong, so it was changed after it was written")
        found = {t["title"]: choice_from_json(t["choice"]) for t in result["tuned"]}
        made_on = str(result["recipe"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no result of heatbath tune ({type(error).__name__}: {error}): "
            "make it again by the same heatbath tune command, which runs no finished trial again"
        ) from error
    if made_on != recipe:
        raise ValueError(f"{path} was tuned on {made_on}, not on {recipe}: tune again, or train that recipe")
    if choice.title not in found:
        raise ValueError(f"{path} has no {choice.title}; it has {'; '.join(found)}")
    return found[choice.title]


def tuned_table(found: Sequence[Tuned], metric: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table, as text.

    Args:
        found: one row each.
        metric: what was judged, for the head.
    """
    head = ["optimizer", "trials", "diverged", f"held-out {metric}", "lr", "damping"]
    rows = [
        [
            tuned.choice.title,
            str(tuned.trials),
            str(tuned.diverged),
            "–" if tuned.value is None else f"{tuned.value:.4g}",
            f"{tuned.choice.hyper.lr:g}",
            "–" if tuned.choice.hyper.damping is None else f"{tuned.choice.hyper.damping:g}",
        ]
        for tuned in found
    ]
    return head, rows
