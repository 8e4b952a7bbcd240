"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from heatbath.costs import with_unit
from heatbath.experiments.choice import TITLES
from heatbath.experiments.experiment import Experiment
from heatbath.machines import MachineSpec


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> Table:
    """A table of text; the first column is the name of the row."""
    table = Table(title=title, title_justify="left", title_style="", header_style="bold")
    for i, column in enumerate(head):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    return table


def machines_table(specs: Iterable[MachineSpec]) -> Table:
    """Machines with what decides their speed and precision, and where the figures come from; "–" is not stated, or ideal."""
    table = Table(header_style="bold", show_lines=True)
    for column in ("machine", "cells", "τ", "settle", "bits matrix/drive/read", "transfer"):
        table.add_column(column, no_wrap=True)
    table.add_column("source", overflow="fold", ratio=1)
    for spec in specs:
        bits = "/".join(_number(b) for b in (spec.matrix_bits, spec.drive_bits, spec.read_bits))
        source = spec.source or "–"
        table.add_row(
            spec.name,
            "any" if spec.cells is None else str(spec.cells),
            with_unit(spec.time_constant, "s"),
            "–" if spec.settle_taus is None else f"{spec.settle_taus:g} τ",
            bits,
            "–" if spec.bandwidth is None else with_unit(spec.bandwidth, "bit/s"),
            Text(source).append(f"\n{spec.notes}", style="dim") if spec.notes else source,
        )
    return table


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def recipes_table(experiments: Iterable[Experiment]) -> Table:
    """Recipes with their task, data, target and default hyper-parameters."""
    table = Table(header_style="bold", show_lines=True)
    table.add_column("recipe", no_wrap=True)
    for column in ("task", "data", "target", "defaults"):
        table.add_column(column, overflow="fold", ratio=1)
    for experiment in experiments:
        defaults = [f"{TITLES.get(name, name)} lr {h.lr:g}" for name, h in experiment.hyper.items()]
        table.add_row(
            experiment.name,
            experiment.summary,
            experiment.source.note,
            experiment.target.describe(),
            f"{experiment.steps} steps of {experiment.batch_size}; {', '.join(defaults)}",
        )
    return table
