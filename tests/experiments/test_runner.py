from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from heatbath.experiments import Hyper, RunFiles, RunOptions, Target, choose, run
from heatbath.experiments.checkpoint import load_checkpoint
from heatbath.experiments.records import Row, read_record
from heatbath.experiments.runner import Ending
from tests.experiments import tasks


class At:
    """A watcher that does something when a row of a step is written."""

    def __init__(self, step: int, action: object) -> None:
        self.step, self.action, self.closed = step, action, False

    def start(self, header: Row, step: int) -> None: ...

    def event(self, event: Row) -> None: ...

    def row(self, row: Row) -> None:
        if row["step"] == self.step:
            self.action()  # type: ignore[operator]

    def close(self) -> None:
        self.closed = True


def kill() -> None:
    """End the run where it stands, as a kill would: nothing is saved on the way out."""
    raise KeyboardInterrupt


def weights(folder: Path) -> dict[str, Tensor]:
    return load_checkpoint(RunFiles(folder).checkpoint)["training"]["model"]


@pytest.mark.parametrize("name", tasks.OPTIMIZERS)
def test_a_killed_run_resumes_to_a_bit_equal_trajectory(tmp_path: Path, name: str) -> None:
    whole = tasks.train(tmp_path / "whole", name, steps=30, checkpoint_every=13)
    with pytest.raises(KeyboardInterrupt):
        tasks.train(tmp_path / "killed", name, steps=30, checkpoint_every=13, watchers=[At(23, kill)])
    with open(tmp_path / "killed" / "run.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 24, "lo')
    resumed = tasks.train(tmp_path / "killed", name, steps=30, checkpoint_every=13, resume=True)
    assert [row["step"] for row in resumed.rows] == list(range(31))
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in whole.rows]
    assert [row["metrics"] for row in resumed.measured] == [row["metrics"] for row in whole.measured]
    assert [row["work"] for row in resumed.measured] == [row["work"] for row in whole.measured]
    assert [row["occasions"] for row in resumed.measured] == [row["occasions"] for row in whole.measured]
    assert resumed.ended == "finished"
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_resuming_with_more_steps_goes_on_as_if_they_had_been_asked_for_at_once(tmp_path: Path) -> None:
    whole = tasks.train(tmp_path / "whole", "kfac", steps=24)
    tasks.train(tmp_path / "part", "kfac", steps=11)
    longer = tasks.train(tmp_path / "part", "kfac", steps=24, resume=True)
    assert [row["loss"] for row in longer.rows] == [row["loss"] for row in whole.rows]


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it_with_a_word(tmp_path: Path) -> None:
    whole = tasks.train(tmp_path / "whole", "kfac", steps=30, checkpoint_every=10)
    tasks.train(tmp_path / "cut", "kfac", steps=20, checkpoint_every=9)
    checkpoint = RunFiles(tmp_path / "cut").checkpoint
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    resumed = tasks.train(tmp_path / "cut", "kfac", steps=30, resume=True)
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in whole.rows]
    word = next(event["message"] for event in resumed.events if event["event"] == "resumed")
    assert word.startswith("from step 18 by: ")
    assert "run.pt was damaged and is kept as run.pt.damaged, so from" in word


def test_damage_to_a_record_is_found_before_training(tmp_path: Path) -> None:
    tasks.train(tmp_path, steps=10)
    path, steps = RunFiles(tmp_path).record, []
    lines = path.read_text().splitlines(keepends=True)
    for content in ([*lines[:4], "{broken\n", *lines[5:]], [lines[0].replace("seed", "sEed"), *lines[1:]], []):
        path.write_text("".join(content))
        with pytest.raises(ValueError, match=r"run\.jsonl is (damaged: line \d|empty)"):
            tasks.train(tmp_path, steps=20, resume=True, watchers=[At(11, lambda: steps.append(11))])
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no record"):
        tasks.train(tmp_path, steps=20, resume=True, watchers=[At(11, lambda: steps.append(11))])
    assert not steps


def test_two_may_not_write_one_run_at_once(tmp_path: Path) -> None:
    tasks.train(tmp_path, steps=5)
    refused: list[str] = []

    def again() -> None:
        with pytest.raises(OSError, match=r"another process is writing .*run\.jsonl") as error:
            tasks.train(tmp_path, steps=30, resume=True)
        refused.append(str(error.value))

    record = tasks.train(tmp_path, steps=20, resume=True, watchers=[At(10, again)])
    assert len(refused) == 1
    assert [row["step"] for row in record.rows] == list(range(21))


