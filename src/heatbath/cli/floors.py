"""`heatbath floors RUNS…`: how far a run's energy is from what physics allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli.terminal import console, mistakes


def floors(
    runs: Annotated[list[Path], typer.Argument(help="Records (.jsonl), or folders that hold some.")],
    out: Annotated[Path | None, typer.Option(help="Also draw a figure (.svg, .png or .pdf), with its data as .csv.")] = None,
    temperature: Annotated[float, typer.Option(help="Temperature of the floors, in kelvin.")] = 300.0,
) -> None:
    """Set the predicted energy of runs beside kT ln 2 per erased bit and the noise floor of analog cells."""
    with mistakes():
        from heatbath.experiments.comparison import find_records
        from heatbath.experiments.floors import FLOORS, HEAD, distances, floors_csv, floors_figure
        from heatbath.experiments.plots import save_figure
        from heatbath.experiments.tables import text_table

        rows = distances(find_records(runs), temperature=temperature)
        terminal = console()
        terminal.print(text_table(HEAD, [row.cells() for row in rows]))
        for name, words in FLOORS.items():
            terminal.print(f"{name} floor: {words}", style="dim", highlight=False)
        terminal.print("times floor: all that is stated, over the irreversible floor", style="dim", highlight=False)
        terminal.print("digital side: power of one NVIDIA H100 times predicted seconds", style="dim", highlight=False)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            save_figure(floors_figure(rows), out)
            out.with_suffix(".csv").write_text(floors_csv(rows), encoding="utf-8")
            terminal.print(f"figure: {out}, data: {out.with_suffix('.csv')}", highlight=False, soft_wrap=True)
