"""Runs that differ in their seed alone, put together, and what can be said of several seeds.

Of k values with mean m and sample deviation s, the mean over all seeds lies, with 95 % confidence and if values are spread
normally, in m ± t s/√k, t being the 97.5 % quantile of Student's law with k − 1 degrees of freedom (Student, The probable error
of a mean, Biometrika 6, 1908). A run that diverged has no value, so it is counted beside the interval and not in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from heatbath.costs import Bill
from heatbath.experiments.comparison import predict, predict_mean
from heatbath.experiments.experiment import Target
from heatbath.experiments.records import Record

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Group:
    """Runs of one setting.

    Args:
        title: unlike that of every other group.
        records: one per seed.
    """

    title: str
    records: Sequence[Record]

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [record.header["seed"] for record in self.records]

    @property
    def target(self) -> Target:
        """What counted as learned."""
        return self.records[0].target

    @property
    def steps(self) -> int:
        """The most that a run made."""
        return max(record.rows[-1]["step"] for record in self.records)

    def final(self, metric: str) -> list[float]:
        """The last measured value of each run that did not diverge and has one."""
        values = [record.metric(metric)[2] for record in self.records if record.ended != "diverged"]
        return [series[-1] for series in values if series and math.isfinite(series[-1])]

    def reached(self) -> list[int | None]:
        """The step of each run at which it was first measured at its target; None: never."""
        rows = [record.reached() for record in self.records]
        return [None if row is None else row["step"] for row in rows]

    def bill_to_target(self) -> Bill | None:
        """Predicted bill up to the target, mean over runs; None if one was never there, or cannot be priced."""
        return predict_mean(self.records, self.reached())

    def bill(self) -> Bill | None:
        """Predicted bill of one step, mean over runs; None if a run has none."""
        bills = []
        for record in self.records:
            bill = predict(record)
            if bill is None:
                return None
            bills.append(bill * (1 / record.measured[-1]["step"]))
        return sum(bills, Bill()) * (1 / len(bills))

    def bill_of_run(self) -> Bill | None:
        """Predicted bill of a whole run up to its last measurement, mean over runs; None if a run has none."""
        ends = [record.measured[-1]["step"] if record.measured else None for record in self.records]
        return predict_mean(self.records, ends)


def group(records: Sequence[Record]) -> list[Group]:
    """Put together what differs in the seed alone, in order of first appearance.

    Where a setting was run twice with one seed, the run that was started last counts: the same run twice would narrow intervals
    that are meant to be over seeds.
    """
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        runs = found.setdefault(json.dumps(_setting(record), sort_keys=True), {})
        seed, before = record.header["seed"], runs.get(record.header["seed"])
        if before is None or record.header.get("started", "") >= before.header.get("started", ""):
            runs[seed] = record
    groups = [Group(next(iter(runs.values())).title, list(runs.values())) for runs in found.values()]
    titles = [_told_apart(one, groups) for one in groups]
    numbers = [titles[: i + 1].count(title) if titles.count(title) > 1 else 0 for i, title in enumerate(titles)]
    return [
        replace(one, title=f"{title}, machine {number}" if number else title)
        for one, title, number in zip(groups, titles, numbers, strict=True)
    ]


def _setting(record: Record) -> dict[str, Any]:  # Any: JSON values
    header = record.header
    choice = {name: value for name, value in header["choice"].items() if value is not None}
    return {**choice, "data": header["dataset"]["name"], "batch": header["batch_size"], "steps": header["steps"]}


def _told_apart(one: Group, groups: Sequence[Group]) -> str:
    """Its title, and what sets it apart from others of that title."""
    mine = _setting(one.records[0])
    others = [_setting(other.records[0]) for other in groups if other.title == one.title and other is not one]
    apart = [name for name in mine if any(other.get(name) != mine[name] for other in others)]
    return ", ".join([one.title, *(f"{WORDS.get(name, name)} {mine[name]}" for name in apart if name != "machine")])


WORDS = {"lr": "lr", "kl_clip": "clip", "square_decay": "β₂", "weight_decay": "weight decay"}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval; the half width of fewer than two values is NaN."""
    if not values:
        return math.nan, math.nan
    if len(values) == 1:
        return values[0], math.nan
    from scipy.stats import t as student

    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))


def interval_text(values: Sequence[float], *, missing: int = 0) -> str:
    """`interval` for a table.

    Args:
        values: of the runs that have one.
        missing: how many have none.

    >>> interval_text([1.0, 2.0, 3.0]), interval_text([0.97], missing=1), interval_text([], missing=2)
    ('2 ± 2.5', '0.97 (1 of 2 diverged)', 'diverged')
    """
    if not values:
        return "diverged" if missing else "–"
    mean, half = interval(values)
    if half == 0:
        text = f"{mean:.4g}, every seed"
    else:
        text = f"{mean:.4g}" + (f" ± {half:.2g}" if math.isfinite(half) else "")
    return text + (f" ({missing} of {missing + len(values)} diverged)" if missing else "")


def steps_text(steps: Sequence[int | None]) -> str:
    """Steps of several seeds, for a table.

    >>> steps_text([25, 30, None]), steps_text([25, 25]), steps_text([None])
    ('25 to 30, not reached by 1 of 3', '25', 'not reached')
    """
    known = [step for step in steps if step is not None]
    if not known:
        return "not reached"
    missed = len(steps) - len(known)
    text = f"{min(known)}" if min(known) == max(known) else f"{min(known)} to {max(known)}"
    return text + (f", not reached by {missed} of {len(steps)}" if missed else "")
