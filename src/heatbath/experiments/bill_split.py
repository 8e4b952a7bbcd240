"""Where predicted time and energy of a step go: digital kernels, and what a machine does with them, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from heatbath.costs import PARTS, Bill, with_unit
from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.page_parts import Picture, Table
from heatbath.experiments.plots import COLOURS, INK, legend_above, logarithmic, style

Bills = Sequence[tuple[str, Bill]]  # a title and the bill of one step each
NOTE = (
    "Mean over a run, refreshes included. Upload sends matrices; drive sends drives and results, convert is what converters "
    "take, each as far as settling and reading do not hide it; settle waits for the machine, read reads it."
)
MARKS = ("o", "s", "^", "v", "D", "P", "X", "*")


@dataclass(frozen=True)
class _Quantity:
    """Seconds or joules of a bill."""

    name: str
    unit: str
    by_part: Callable[[Bill], Mapping[str, float]]
    unstated: Callable[[Bill], frozenset[str]]

    def cell(self, bill: Bill, part: str) -> str:
        """Of one part, or of "total"."""
        if part == "total":
            value, unstated = sum(self.by_part(bill).values()), bool(self.unstated(bill))
        else:
            value, unstated = self.by_part(bill).get(part, 0.0), part in self.unstated(bill)
        if unstated:
            return f"≥ {with_unit(value, self.unit)}" if value else "not stated"
        return with_unit(value, self.unit) if value else "–"


TIME = _Quantity("time", "s", lambda bill: bill.seconds_by_part, lambda bill: bill.unstated_seconds)
ENERGY = _Quantity("energy", "J", lambda bill: bill.joules_by_part, lambda bill: bill.unstated_joules)


def bill_tables(bills: Bills) -> dict[str, Table]:
    """Predicted time and energy of one step by part, by heading."""
    parts = [part for part in PARTS if any(_has(bill, part) for _, bill in bills)]
    return {
        f"Predicted {quantity.name} of one step": Table(
            ["optimizer", *parts, "total"],
            [[title, *(quantity.cell(bill, part) for part in (*parts, "total"))] for title, bill in bills],
            NOTE if quantity is TIME and len(parts) > 1 else "",
        )
        for quantity in (TIME, ENERGY)
    }


def bill_pictures(bills: Bills, *, command: str) -> list[Picture]:
    """The same as figures; one of which nothing is known is left out."""
    return [
        Picture(
            f"predicted-{quantity.name}",
            f"predicted {quantity.name} of one step by part; “≥” where a source leaves something unstated",
            _figure(bills, quantity),
            _csv(bills, quantity),
            command,
        )
        for quantity in (TIME, ENERGY)
        if any(quantity.by_part(bill) for _, bill in bills)
    ]


def _has(bill: Bill, part: str) -> bool:
    return any(q.by_part(bill).get(part) or part in q.unstated(bill) for q in (TIME, ENERGY))


def _figure(bills: Bills, quantity: _Quantity) -> Figure:
    """A mark for each part on a logarithmic scale, and one for their sum."""
    with style():
        figure = Figure(figsize=(5.4, 1.0 + 0.62 * len(bills)), layout="constrained")
        axes = figure.add_subplot()
        for k, part in enumerate(PARTS):
            points = [
                (quantity.by_part(bill)[part], i) for i, (_, bill) in enumerate(bills) if quantity.by_part(bill).get(part)
            ]
            if points:
                colour, mark = COLOURS[k % len(COLOURS)], MARKS[k % len(MARKS)]
                axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=7, label=part)
        for i, (title, bill) in enumerate(bills):
            total = sum(quantity.by_part(bill).values())
            if total:
                axes.plot([total], [i], "|", color=INK, markersize=15, markeredgewidth=2, label="total" if i == 0 else None)
            label = f"{title}: {quantity.cell(bill, 'total')}"
            axes.text(0.0, i - 0.28, label, transform=axes.get_yaxis_transform(), fontsize=9.5, va="bottom")
        logarithmic(axes, "x")
        axes.set_yticks(range(len(bills)), [""] * len(bills))
        axes.set_ylim(len(bills) - 0.5, -0.75)
        axes.set_xlabel(f"predicted {quantity.name} of one step ({quantity.unit})")
        axes.grid(True, axis="x", alpha=0.15)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.margins(x=0.08)
        legend_above(axes, columns=4)
    return figure


def _csv(bills: Bills, quantity: _Quantity) -> str:
    """Run, part, value, and whether something in it is not stated."""
    rows: list[list[object]] = []
    for title, bill in bills:
        for part in PARTS:
            value, unstated = quantity.by_part(bill).get(part, 0.0), part in quantity.unstated(bill)
            if value or unstated:
                rows.append([title, part, value or None, "yes" if unstated else "no"])
    return table_csv(["run", "part", f"{quantity.name} of one step ({quantity.unit})", "something is not stated"], rows)
