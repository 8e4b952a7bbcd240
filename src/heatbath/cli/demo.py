"""`heatbath demo`: one network, one start, four optimizers, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import console, display, mistakes, present, unused

DEMO_SECONDS_PER_RUN = 12.0
DEMO_STEPS = 150
DEMO_BITS = 8


def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for records and report; by default runs/demo, numbered.")] = None,
    seed: options.RunSeed = 0,
) -> None:
    """Train one network four ways from one start: AdamW, K-FAC, thermodynamic K-FAC by inverting and by solving."""
    with mistakes():
        from heatbath.experiments import RunOptions, choose
        from heatbath.experiments.comparison import compare
        from heatbath.recipes import recipes

        terminal = console()
        experiment = recipes()["digits-mlp"]
        choices = [
            choose(experiment, "adamw"),
            choose(experiment, "kfac"),
            choose(experiment, "kfac", solver="thermodynamic-inverse", bits=DEMO_BITS),
            choose(experiment, "kfac", solver="thermodynamic-solve", bits=DEMO_BITS),
        ]
        folder = out or unused(Path("runs") / "demo")
        terminal.print(f"{experiment.summary}, {len(choices)} times from the same start", style="bold", highlight=False)
        how = RunOptions(steps=DEMO_STEPS, seed=seed, checkpoint_every=0, max_seconds=DEMO_SECONDS_PER_RUN)
        with display(terminal) as (watch, notice):
            records = compare(experiment, choices, options=how, folder=folder, watch=watch, on_interrupt=notice)
        present(terminal, records, folder)
