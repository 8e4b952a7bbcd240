"""`heatbath tune RECIPE`: the same search for every optimizer, on held-out training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import console, mistakes, named_device, named_recipe, trial_bar


def tune(
    recipe: Annotated[str, typer.Argument(help="What to tune on; see `heatbath recipes`.")],
    optimizer: Annotated[
        list[str],
        typer.Option(help=f"{options.OPTIMIZERS}; several to compare them."),
    ],
    trials: Annotated[int, typer.Option(help="Trials of each optimizer.")],
    out: Annotated[Path, typer.Option(help="Folder of the search; an unfinished search in it goes on.")],
    solver: Annotated[
        list[str] | None,
        typer.Option(help="For kfac, kfac-quadratic and ngd, as in train; give several to compare them. Default cholesky."),
    ] = None,
    machine: Annotated[str | None, typer.Option(metavar="NAME|FILE.toml", help="For thermodynamic solvers.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="For thermodynamic solvers; give several to compare them.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates of each trial; by default the recipe's.")] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=options.LARGEST_SEED, help="Seed of the candidates, the start, the batches and the machine's noise."
        ),
    ] = 0,
    jobs: options.Jobs = 1,
    device: options.Device = "auto",
) -> None:
    """Tune optimizers with the same budget: as many trials and steps for each. Kill it at will: run again, it goes on.

    Learning rates, and dampings where there are any, are drawn around the recipe's defaults; trials are judged on held-out
    training data, never on the test split. `heatbath train RECIPE --tuned DIR` uses what was found.
    """
    with mistakes():
        from heatbath.experiments.optimizers import choose_all
        from heatbath.experiments.tables import text_table
        from heatbath.experiments.tuned import RESULT, RULE, tuned_table
        from heatbath.experiments.tuning import Search, search

        function = named_recipe(recipe)
        experiment = function()
        choices = choose_all(experiment, optimizer, solvers=solver, machine=machine, bits=bits)
        how = Search(
            function,
            trials=trials,
            steps=experiment.steps if steps is None else steps,
            seed=seed,
            device=named_device(device),
        )
        terminal = console()
        with trial_bar(terminal, total=trials * len(choices)) as watch:
            found = search(how, choices, out, jobs=jobs, watch=watch)
        metric = experiment.target.metric.removeprefix("test ")
        terminal.print(text_table(*tuned_table(found, metric), title=RULE.format(metric=metric)))
        for tuned in found:
            if tuned.near_edge:
                terminal.print(
                    f"{tuned.choice.title}: the best {' and '.join(tuned.near_edge)} lies near the end of what was "
                    "tried; a better one may lie outside",
                    style="yellow",
                    highlight=False,
                )
        terminal.print(f"result: {out / RESULT}", highlight=False, soft_wrap=True)
        terminal.print(f"to use it: heatbath train {recipe} --tuned {out}", highlight=False, soft_wrap=True)
