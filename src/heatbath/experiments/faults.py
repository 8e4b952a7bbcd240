"""What went wrong in runs and was mended: counted by the optimizer, summed over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from heatbath.experiments.groups import Group
from heatbath.experiments.page_parts import Table
from heatbath.solvers import Outcome

WORDS = {
    Outcome.SOLVED: "solved",
    Outcome.INDEFINITE: "not positive definite",
    Outcome.NONFINITE: "NaN or inf",
    Outcome.INACCURATE: "inaccurate",
    Outcome.LATE: "late",
    Outcome.REDAMPED: "damped again",
    Outcome.FELL_BACK: "by the fallback",
    Outcome.RETRIED: "at another try",
}
NOTE = (
    "Sums over seeds, as the optimizer reports at its last measured step. A matrix is one member of a stack at one refresh. "
    "“Clipped values” exceeded a range of the machine. “Shortened” is the share of steps that trust, such as the KL clip, cut."
)


def faults_table(groups: Sequence[Group]) -> Table:
    """How runs ended, and how their matrices and solves did."""
    head = ["optimizer", "runs", "matrices prepared", "solves on a machine", "clipped values", "steps skipped", "shortened"]
    return Table(head, [[one.title, *_cells(one)] for one in groups], NOTE)


def _cells(one: Group) -> list[str]:
    ends = Counter(record.ended for record in one.records)
    reports: list[Mapping[str, Any]] = []  # Any: numbers and words
    for record in one.records:
        own = [row["optimizer"] for row in record.rows if "optimizer" in row]
        reports += own[-1:]
    return [
        ", ".join(f"{count} {end}" for end, count in ends.items()),
        _outcomes(reports, "prepare"),
        _outcomes(reports, "solve"),
        _sum(reports, lambda name: name.endswith("clipped")),
        _sum(reports, lambda name: name == "skipped_steps"),
        _share(reports, "clipped_share"),
    ]


def _outcomes(reports: Sequence[Mapping[str, Any]], kind: str) -> str:  # Any: as above
    counts = {o: sum(report.get(f"{kind}.{o.name.lower()}", 0.0) for report in reports) for o in Outcome}
    total = sum(counts.values())
    if not total:
        return "–"
    words = [f"{count:,.0f} {WORDS[o]}" for o, count in counts.items() if count and o is not Outcome.SOLVED]
    return f"{total:,.0f}: " + (", ".join(words) if words else "all solved")


def _sum(reports: Sequence[Mapping[str, Any]], wanted: Any) -> str:  # Any: as above; of a name, whether it counts
    found = [value for report in reports for name, value in report.items() if wanted(name) and isinstance(value, int | float)]
    return f"{sum(found):,.0f}" if found else "–"


def _share(reports: Sequence[Mapping[str, Any]], name: str) -> str:  # Any: as above
    found = [report[name] for report in reports if name in report]
    return f"{sum(found) / len(found):.0%}" if found else "–"
