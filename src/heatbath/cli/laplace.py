"""`heatbath laplace RECIPE`: a network that knows what it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import INTERRUPTED, complain, console, display, mistakes, named_recipe, unused


def laplace(
    recipe: Annotated[str, typer.Argument(help="A recipe with classes; see `heatbath recipes`.")],
    examples: Annotated[int, typer.Option(help="Training examples that are used; few, so that there is doubt.")] = 200,
    prior: Annotated[
        float | None, typer.Option(help="Precision δ of the weights' prior; by default what held-out examples like best.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Weights that are drawn.")] = 100,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.toml", help="Draw weights on this machine, too; it needs noise.")
    ] = None,
    steps: options.RunSteps = None,
    seed: Annotated[
        int, typer.Option(min=0, max=options.LARGEST_SEED, help="Seed of the start, the batches and the draws.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; by default runs/laplace-RECIPE, numbered.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out, or use what is there.")] = False,
) -> None:
    """Train with K-FAC on few examples, fit a Laplace posterior from its factors, and compare predictions and calibration."""
    with mistakes():
        import torch

        from heatbath.experiments import RunFiles, RunOptions, choose, run, uncertainty
        from heatbath.experiments.environment import command
        from heatbath.experiments.optimizers import machine_spec
        from heatbath.experiments.plots import save_figure
        from heatbath.experiments.tables import text_table
        from heatbath.experiments.uncertainty_plots import uncertainty_figure
        from heatbath.machines import Machine

        if resume and out is None:
            raise ValueError("--resume goes on with the run in a folder: say which with --out")
        terminal, whole = console(), named_recipe(recipe)()
        emulated = None if machine is None else Machine(machine_spec(machine, None))
        experiment = uncertainty.few_examples(whole, examples)
        files = RunFiles(out or unused(Path("runs") / f"laplace-{recipe}"))
        how = RunOptions(steps=whole.steps if steps is None else steps, seed=seed, resume=resume)
        dataset, choice = experiment.source.load(), choose(experiment, "kfac")
        with display(terminal) as (watch, notice):
            watchers = watch(choice, files)
            record = run(
                *(experiment, choice), options=how, files=files, dataset=dataset, watchers=watchers, on_interrupt=notice
            )
        if record.ended != "finished":
            complain(f"the training {record.ended}: {record.events[-1]['message']}; --resume --out {files.folder} goes on")
            raise typer.Exit(INTERRUPTED)
        posterior = uncertainty.fit(uncertainty.trained_model(experiment, files), dataset, prior=prior)
        generator = torch.Generator().manual_seed(seed)
        rows, drawn = uncertainty.measure(posterior, whole.source, samples=samples, machine=emulated, generator=generator)
        delta = next(iter(posterior.priors.values()))
        title = (
            f"{posterior.examples} examples, {posterior.parameters:,} weights, prior precision {delta:.3g}: the data determine "
            f"{posterior.effective_parameters():.3g} of them"
        )
        terminal.print(text_table(uncertainty.HEAD, [row.cells() for row in rows], title=title))
        if drawn is not None:
            clips = ", ".join(f"{name} {count}" for name, count in drawn.notes.items())
            terminal.print(f"machine: {drawn.work.analog_seconds:.3g} s of analog time; {clips}", highlight=False)
        uncertainty.write_measured(files.folder / "laplace.json", rows, posterior, command=command())
        for ending in ("png", "svg"):
            save_figure(uncertainty_figure(rows), files.folder / f"laplace.{ending}")
        for name in ("laplace.json", "laplace.png"):
            terminal.print(str(files.folder / name), highlight=False, soft_wrap=True)
