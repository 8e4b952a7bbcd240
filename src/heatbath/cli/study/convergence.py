"""`heatbath study convergence RECIPE`: steps and time to fixed targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import answer, mistakes, named_recipe


def convergence(
    recipe: options.Recipe,
    runs: options.Trials = None,
    out: options.Page = None,
    steps: options.TrialSteps = None,
    seeds: Annotated[int, typer.Option(help="Runs with the best of each optimizer.")] = 3,
    batch_size: options.BatchSize = None,
    eval_every: options.EvalEvery = None,
    bits: Annotated[list[int] | None, typer.Option(help="Precisions of the machine. Default 8 and 12.")] = None,
    machine: options.StudiedMachine = None,
    baseline: Annotated[list[str] | None, typer.Option(help="Further baselines besides AdamW: sgd, nadamw, muon, …")] = None,
    contender: Annotated[str, typer.Option(help="The K-FAC of the study: kfac or kfac-quadratic.")] = "kfac",
    trials: Annotated[int, typer.Option(help="Trials of each optimizer at most.")] = 40,
    jobs: options.Jobs = 1,
) -> None:
    """Steps and time of AdamW, other baselines, digital and thermodynamic K-FAC, each tuned on held-out training data."""
    with mistakes():
        from heatbath.experiments.studies import Convergence, convergence_page

        function = named_recipe(recipe)
        study = Convergence(
            function,
            steps=function().steps if steps is None else steps,
            seeds=seeds,
            bits=tuple(bits or (8, 12)),
            machine=machine,
            batch_size=batch_size,
            eval_every=eval_every,
            others=tuple(baseline or ()),
            trials=trials,
            contender=contender,
        )
        folder = runs or Path("runs") / f"convergence-{recipe}"
        answer(lambda watch: convergence_page(study, study.run(folder, jobs=jobs, watch=watch)), out or folder / "page")
