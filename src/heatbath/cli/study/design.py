"""`heatbath study design RECIPE`: the cheapest machine that keeps the benefit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import answer, mistakes, named_recipe


def design(
    recipe: options.Recipe = "digits-mlp",
    seconds: Annotated[float | None, typer.Option(help="Budget: seconds a step.")] = None,
    joules: Annotated[float | None, typer.Option(help="Budget: joules a step; the machine must state its energies.")] = None,
    slowdown: Annotated[float | None, typer.Option(help="Budget: time of a step over the best digital K-FAC's.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Levels to try. Default 3, 4, 6 and 8.")] = None,
    settle: Annotated[list[float] | None, typer.Option(help="Settling times to try, in τ. Default 5 and 50.")] = None,
    keep: Annotated[float, typer.Option(help="Share of the steps saved that must be kept.")] = 0.8,
    fallback: Annotated[float, typer.Option(help="Share of blocks a machine may hand to the digital side.")] = 0.0,
    seeds: Annotated[int, typer.Option(help="Runs of each.")] = 2,
    steps: options.TrialSteps = None,
    machine: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="All but bits, settling and τ.")] = "tngd-2024",
    runs: options.Trials = None,
    out: options.Page = None,
    jobs: options.Jobs = 1,
) -> None:
    """Bits, settling time, τ and number of the cheapest machines that keep K-FAC's benefit within a budget."""
    with mistakes():
        from heatbath.costs import h100, h100_bf16
        from heatbath.experiments.studies import Budget, Design, design_page
        from heatbath.machines import load_machine

        budget = Budget(seconds, joules, slowdown)
        study = Design(
            named_recipe(recipe),
            load_machine(machine),
            h100(),
            h100_bf16(),
            bits=tuple(bits or (3, 4, 6, 8)),
            settle=tuple(settle or (5.0, 50.0)),
            seeds=seeds,
            steps=steps,
            keep=keep,
            fallback=fallback,
        )
        folder = runs or Path("runs") / f"design-{recipe}"
        answer(lambda watch: design_page(study, study.run(folder, jobs=jobs, watch=watch), budget), out or folder / "page")
