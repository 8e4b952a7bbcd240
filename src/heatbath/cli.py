"""The command line: `heatbath demo`, `train`, `report`, `machines`, `recipes`.

Everything heavy is imported inside the commands, so `heatbath --help` answers at once. A mistake of the user ends in one
message on the error stream and exit code 2 (with its traceback if HEATBATH_TRACEBACK is set); a run that diverged in 1; a run
that was interrupted in 130.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from heatbath.experiments import Choice, Record, RunFiles
    from heatbath.experiments.runner import Watcher

app = typer.Typer(
    help="Second-order training of neural networks on an emulated thermodynamic computer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WRONG_USE, DIVERGED, INTERRUPTED = 2, 1, 130
DEMO_SECONDS_PER_RUN = 12.0
DEMO_STEPS = 150
DEMO_BITS = 8


def main() -> None:
    """Run the command line; the entry point of the program."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"heatbath {version('heatbath')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for records and report; by default runs/demo, numbered.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the start, the batches and the machine's noise.")] = 0,
) -> None:
    """Train one network four ways from one start: AdamW, K-FAC, thermodynamic K-FAC by inverting and by solving."""
    with _mistakes():
        from heatbath.experiments import RunOptions, choose
        from heatbath.experiments.comparison import compare
        from heatbath.recipes import recipes

        console = _console()
        experiment = recipes()["digits-mlp"]
        choices = [
            choose(experiment, "adamw"),
            choose(experiment, "kfac"),
            choose(experiment, "kfac", solver="thermodynamic-inverse", bits=DEMO_BITS),
            choose(experiment, "kfac", solver="thermodynamic-solve", bits=DEMO_BITS),
        ]
        folder = out or _unused(Path("runs") / "demo")
        console.print(f"[bold]{experiment.summary}[/], {len(choices)} times from the same start", highlight=False)
        options = RunOptions(steps=DEMO_STEPS, seed=seed, checkpoint_every=0, max_seconds=DEMO_SECONDS_PER_RUN)
        with _display(console) as (watch, notice):
            records = compare(experiment, choices, options=options, folder=folder, watch=watch, on_interrupt=notice)
        _present(console, records, folder)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="What to train; see `heatbath recipes`.")],
    optimizer: Annotated[str, typer.Option(help="sgd, adam, adamw or kfac.")] = "kfac",
    solver: Annotated[
        str | None, typer.Option(help="For kfac: cholesky (default), eigen, thermodynamic-inverse or thermodynamic-solve.")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.toml", help="For thermodynamic solvers: a preset, or a file. Default tngd-2024."),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Bits of all the machine's converters; by default the machine's own.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates in all; by default the recipe's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; by default the recipe's.")] = None,
    damping: Annotated[float | None, typer.Option(help="Damping of the curvature; by default the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the start, the batches and the machine's noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/RECIPE-OPTIMIZER, numbered.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its last checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
) -> None:
    """Train a recipe; options mean the same for every recipe. Writes a record, checkpoints, TensorBoard files and a report."""
    with _mistakes():
        from heatbath.experiments import RunFiles, RunOptions, choose, run
        from heatbath.experiments.optimizers import known
        from heatbath.recipes import recipes

        console = _console()
        experiment = recipes()[known(recipe, recipes(), "recipe")]
        choice = choose(experiment, optimizer, solver=solver, machine=machine, bits=bits, lr=lr, damping=damping)
        if resume and out is None:
            raise ValueError("--resume goes on with the run in a folder: say which with --out")
        folder = out or _unused(Path("runs") / f"{experiment.name}-{choice.label}")
        options = RunOptions(
            steps=experiment.steps if steps is None else steps, seed=seed, device=_device(device), resume=resume
        )
        files = RunFiles(folder)
        console.print(f"[bold]{experiment.summary}[/] with {choice.title}", highlight=False)
        with _display(console) as (watch, notice):
            record = run(experiment, choice, options=options, files=files, watchers=watch(choice, files), on_interrupt=notice)
        _present(console, [record], folder)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Records (.jsonl), or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs of one recipe."""
    with _mistakes():
        from heatbath.experiments.comparison import find_records
        from heatbath.experiments.environment import command
        from heatbath.experiments.report import write_report

        records = find_records(runs)
        write_report(records, out, command=command())
        typer.echo(f"{out}: {len(records)} runs")


@app.command()
def machines() -> None:
    """List the preset machines with their source; a file with the same fields is a machine, too."""
    with _mistakes():
        from heatbath.experiments.tables import machines_table
        from heatbath.machines import presets

        _console().print(machines_table(presets().values()))


@app.command("recipes")
def list_recipes() -> None:
    """List the recipes with their data."""
    with _mistakes():
        from heatbath.experiments.tables import recipes_table
        from heatbath.recipes import recipes

        _console().print(recipes_table(recipes().values()))


# --- what the commands share ---------------------------------------------------------------------------------------------


@contextmanager
def _mistakes() -> Iterator[None]:
    """Turn what the library raises for a caller's mistake into one message and an exit code."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("HEATBATH_TRACEBACK"):
            raise
        _complain(str(error))
        raise typer.Exit(WRONG_USE) from None
    except KeyboardInterrupt:
        _complain("stopped at once; every row that was written to a record is kept")
        raise typer.Exit(INTERRUPTED) from None


def _complain(message: str) -> None:
    typer.secho(f"heatbath: {message}", err=True, fg="red")


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def _unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that does not exist."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or auto, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device(name)


@contextmanager
def _display(console: Console) -> Iterator[tuple[Callable[[Choice, RunFiles], Iterable[Watcher]], Callable[[], None]]]:
    """Live bars, and TensorBoard's files beside them: what makes the watchers of a run, and what tells of a Ctrl-C."""
    from heatbath.experiments.progress import Display
    from heatbath.experiments.tensorboard import TensorBoardLog

    with Display(console) as display:

        def watch(choice: Choice, files: RunFiles) -> Iterable[Watcher]:
            return [display.bar(choice.title), TensorBoardLog(files)]

        def notice() -> None:
            display.say("[yellow]stopping after this step; Ctrl-C again stops at once[/]")

        yield watch, notice


def _present(console: Console, records: list[Record], folder: Path) -> None:
    """Print the table, write the report, say where everything is, and exit by how the runs ended."""
    from heatbath.experiments.comparison import comparison_table
    from heatbath.experiments.environment import command
    from heatbath.experiments.report import write_report
    from heatbath.experiments.tables import text_table

    page = folder / "report.html"
    write_report(records, page, command=command())
    console.print(text_table(*comparison_table(records), title=f"target: {records[0].target.describe()}"))
    console.print(
        "predicted: the counted work of the run on one NVIDIA H100 and one such machine; here the machine is emulated",
        style="dim",
    )
    for what, where in (
        ("records", ", ".join(str(record.path) for record in records)),
        ("report", str(page)),
        ("curves", f"tensorboard --logdir {folder / 'tensorboard'}"),
    ):
        console.print(f"{what}: {where}", highlight=False, soft_wrap=True)
    if records[-1].ended == "interrupted":
        resume = f"; to go on: {_resuming(folder)}" if (folder / f"{records[-1].name}.pt").exists() else ""
        _complain(f"interrupted {records[-1].events[-1]['message']}{resume}")
        raise typer.Exit(INTERRUPTED)
    diverged = [f"{record.title}: {record.events[-1]['message']}" for record in records if record.ended == "diverged"]
    if diverged:
        _complain("; ".join(diverged))
        raise typer.Exit(DIVERGED)


def _resuming(folder: Path) -> str:
    """The present command line, made to resume."""
    from heatbath.experiments.environment import command

    line = command()
    line += "" if "--out" in line else f" --out {shlex.quote(str(folder))}"
    return line if "--resume" in line else f"{line} --resume"
