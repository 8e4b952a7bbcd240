"""`heatbath study quantization RECIPE`: how coarse, noisy, hasty and unequal a machine may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import answer, mistakes, named_recipe


def quantization(
    recipe: options.Recipe,
    runs: options.Trials = None,
    out: options.Page = None,
    steps: options.TrialSteps = None,
    seeds: Annotated[int, typer.Option(help="Runs of every point.")] = 2,
    batch_size: options.BatchSize = None,
    trials: Annotated[int, typer.Option(help="The most trials of one search.")] = 40,
    search_seeds: Annotated[int, typer.Option(help="Runs of every trial, of which the worst counts.")] = 3,
    matrix_bits: Annotated[list[int] | None, typer.Option(help="Bits of a matrix entry. Default 4, 6, 8, 12.")] = None,
    read_bits: Annotated[list[int] | None, typer.Option(help="Bits of the read converters. Default 4, 6, 8, 12.")] = None,
    damping: Annotated[list[float] | None, typer.Option(help="Multiples of the tuned damping. Default 0.1, 1, 10.")] = None,
    solver: Annotated[list[str] | None, typer.Option(help="Thermodynamic solvers; both by default.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="What to vary alone: noise, settling, mismatch, drift, drive, or none. Default all."),
    ] = None,
    machine: options.StudiedMachine = None,
    jobs: options.Jobs = 1,
) -> None:
    """Matrix bits, read bits and damping together, then noise, settling, mismatch and drift alone: what K-FAC keeps."""
    with mistakes():
        from heatbath.experiments.studies import Grid, Quantization, Setting, quantization_page

        function = named_recipe(recipe)
        default = Grid()
        grid = Grid(
            tuple(matrix_bits or default.matrix_bits),
            tuple(read_bits or default.read_bits),
            tuple(damping or default.dampings),
            tuple(solver or default.solvers),
            () if sweep == ["none"] else tuple(sweep or default.sweeps),
        )
        setting = Setting(function, function().steps if steps is None else steps, batch_size)
        study = Quantization(setting, grid, machine, seeds=seeds, trials=trials, search_seeds=search_seeds)
        folder = runs or Path("runs") / f"quantization-{recipe}"
        answer(lambda watch: quantization_page(study, study.run(folder, jobs=jobs, watch=watch)), out or folder / "page")
