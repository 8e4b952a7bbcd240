"""Live progress in a terminal: one bar per run, with its loss, its latest metric and the time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from heatbath.experiments.records import Row


def progress_on(console: Console) -> Progress:
    """The display that bars of several runs share; use it as a context manager."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
    )


class ProgressBar:
    """A watcher that moves one bar.

    Args:
        progress: the display.
        name: what to call the run.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name = progress, name
        self.task: TaskID | None = None
        self.metric = ""
        self.measured = ""

    def start(self, header: Row, step: int) -> None:
        """Show the bar."""
        self.metric = header["target"]["metric"]
        self.task = self.progress.add_task(self.name, total=header["steps"], completed=step, figures="")

    def row(self, row: Row) -> None:
        """Move it."""
        assert self.task is not None
        if self.metric in row.get("metrics", {}):
            self.measured = f"  {self.metric} {row['metrics'][self.metric]:.4g}"
        self.progress.update(self.task, completed=row["step"], figures=f"loss {row['loss']:.4g}{self.measured}")

    def event(self, event: Row) -> None:
        """Say what happened above the bars, if it is trouble."""
        if event["event"] in ("warning", "diverged", "resumed"):
            colour = {"warning": "yellow", "diverged": "red"}.get(event["event"], "cyan")
            self.progress.console.print(f"[{colour}]{self.name}: {event['event']}:[/] {event['message']}", highlight=False)

    def close(self) -> None:
        """Leave the bar as it is."""
