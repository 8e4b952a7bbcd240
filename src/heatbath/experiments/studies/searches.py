"""What the searches of a study found, as a table and as CSV; numbers in words and for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.studies.bench import Outcome
from heatbath.experiments.studies.page import Table

WORDS = {"momentum": "β₁", "square_decay": "β₂", "kl_clip": "clip"}


def tuning_table(outcomes: Sequence[Outcome], titles: Sequence[str] | None = None) -> Table:
    """What each search found, and what it cost; one row each, named by its optimizer or by `titles`."""
    rows = []
    for outcome, title in zip(outcomes, titles or [outcome.title for outcome in outcomes], strict=True):
        value = "–" if outcome.tuned.value is None else f"{outcome.tuned.value:.4g}"
        best, tried = best_and_tried(outcome)
        rows.append([title, str(outcome.tuned.trials), str(outcome.tuned.diverged), best, value, tried])
    return Table(["optimizer", "trials", "diverged", "best", "held-out", "neighbours tried"], rows)


def best_and_tried(outcome: Outcome) -> tuple[str, str]:
    """The best of a search in words, and whether all its neighbours were tried."""
    hyper = outcome.tuned.choice.hyper
    best = ", ".join(f"{WORDS.get(name, name)} {getattr(hyper, name):g}" for name in outcome.searched)
    loose = ", ".join(WORDS.get(name, name) for name in outcome.tuned.near_edge)
    return best, f"not all: {loose}" if loose else "all"


def trials_csv(outcomes: Sequence[Outcome]) -> str:
    """Every trial of every search, as CSV."""
    rows: list[list[object]] = []
    names = ["lr", "damping", "kl_clip", "momentum", "square_decay", "weight_decay"]
    for outcome in outcomes:
        for record in outcome.tuning:
            choice, row = record.header["choice"], record.rows[-1]
            value = row.get("metrics", {}).get(record.target.metric)
            rows.append([outcome.title, *(choice.get(n) for n in names), record.ended, value, row["loss"], row["seconds"]])
    return table_csv(["optimizer", *names, "ended", "held-out", "last training loss", "seconds"], rows, digits=None)


def spread(values: Sequence[float]) -> str:
    """Mean ± half the distance from the lowest to the highest."""
    if not all(math.isfinite(value) for value in values):
        return "diverged"
    half = (max(values) - min(values)) / 2
    return f"{fmean(values):.4g} ± {half:.2g}" if len(values) > 1 else f"{values[0]:.4g}"


def finite(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON, which has neither infinities nor NaN: None for those."""
    return [value if math.isfinite(value) else None for value in values]
