"""The command line: one file per command, and what they share in `terminal.py` and `options.py`.

Everything heavy is imported inside the commands, so `heatbath --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from heatbath.cli import (
    demo,
    floors,
    laplace,
    lists,
    machine,
    max_cut,
    quadratic_program,
    report,
    sample,
    solve,
    spice,
    study,
    train,
    tune,
)

app = typer.Typer(
    help="Second-order training of neural networks on an emulated thermodynamic computer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; the entry point of the program."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"heatbath {version('heatbath')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    pass


app.command()(demo.demo)
app.command()(train.train)
app.command()(tune.tune)
app.add_typer(study.app, name="study", no_args_is_help=True)
app.command()(report.report)
app.command()(floors.floors)
app.command()(solve.solve)
app.command()(sample.sample)
app.command("qp")(quadratic_program.quadratic_program)
app.command("max-cut")(max_cut.max_cut)
app.command()(laplace.laplace)
app.command()(spice.spice)
app.add_typer(machine.app, name="machine")
app.command()(lists.machines)
app.command("recipes")(lists.recipes)