@pytest.mark.parametrize("checkpoint_every", [0, 4])
def test_an_output_folder_that_is_deleted_is_one_clear_message(
    tmp_path: Path, checkpoint_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heatbath.experiments import tensorboard

    monkeypatch.setattr(tensorboard, "FLUSH_SECONDS", 3600.0)
    files = RunFiles(tmp_path / "out")
    watchers = [At(7, lambda: shutil.rmtree(files.folder)), tensorboard.TensorBoardLog(files)]
    with pytest.raises(OSError, match=rf"the output folder {files.folder} or its record was deleted while .* --out"):
        tasks.train(files.folder, steps=40, checkpoint_every=checkpoint_every, watchers=watchers)


def test_resuming_with_fewer_steps_than_were_made_is_refused(tmp_path: Path) -> None:
    tasks.train(tmp_path, steps=10)
    with pytest.raises(ValueError, match=r"has made 10 steps, more than the 4 asked for: resume with more steps"):
        tasks.train(tmp_path, steps=4, resume=True)


def test_the_command_that_started_a_run_is_kept_when_it_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps, words in ((5, "first"), (10, "second")):
        monkeypatch.setattr("heatbath.experiments.runner.command", lambda words=words: words)
        tasks.train(tmp_path, steps=steps, resume=steps > 5)
    with pytest.raises(ValueError, match=r"with another seed.*It was started by: first$"):
        tasks.train(tmp_path, steps=15, seed=1, resume=True)


def test_seconds_go_on_after_resuming(tmp_path: Path) -> None:
    tasks.train(tmp_path, steps=10)
    record = tasks.train(tmp_path, steps=20, resume=True)
    seconds = [row["seconds"] for row in record.rows]
    assert seconds == sorted(seconds)
    assert seconds[-1] > seconds[10] > 0


def test_nothing_that_was_logged_is_lost_by_resuming(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tasks.train(tmp_path, steps=30, watchers=[At(16, kill)])
    before = (tmp_path / "run.jsonl").read_text()
    tasks.train(tmp_path, steps=30, resume=True)
    assert (tmp_path / "run.jsonl").read_text().startswith(before)


def test_optimizers_share_start_and_batches(tmp_path: Path) -> None:
    task = tasks.experiment(model=lambda: nn.Linear(6, 3))
    first = [tasks.train(tmp_path / name, name, task=task).rows[:2] for name in ("adamw", "kfac")]
    assert [row["loss"] for row in first[0]] == [row["loss"] for row in first[1]]


def test_the_seed_decides_everything_and_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    losses = [
        [row["loss"] for row in tasks.train(tmp_path / str(i), "solve", seed=seed).rows] for i, seed in enumerate((5, 5, 6))
    ]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_first_row_says_what_was_run_on_which_data_with_what(tmp_path: Path) -> None:
    tasks.train(tmp_path, "solve", seed=4)
    header = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])
    assert header["experiment"] == "blobs"
    assert header["dataset"] == {"name": "blobs", "source": "made here", "train": 96, "test": 30}
    assert (header["seed"], header["steps"], header["batch_size"]) == (4, 20, 20)
    assert header["versions"]["torch"] == torch.__version__
    assert header["command"]
    assert 'name = "tngd-2024"' in header["choice"]["machine"]
    assert "matrix_bits = 10" in header["choice"]["machine"]
    assert "Linear" in header["coverage"]


def test_every_step_has_a_row_and_measured_rows_have_metrics_and_growing_work(tmp_path: Path) -> None:
    record = tasks.train(tmp_path, "solve", steps=12)
    assert [row["step"] for row in record.rows] == list(range(13))
    assert [row["step"] for row in record.measured] == [0, 5, 10, 12]
    assert all({"step", "loss", "seconds"} <= row.keys() for row in record.rows)
    flops = [record.work(row).flops for row in record.measured]
    assert flops[0] == 0
    assert flops == sorted(flops)
    assert record.work(record.measured[-1]).analog_seconds > 0
    assert record.measured[-1]["optimizer"]["refreshes"] > 0


def test_log_every_thins_rows_but_keeps_measured_ones(tmp_path: Path) -> None:
    record = tasks.train(tmp_path, steps=12, log_every=4)
    assert [row["step"] for row in record.rows] == [0, 4, 5, 8, 10, 12]


