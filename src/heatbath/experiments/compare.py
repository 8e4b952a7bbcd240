"""Several runs of one task side by side: a table, and what each would cost on hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heatbath.costs import Bill, Digital, h100, price, with_unit
from heatbath.experiments.records import Record, Row
from heatbath.machines import MachineSpec, presets

HEAD = ("run", "steps to target", "final", "best", "seconds here", "predicted on hardware", "ended")


@dataclass(frozen=True)
class Line:
    """One run in a comparison, as text ready to print."""

    run: str
    steps: str
    final: str
    best: str
    seconds: str
    predicted: str
    ended: str

    def cells(self) -> tuple[str, ...]:
        """In the order of `HEAD`."""
        return (self.run, self.steps, self.final, self.best, self.seconds, self.predicted, self.ended)


def predicted_bill(row: Row, *, digital: Digital | None = None, machines: Mapping[str, MachineSpec] | None = None) -> Bill:
    """Price the cumulative work of a row: one step's mean share, times its steps.

    Args:
        row: with "work", that is a measured one.
        digital: who does the digital kernels; None: an H100 by its measured table.
        machines: by name; None: the presets. One machine of each kind serves all layers in turn.
    """
    steps = max(int(row["step"]), 1)
    per_step = Record.work(row) * (1.0 / steps)
    return price(per_step, digital=digital or h100(), machines=machines or presets()) * steps


def compare(records: Sequence[Record], machines: Mapping[str, MachineSpec] | None = None) -> list[Line]:
    """One line per record."""
    lines = []
    for record in records:
        target = record.target
        reached = record.reached()
        _, _, values = record.metric(target.metric)
        best = max(values, default=float("nan")) if target.higher else min(values, default=float("nan"))
        last = record.measured[-1] if record.measured else None
        predicted = "–"
        if last is not None and last["step"]:
            bill = predicted_bill(last, machines=machines)
            predicted = with_unit(bill.seconds, "s") + (" or more" if bill.unstated_seconds else "")
        lines.append(
            Line(
                record.name,
                "not reached" if reached is None else str(reached["step"]),
                f"{values[-1]:.4g}" if values else "–",
                f"{best:.4g}",
                f"{record.rows[-1]['seconds']:.1f}" if record.rows else "–",
                predicted,
                record.ended,
            )
        )
    return lines
