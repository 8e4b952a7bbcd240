"""`heatbath machine check`: is a machine described rightly, and what follows from it."""

from __future__ import annotations

from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import console, mistakes

app = typer.Typer(help="Look at one machine.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass  # without a callback typer would make the only command the whole program


@app.command()
def check(
    machine: Annotated[str, typer.Argument(metavar="NAME|FILE.toml", help="A preset, or a file.")],
    cells: Annotated[int | None, typer.Option(help="Size of the matrices; by default all cells, or 64.")] = None,
    condition: Annotated[
        list[float] | None, typer.Option(help="Condition number; may be repeated. By default 10, 100, 1000.")
    ] = None,
    bits: options.Bits = None,
) -> None:
    """Validate a machine and derive what follows: settling, usable condition numbers, errors, time and energy of a solve."""
    with mistakes():
        from heatbath.experiments import machine_report as report
        from heatbath.experiments.optimizers import machine_spec

        spec = machine_spec(machine, bits)
        size = min(spec.cells or 64, 64) if cells is None else cells
        checked = report.check_machine(spec, cells=size, conditions=condition or [10.0, 100.0, 1000.0])
        terminal = console()
        terminal.print(report.fields_table(spec))
        for line in (spec.source and f"source: {spec.source}", spec.notes and f"notes: {spec.notes}", *report.left_out(spec)):
            if line:
                terminal.print(line, style="dim", highlight=False)
        terminal.print(report.figures_table(checked))
        for name, value in report.limits(checked):
            terminal.print(f"{name}: {value}", highlight=False)
        if spec.coupling is not None:
            terminal.print("coupled by capacitances: the mean is no solution, the covariance is the inverse", highlight=False)
        terminal.print(report.bills_table(checked))
        terminal.print(f"{machine}: a valid machine", style="green", highlight=False)
