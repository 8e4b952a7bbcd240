"""Live progress in a terminal: one bar per run, or one over many trials, with the latest figures and the time left.

Time left is that per unit of work done here so far, times the units left; what an earlier process did counts for neither.
"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from heatbath.experiments.records import Record, Row

NARROW, SHORT = 100, 6  # columns of a terminal, and of its bars where it has fewer than that


class TimeLeft(ProgressColumn):
    """How long the rest will take. Fields of the task: `done`, units made here, and `at`, the seconds it took to make them."""

    def render(self, task: Task) -> Text:
        """Of one bar."""
        return Text(left_text(task), style="progress.remaining")


def left_text(task: Task) -> str:
    """In words, counting down between two units."""
    done, at = task.fields.get("done", 0), task.fields.get("at", 0.0)
    if task.finished:
        return "done"
    if not done:
        return "-:-- left"
    each = at / done
    if task.total is None:
        return f"{each:.3g} s each"
    seconds = max(0.0, each * (task.total - task.completed) - ((task.elapsed or at) - at))
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}") + " left"


class Display:
    """What the bars of several runs share: the live area, and lines that are said once. Use it as a context manager.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("[bold]{task.description}", table_column=Column(overflow="ellipsis", no_wrap=True, ratio=1)),
            BarColumn(bar_width=SHORT if console.width < NARROW else None, table_column=Column(ratio=1)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TimeLeft(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
        )
        self._said: set[str] = set()

    def __enter__(self) -> Display:
        return self  # drawn from the first bar on

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        """Print a line of Rich markup above the bars, unless it was said before."""
        if line not in self._said:
            self._said.add(line)
            self.progress.console.print(line, highlight=False, markup=True)

    def bar(self, name: str) -> ProgressBar:
        """The watcher of one more run."""
        return ProgressBar(self, name)


class TrialBar:
    """One bar over many trials, and a line for each that is done.

    Args:
        display: where.
        total: how many there are; None: not known beforehand.
    """

    def __init__(self, display: Display, total: int | None) -> None:
        self.display = display
        display.progress.start()
        self.task = display.progress.add_task("trials", total=total, figures="")
        self.done = 0

    def __call__(self, name: str, record: Record, fresh: bool) -> None:
        """Say how a trial ended, unless it was done before, and move the bar."""
        if fresh:
            target = record.target.metric
            value = record.measured[-1]["metrics"].get(target) if record.measured else None
            figures = f"{target} {value:.4g}" if value is not None and record.ended == "finished" else record.ended
            self.display.say(f"{escape(name)}: {escape(figures)}, {record.rows[-1]['seconds']:.1f} s")
            self.done += 1
            _mark(self.display.progress, self.task, self.done)
        self.display.progress.advance(self.task)


def _mark(progress: Progress, task: TaskID, done: int) -> None:
    """Note how much was done here, and when."""
    elapsed = next(one.elapsed for one in progress.tasks if one.id == task)
    progress.update(task, done=done, at=elapsed or 0.0)


class ProgressBar:
    """A watcher that moves one bar.

    Args:
        display: where.
        name: what to call the run.
    """

    def __init__(self, display: Display, name: str) -> None:
        self.display, self.progress, self.name = display, display.progress, escape(name)
        self.task: TaskID | None = None
        self.begun = 0
        self.metric = ""
        self.measured = ""

    def start(self, header: Row, step: int) -> None:
        """Say which data are really used, and show the bar."""
        self.progress.start()
        data = header["dataset"]
        self.display.say(
            f"data: [bold]{escape(data['name'])}[/], {data['train']:,} + {data['test']:,} examples, {escape(data['source'])}"
        )
        self.metric, self.begun = header["target"]["metric"], step
        self.task = self.progress.add_task(self.name, total=header["steps"], completed=step, figures="")

    def row(self, row: Row) -> None:
        """Move it."""
        assert self.task is not None
        if self.metric in row.get("metrics", {}):
            self.measured = f"  {self.metric} {row['metrics'][self.metric]:.4g}"
        self.progress.update(self.task, completed=row["step"], figures=f"loss {row['loss']:.4g}{escape(self.measured)}")
        _mark(self.progress, self.task, row["step"] - self.begun)

    def event(self, event: Row) -> None:
        """Say what happened above the bars, if it is trouble."""
        if event["event"] in ("warning", "diverged", "resumed"):
            colour = {"warning": "yellow", "diverged": "red"}.get(event["event"], "cyan")
            self.display.say(f"[{colour}]{self.name}: {event['event']}:[/] {escape(event['message'])}")

    def close(self) -> None:
        """Leave the bar as it is."""
