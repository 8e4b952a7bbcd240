from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from heatbath.experiments.progress import Display, TrialBar, left_text
from tests.experiments import tasks


def test_the_terminal_shows_the_data_really_used_the_loss_and_the_metric(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    with Display(console) as display:
        record = tasks.train(tmp_path, "adamw", watchers=[display.bar("AdamW")])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "data: blobs, 96 + 30 examples, made here" in shown
    assert f"test accuracy {record.rows[-1]['metrics']['test accuracy']:.4g}" in shown
    assert "20/20" in shown


def test_a_line_is_said_once_and_trouble_is_said(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    with Display(console) as display:
        for name in ("one", "two"):
            bar = display.bar(name)
            data = {"name": "set", "source": "here [x]", "train": 1, "test": 2}
            bar.start({"dataset": data, "target": {"metric": "m"}, "steps": 3}, 0)
        bar.event({"event": "warning", "step": 1, "message": "too hot"})
        bar.event({"event": "finished", "step": 3, "message": "all done"})
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("here [x]") == 1
    assert "two: warning: too hot" in shown
    assert "all done" not in shown


def test_a_trial_that_was_run_is_said_with_its_value_and_an_old_one_only_counted(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    record = tasks.train(tmp_path, "adamw", steps=5)
    with Display(console) as display:
        bar = TrialBar(display, 2)
        bar("first", record, False)
        bar("second", record, True)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "first" not in shown
    assert f"second: test accuracy {record.rows[-1]['metrics']['test accuracy']:.4g}" in shown
    assert "2/2" in shown


def test_the_time_left_is_that_per_unit_made_here_times_the_units_left() -> None:
    now = 0.0
    progress = Progress(get_time=lambda: now)
    task = progress.add_task("", total=100, completed=40)
    assert left_text(progress.tasks[0]) == "-:-- left"
    progress.update(task, completed=50, done=10, at=20.0)  # 2 s each, 50 left; 40 were made by an earlier process
    now = 20.0
    assert left_text(progress.tasks[0]) == "1:40 left"
    now = 30.0
    assert left_text(progress.tasks[0]) == "1:30 left"
    progress.update(task, total=4000)
    assert left_text(progress.tasks[0]) == "2:11:30 left"
    progress.update(task, total=50)
    assert left_text(progress.tasks[0]) == "done"
    progress.add_task("", total=None, done=4, at=10.0)  # nobody knows how many
    assert left_text(progress.tasks[1]) == "2.5 s each"


def test_trials_that_were_done_before_do_not_shorten_the_time_left(tmp_path: Path) -> None:
    record = tasks.train(tmp_path, "adamw", steps=1)
    with Display(Console(file=io.StringIO(), width=120)) as display:
        bar = TrialBar(display, 4)
        bar("old", record, False)
        (task,) = display.progress.tasks
        assert left_text(task) == "-:-- left"
        bar("new", record, True)
        assert (task.completed, task.fields["done"]) == (2, 1)
