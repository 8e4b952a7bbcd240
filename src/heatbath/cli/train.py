"""`heatbath train RECIPE`: one run, recorded, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import console, display, mistakes, named_device, named_recipe, present, unused


def train(
    recipe: options.Recipe,
    optimizer: Annotated[str, typer.Option(help=f"{options.OPTIMIZERS}.")] = "kfac",
    solver: Annotated[
        str | None,
        typer.Option(
            help="cholesky (default); for kfac and kfac-quadratic also eigen, thermodynamic-inverse, "
            "thermodynamic-solve; for ngd: conjugate-gradient, thermodynamic-solve. tngd has its own."
        ),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.toml", help="For thermodynamic solvers: a preset, or a file. Default tngd-2024."),
    ] = None,
    bits: options.Bits = None,
    steps: options.RunSteps = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; by default the recipe's.")] = None,
    damping: Annotated[float | None, typer.Option(help="Damping of the curvature; by default the recipe's.")] = None,
    tuned: Annotated[
        Path | None, typer.Option(help="Take the hyper-parameters that `heatbath tune` found: its folder or best.json.")
    ] = None,
    seed: options.RunSeed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/RECIPE-OPTIMIZER, numbered.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its last checkpoint.")] = False,
    device: options.Device = "auto",
) -> None:
    """Train a recipe; options mean the same for every recipe. Writes a record, checkpoints, TensorBoard files and a report."""
    with mistakes():
        from heatbath.experiments import RunFiles, RunOptions, choose, run
        from heatbath.experiments.tuned import tuned_choice

        terminal = console()
        experiment = named_recipe(recipe)()
        choice = choose(experiment, optimizer, solver=solver, machine=machine, bits=bits, lr=lr, damping=damping)
        if tuned is not None:
            if lr is not None or damping is not None:
                raise ValueError("--tuned already says the learning rate and the damping: leave out --lr and --damping")
            choice = tuned_choice(tuned, experiment.name, choice)
        if resume and out is None:
            raise ValueError("--resume goes on with the run in a folder: say which with --out")
        folder = out or unused(Path("runs") / f"{experiment.name}-{choice.label}")
        how = RunOptions(
            steps=experiment.steps if steps is None else steps, seed=seed, device=named_device(device), resume=resume
        )
        files = RunFiles(folder)
        terminal.print(f"{experiment.summary} with {choice.title}", style="bold", highlight=False)
        with display(terminal) as (watch, notice):
            record = run(experiment, choice, options=how, files=files, watchers=watch(choice, files), on_interrupt=notice)
        present(terminal, [record], folder)
