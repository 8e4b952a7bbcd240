"""How far from the floor: the predicted energy of recorded runs beside the least that physics allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from heatbath.costs import Bill, Digital, Floors, floors, with_unit
from heatbath.experiments.comparison import predict
from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.plots import COLOURS, style
from heatbath.experiments.records import Record

FLOORS = {
    "irreversible": "kT ln 2 for the result of every operation",
    "reversible": "kT ln 2 for what kernels leave behind",
    "analog": "signal above thermal noise, in every cell of every drive",
}


@dataclass(frozen=True)
class Distance:
    """A run's energy and its floors.

    Args:
        title: the optimizer.
        bill: predicted for the whole run.
        least: the floors of its work.
    """

    title: str
    bill: Bill
    least: Floors

    def cells(self) -> list[str]:
        """A row of the table; "≥" where a source states no energy for a part."""
        digital = self.bill.joules_by_part.get("digital", 0.0)
        unstated = self.bill.unstated_joules
        analog = self.bill.joules - digital
        machine = with_unit(analog, "J") if analog else ("not stated" if unstated else "–")
        ratio = f"{'≥ ' if unstated else ''}{self.bill.joules / self.least.irreversible:.1e}"
        values = [with_unit(getattr(self.least, name), "J") if getattr(self.least, name) else "–" for name in FLOORS]
        return [self.title, with_unit(digital, "J"), machine, *values, ratio]


HEAD = ["run", "digital side", "machine", *(f"{name} floor" for name in FLOORS), "times floor"]


def distances(records: Sequence[Record], *, digital: Digital | None = None, temperature: float = 300.0) -> list[Distance]:
    """The distance of each run that has steps to count.

    Args:
        records: the runs.
        digital: who does the kernels; None: an H100.
        temperature: of the floors, in kelvin.

    Raises:
        ValueError: no run has counted work.
    """
    found = []
    for record in records:
        bill = predict(record, digital=digital)
        rows = [row for row in record.measured if row["step"] > 0 and "work" in row]
        if bill is not None:
            found.append(Distance(record.title, bill, floors(record.work(rows[-1]), temperature=temperature)))
    if not found:
        raise ValueError(f"none of the {len(records)} runs has counted work; a run needs at least one measured step")
    return found


def floors_figure(rows: Sequence[Distance]) -> Figure:
    """Joules on a logarithmic scale: the bill as bars, the floors as marks."""
    with style():
        figure = Figure(figsize=(7.6, 1.3 + 0.55 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for i, row in enumerate(rows):
            axes.plot(row.bill.joules, i, "s", color=COLOURS[0], markersize=9, label="predicted bill" if i == 0 else None)
            if row.bill.unstated_joules:
                axes.annotate("not all stated", (row.bill.joules, i), (7, -3), textcoords="offset points", fontsize=8)
            for k, name in enumerate(FLOORS, 1):
                value = getattr(row.least, name)
                if value:
                    axes.plot(value, i, "|", color=COLOURS[k], markersize=16, markeredgewidth=3)
            axes.plot([row.least.reversible, row.bill.joules], [i, i], color=COLOURS[5], alpha=0.4, linewidth=1, zorder=0)
        for k, (name, words) in enumerate(FLOORS.items(), 1):
            if any(getattr(row.least, name) for row in rows):
                axes.plot([], [], "|", color=COLOURS[k], markersize=12, markeredgewidth=3, label=f"{name}: {words}")
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), [row.title for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("energy of the run (J)")
        axes.grid(True, axis="x", alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    return figure


def floors_csv(rows: Sequence[Distance]) -> str:
    """The data of the figure, in joules; an empty cell is not stated."""
    cells: list[list[object]] = []
    for row in rows:
        digital = row.bill.joules_by_part.get("digital", 0.0)
        least = [float(getattr(row.least, name)) for name in FLOORS]
        cells.append([row.title, digital, row.bill.joules - digital, "; ".join(sorted(row.bill.unstated_joules)), *least])
    return table_csv(["run", "digital", "machine", "unstated", *FLOORS], cells)
