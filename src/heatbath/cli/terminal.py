"""What the commands share: messages and exit codes, the console, the bars, the table and report of a run.

A mistake of the user ends in one message on the error stream and exit code 2 (with its traceback if HEATBATH_TRACEBACK is
set); a run that diverged in 1; a run that was interrupted in 130.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from heatbath.experiments import Choice, Experiment, Record, RunFiles
    from heatbath.experiments.runner import Watcher
    from heatbath.experiments.studies import Page
    from heatbath.experiments.trials import Watch

WRONG_USE, DIVERGED, INTERRUPTED = 2, 1, 130


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn what the library raises for a caller's mistake into one message and an exit code."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("HEATBATH_TRACEBACK"):
            raise
        complain(str(error))
        raise typer.Exit(WRONG_USE) from None
    except KeyboardInterrupt:
        complain("stopped at once; every row that was written to a record is kept")
        raise typer.Exit(INTERRUPTED) from None


def complain(message: str) -> None:
    """Say what went wrong, on the error stream."""
    typer.secho(f"heatbath: {message}", err=True, fg="red")


def console() -> Console:
    """A terminal of its own width, or 120 columns in a file; text is printed as it is, without markup."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)


def unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that does not exist."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def named_device(name: str) -> torch.device:
    """The device an option names; ValueError for one that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or auto, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device(name)


def named_recipe(name: str) -> Callable[[], Experiment]:
    """The function that returns the recipe of this name; ValueError for one that is not there."""
    from heatbath.experiments.optimizers import known
    from heatbath.recipes import recipe_functions

    functions = recipe_functions()
    return functions[known(name, functions, "recipe")]


@contextmanager
def display(console: Console) -> Iterator[tuple[Callable[[Choice, RunFiles], Iterable[Watcher]], Callable[[], None]]]:
    """Live bars, and TensorBoard's files beside them: what makes the watchers of a run, and what tells of a Ctrl-C."""
    from heatbath.experiments.progress import Display
    from heatbath.experiments.tensorboard import TensorBoardLog

    with Display(console) as display:

        def watch(choice: Choice, files: RunFiles) -> Iterable[Watcher]:
            return [display.bar(choice.title), TensorBoardLog(files)]

        def notice() -> None:
            display.say("[yellow]stopping after this step; Ctrl-C again stops at once[/]")

        yield watch, notice


@contextmanager
def trial_bar(console: Console, *, total: int | None) -> Iterator[Watch]:
    """One bar over the trials of a search or a study: what is to be told of each."""
    from heatbath.experiments.progress import Display, TrialBar

    with Display(console) as display:
        bar = TrialBar(display, total)
        yield lambda trial, record, fresh: bar(trial.name, record, fresh)


def answer(study: Callable[[Watch], Page], folder: Path) -> None:
    """Make the trials of a study, each told to what `study` is given, and write the page that it returns."""
    terminal = console()
    with trial_bar(terminal, total=None) as watch:
        page = study(watch)
    terminal.print(f"page: {page.write(folder)}", highlight=False, soft_wrap=True)


def present(console: Console, records: list[Record], folder: Path) -> None:
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
        complain(f"interrupted {records[-1].events[-1]['message']}{resume}")
        raise typer.Exit(INTERRUPTED)
    diverged = [f"{record.title}: {record.events[-1]['message']}" for record in records if record.ended == "diverged"]
    if diverged:
        complain("; ".join(diverged))
        raise typer.Exit(DIVERGED)


def _resuming(folder: Path) -> str:
    """The present command line, made to resume."""
    from heatbath.experiments.environment import command

    line = command()
    line += "" if "--out" in line else f" --out {shlex.quote(str(folder))}"
    return line if "--resume" in line else f"{line} --resume"
