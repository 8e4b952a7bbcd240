"""`heatbath report RUNS…`: one page about runs of one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli.terminal import mistakes


def report(
    runs: Annotated[list[Path], typer.Argument(help="Records (.jsonl), or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs of one recipe."""
    with mistakes():
        from heatbath.experiments.comparison import find_records
        from heatbath.experiments.environment import command
        from heatbath.experiments.report import write_report

        records = find_records(runs)
        write_report(records, out, command=command())
        typer.echo(f"{out}: {len(records)} runs")
