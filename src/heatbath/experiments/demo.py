"""The demonstration: one network trained from one start by AdamW, K-FAC, and thermodynamic K-FAC by both methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from heatbath.experiments.checkpoint import check_folder
from heatbath.experiments.compare import HEAD, compare
from heatbath.experiments.experiment import Experiment
from heatbath.experiments.optimizers import Choice, choose
from heatbath.experiments.progress import ProgressBar, progress_on
from heatbath.experiments.records import Record, RunFiles, read_record
from heatbath.experiments.report import write_report
from heatbath.experiments.runner import RunOptions, Watcher, run
from heatbath.experiments.tensorboard import TensorBoardLog

BITS = 8


def demo_choices(experiment: Experiment) -> list[Choice]:
    """AdamW, digital K-FAC, and both thermodynamic methods on the published machine at 8 bits."""
    return [
        choose(experiment, "adamw"),
        choose(experiment, "kfac"),
        choose(experiment, "kfac", solver="thermodynamic-inverse", bits=BITS),
        choose(experiment, "kfac", solver="thermodynamic-solve", bits=BITS),
    ]


def train_all(
    experiment: Experiment, choices: Sequence[Choice], *, options: RunOptions, folder: Path, console: Console
) -> list[Record]:
    """Train one choice after the other with live progress; after Ctrl-C the rest is left out.

    Raises:
        OSError: the folder cannot be written; said before any work.
        FileExistsError: the folder holds these runs already.
    """
    check_folder(folder, needed_bytes=0)
    dataset = experiment.source.load()
    console.print(f"data: {dataset.name} ({dataset.source})", highlight=False)
    records: list[Record] = []
    stopped = False

    def notice() -> None:
        nonlocal stopped
        stopped = True
        console.print("stopping after this step …")

    with progress_on(console) as progress:
        for choice in choices:
            files = RunFiles(folder, choice.label)
            watchers: list[Watcher] = [ProgressBar(progress, choice.label), TensorBoardLog(files)]
            records.append(
                run(
                    experiment,
                    choice,
                    options=options,
                    files=files,
                    dataset=dataset,
                    watchers=watchers,
                    on_interrupt=notice,
                )
            )
            if stopped:
                break
    return records


def show(records: Sequence[Record], console: Console) -> None:
    """Print the comparison."""
    target = records[0].target
    table = Table(title=f"{records[0].header['experiment']}: {target.describe()}")
    shown = [HEAD.index(name) for name in ("run", "steps to target", "final", "seconds here", "predicted on hardware")]
    for index in shown:
        table.add_column(HEAD[index].replace("final", f"final {target.metric}"), overflow="fold")
    for line in compare(records):
        table.add_row(*(line.cells()[index] for index in shown))
    console.print(table)


def finish(records: Sequence[Record], folder: Path, console: Console, say: Callable[[str], None]) -> None:
    """Table, report, and where everything lies."""
    show(records, console)
    page = write_report([read_record(record.path) for record in records], folder / "report.html")
    say(f"records: {', '.join(str(record.path) for record in records)}")
    say(f"report:  {page}")
