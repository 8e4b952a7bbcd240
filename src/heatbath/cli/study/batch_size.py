"""`heatbath study batch-size RECIPE`: steps to a target against batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import answer, mistakes, named_recipe


def batch_size(
    recipe: options.Recipe,
    runs: options.Trials = None,
    out: options.Page = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Batch sizes, at least three. Default 16, 32, 64, 128, 256, 512, 1024.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What has to reach the target; by default the recipe's.")] = None,
    target: Annotated[float | None, typer.Option(help="Value to be reached; by default the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="The most updates of a run; by default the recipe's.")] = None,
    eval_every: options.EvalEvery = None,
    seeds: Annotated[int, typer.Option(help="Runs with the best of each.")] = 3,
    trials: Annotated[int, typer.Option(help="Trials of every optimizer at every batch size.")] = 8,
    solver: Annotated[str, typer.Option(help="Of thermodynamic K-FAC.")] = "thermodynamic-solve",
    bits: Annotated[int, typer.Option(help="Of its machine.")] = 8,
    machine: options.StudiedMachine = None,
    jobs: options.Jobs = 1,
) -> None:
    """Steps to a target against batch size: SGD, Adam, K-FAC and thermodynamic K-FAC, each tuned at each."""
    with mistakes():
        from heatbath.experiments.experiment import Target
        from heatbath.experiments.studies import BatchSize, Contender, Setting, batch_size_page

        function = named_recipe(recipe)
        task = function()
        name = task.target.metric if metric is None else metric
        higher = task.target.higher if name == task.target.metric else not name.endswith(("loss", "error"))
        value = task.target.value if target is None else target
        if target is None and name != task.target.metric:
            raise ValueError(f"--metric {name!r} needs a value to reach: add --target")
        analog = Contender("kfac", solver, machine, bits)
        study = BatchSize(
            Setting(function, task.steps if steps is None else steps, eval_every=eval_every or task.eval_every),
            tuple(batch_size or (16, 32, 64, 128, 256, 512, 1024)),
            Target(name, value, higher),
            (Contender("sgd"), Contender("adam"), Contender("kfac"), analog),
            seeds=seeds,
            trials=trials,
        )
        folder = runs or Path("runs") / f"batch-size-{recipe}"
        answer(lambda watch: batch_size_page(study, study.run(folder, jobs=jobs, watch=watch)), out or folder / "page")
