from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.experiments import Experiment, Record, Target, choose, read_record
from heatbath.experiments.data import Source
from heatbath.experiments.runner import Ending
from heatbath.experiments.trials import Trial, run_trials
from tests.experiments import tasks


def trial(name: str = "a", lr: float = 0.02, **changes: object) -> Trial:
    choice = choose(tasks.experiment(), "adamw", lr=lr)
    settings: dict[str, object] = {"recipe": tasks.experiment, "choice": choice, "steps": 6, "eval_every": 6}
    return Trial(name, **{**settings, **changes})  # type: ignore[arg-type]


class Seen:
    """Which trials were run just now."""

    def __init__(self) -> None:
        self.fresh: list[str] = []
        self.old: list[str] = []

    def __call__(self, trial: Trial, record: Record, fresh: bool) -> None:
        assert record.name == trial.name
        (self.fresh if fresh else self.old).append(trial.name)


def test_records_come_back_in_the_order_of_the_trials(tmp_path: Path) -> None:
    records = run_trials([trial("b"), trial("a", 0.1)], tmp_path)
    assert [record.name for record in records] == ["b", "a"]
    assert [record.header["choice"]["lr"] for record in records] == [0.02, 0.1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "a.jsonl", "b.jsonl", "tensorboard"]


def test_a_finished_trial_is_not_run_again_and_a_killed_one_is_run_anew_to_the_same_losses(tmp_path: Path) -> None:
    trials = [trial("a"), trial("b", 0.1)]
    first = run_trials(trials, tmp_path)
    finished, killed = (tmp_path / "a.jsonl").read_bytes(), tmp_path / "b.jsonl"
    killed.write_text("".join(killed.read_text().splitlines(keepends=True)[:4]) + '{"step": 3, "lo')
    seen = Seen()
    again = run_trials(trials, tmp_path, watch=seen)
    assert (seen.old, seen.fresh) == (["a"], ["b"])
    assert (tmp_path / "a.jsonl").read_bytes() == finished
    assert again[1].metric("loss")[2] == first[1].metric("loss")[2]
    assert again[1].ended == "finished"


def test_a_record_killed_before_its_first_line_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    assert run_trials([trial("a")], tmp_path)[0].ended == "finished"


def test_a_diverged_trial_is_done(tmp_path: Path) -> None:
    wild = trial("a", choice=choose(tasks.experiment(), "sgd", lr=1e38), steps=20)
    assert run_trials([wild], tmp_path)[0].ended == "diverged"
    seen = Seen()
    run_trials([wild], tmp_path, watch=seen)
    assert seen.fresh == []


def test_held_out_data_batch_size_and_measurements_are_as_the_trial_says(tmp_path: Path) -> None:
    (record,) = run_trials([trial(held_out=True, batch_size=7, eval_every=3)], tmp_path)
    assert record.header["batch_size"] == 7
    assert record.header["dataset"]["train"] + record.header["dataset"]["test"] == 96
    assert [row["step"] for row in record.measured] == [0, 3, 6]
    assert record.target.metric == "held-out accuracy"


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"lr": 0.5}, "choice"),
        ({"steps": 7}, "steps"),
        ({"seed": 1}, "seed"),
        ({"held_out": True}, "target"),
        ({"batch_size": 8}, "batch_size"),
        ({"recipe": lambda: tasks.experiment(name="rings")}, "experiment"),
        ({"ending": Ending(target=Target("test accuracy", 0.5))}, "until"),
    ],
)
def test_a_folder_with_other_trials_is_refused(other: dict[str, object], what: str, tmp_path: Path) -> None:
    run_trials([trial()], tmp_path)
    before = (tmp_path / "a.jsonl").read_bytes()
    with pytest.raises(ValueError, match=rf"a\.jsonl is of another search: its {what} is .*Choose another folder with --out"):
        run_trials([trial(**other)], tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "a.jsonl").read_bytes() == before


def stand_in() -> Experiment:
    """The task of `tasks`, whose data could not be had this time."""
    return tasks.experiment(source=Source("blobs", "", lambda: replace(tasks.blobs(), name="blobs-small")))


def test_a_set_and_its_stand_in_are_not_mixed(tmp_path: Path) -> None:
    run_trials([trial("a")], tmp_path)
    with pytest.raises(ValueError, match="these trials saw different data, blobs and blobs-small"):
        run_trials([trial("a"), trial("b", recipe=stand_in)], tmp_path)


def test_names_that_repeat_and_no_process_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trials need different names, got \['a'\] more than once"):
        run_trials([trial("a"), trial("a", 0.1)], tmp_path)
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        run_trials([trial("a")], tmp_path, jobs=0)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        run_trials([trial()], tmp_path / "file" / "folder")


def impatient() -> Experiment:
    """A task in whose second trial Ctrl-C is pressed."""
    return tasks.experiment(loss=_interrupting)


def _interrupting(output: Tensor, target: Tensor) -> Tensor:
    if PRESS and output.requires_grad:
        signal.raise_signal(signal.SIGINT)
    return F.cross_entropy(output, target)


PRESS: list[bool] = []


def test_ctrl_c_stops_the_search_and_keeps_what_is_finished(tmp_path: Path) -> None:
    trials = [trial("a", recipe=impatient), trial("b", 0.1, recipe=impatient), trial("c", 0.2, recipe=impatient)]
    with pytest.raises(KeyboardInterrupt, match="b was interrupted"):
        run_trials(trials, tmp_path, watch=lambda trial, record, fresh: PRESS.append(True))
    PRESS.clear()
    assert read_record(tmp_path / "a.jsonl").ended == "finished"
    assert not (tmp_path / "c.jsonl").exists()
    seen = Seen()
    run_trials(trials, tmp_path, watch=seen)
    assert (seen.old, seen.fresh) == (["a"], ["b", "c"])


def test_the_number_of_threads_is_one_within_a_trial_and_restored_after(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (record,) = run_trials([trial()], tmp_path)
        assert record.header["host"]["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_processes_side_by_side_change_no_number(tmp_path: Path) -> None:
    trials = [trial("a"), trial("b", 0.1), trial("c", 0.3)]
    alone = run_trials(trials, tmp_path / "one")
    together = run_trials(trials, tmp_path / "two", jobs=2)
    assert [record.metric("loss")[2] for record in together] == [record.metric("loss")[2] for record in alone]


def failing() -> Experiment:
    """A task whose model does not fit its data."""
    return tasks.experiment(model=lambda: nn.Linear(5, 3))


def test_a_trial_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_trials([trial(recipe=failing)], tmp_path)


def test_every_trial_writes_for_tensorboard_and_a_killed_one_starts_that_anew(tmp_path: Path) -> None:
    stale = tmp_path / "tensorboard" / "a" / "events.out.tfevents.old"
    stale.parent.mkdir(parents=True)
    stale.write_text("of a killed process")
    run_trials([trial("a")], tmp_path)
    (events,) = stale.parent.iterdir()
    assert events.stat().st_size > 100
    assert events != stale