@pytest.mark.usefixtures("heard_hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_leaves_a_readable_record_and_a_checkpoint_of_the_same_step(tmp_path: Path, number: int) -> None:
    told: list[str] = []
    files = RunFiles(tmp_path)
    record = run(
        tasks.experiment(),
        tasks.choice(),
        options=RunOptions(steps=500, flush_every=1, checkpoint_every=100),
        files=files,
        watchers=[At(7, lambda: os.kill(os.getpid(), number))],
        on_interrupt=lambda: told.append("told"),
    )
    assert record.ended == "interrupted"
    assert record.rows[-1]["step"] == load_checkpoint(files.checkpoint)["training"]["step"] == 7
    assert told == ["told"]


def test_a_time_budget_ends_the_run_with_measured_metrics(tmp_path: Path) -> None:
    record = tasks.train(tmp_path, steps=10**6, max_seconds=0.05)
    assert record.ended == "finished"
    assert "metrics" in record.rows[-1]
    assert "the most allowed" in record.events[-1]["message"]


def test_a_loss_that_is_no_number_ends_the_run_and_says_what_to_change(tmp_path: Path) -> None:
    task = tasks.experiment(hyper={"sgd": Hyper(lr=1e38)})
    record = run(task, choose(task, "sgd"), options=RunOptions(steps=50, checkpoint_every=0), files=RunFiles(tmp_path))
    assert record.ended == "diverged"
    assert record.rows[-1]["step"] < 50
    assert "lower --lr (now 1e+38)" in record.events[-1]["message"]


def test_a_loss_above_its_start_is_said_once_and_the_run_goes_on(tmp_path: Path) -> None:
    task = tasks.experiment(hyper={"sgd": Hyper(lr=30.0)})
    record = run(task, choose(task, "sgd"), options=RunOptions(steps=60, checkpoint_every=0), files=RunFiles(tmp_path))
    assert [event["event"] for event in record.events] == ["warning", "finished"]
    assert "rose above its start" in record.events[0]["message"]


def test_an_error_in_a_step_is_written_into_the_record_and_raised(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no more cells")

    watcher = At(4, fail)
    with pytest.raises(ValueError, match="no more cells"):
        tasks.train(tmp_path, watchers=[watcher])
    assert watcher.closed
    record = read_record(tmp_path / "run.jsonl")
    assert record.ended == "failed"
    assert "no more cells" in record.events[-1]["message"]


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    tasks.train(tmp_path)
    before = (tmp_path / "run.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="already holds a run"):
        tasks.train(tmp_path)
    assert (tmp_path / "run.jsonl").read_bytes() == before


def test_an_unwritable_folder_is_refused_before_the_data_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"output folder .* cannot be written \(Not a directory\): choose another with --out"):
        tasks.train(tmp_path / "file" / "folder", task=tasks.experiment(source=None))


def test_resuming_with_other_options_is_refused_and_says_which(tmp_path: Path) -> None:
    tasks.train(tmp_path, "adamw")
    with pytest.raises(ValueError, match=r"resumed with another choice.*optimizer = 'adamw'.*optimizer = 'kfac'"):
        tasks.train(tmp_path, "kfac", resume=True)
    with pytest.raises(ValueError, match="resumed with another seed: it was started with 0, now it is 1"):
        tasks.train(tmp_path, "adamw", resume=True, seed=1)


def test_resuming_where_nothing_was_started_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume: start without --resume"):
        tasks.train(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "must be at least 1"),
        ({"steps": 1, "checkpoint_every": -1}, "must be at least 1 and checkpoint_every at least 0"),
        ({"steps": 1, "max_seconds": 0.0}, "max_seconds must be positive, got 0.0"),
    ],
)
def test_run_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOptions(**options)  # type: ignore[arg-type]


def test_a_run_stops_at_its_target_and_not_before(tmp_path: Path) -> None:
    whole = tasks.train(tmp_path / "whole", steps=40)
    steps, _, values = whole.metric("test accuracy")
    level = max(values[1:])
    first = next(step for step, value in zip(steps[1:], values[1:], strict=True) if value >= level)
    record = tasks.train(tmp_path / "short", steps=40, ending=Ending(target=Target("test accuracy", level)))
    assert record.rows[-1]["step"] == first
    assert record.ended == "finished"
    assert record.events[-1]["message"] == f"at the target after {first} steps"
    assert record.header["until"] == {"metric": "test accuracy", "value": level, "higher": True}
    assert "until" not in whole.header


@pytest.mark.parametrize("name", tasks.OPTIMIZERS)
def test_the_preconditioner_is_described_in_the_last_row_and_training_is_not_changed(tmp_path: Path, name: str) -> None:
    plain = tasks.train(tmp_path / "plain", name, steps=12)
    record = tasks.train(tmp_path / "described", name, steps=12, ending=Ending(preconditioner=True))
    assert [row["loss"] for row in record.rows] == [row["loss"] for row in plain.rows]
    assert [row["metrics"] for row in record.measured] == [row["metrics"] for row in plain.measured]
    described = [row["step"] for row in record.rows if "preconditioner" in row]
    assert described == [12]
    found = record.rows[-1]["preconditioner"]
    if name == "adamw":
        assert found == {}
    else:
        assert found["condition"] > 1
        assert -1 <= found["cosine"] <= 1
