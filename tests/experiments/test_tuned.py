from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from heatbath.experiments import Choice, Record, choose
from heatbath.experiments.tuned import RESULT, Tuned, pick, score, tuned_choice, tuned_table, write_result
from tests.experiments import tasks

HEADER = {
    "format": 1, "run": "x", "experiment": "blobs", "steps": 4, "batch_size": 20, "dataset": {"name": "blobs"},
}  # fmt: skip


def record(
    value: float | None, loss: float | None = 1.0, *, higher: bool = True, ended: str = "finished", name: str = "x"
) -> Record:
    target = {"metric": "held-out accuracy", "value": 0.9, "higher": higher}
    row = {"step": 4, "loss": loss, "seconds": 1.0, "metrics": {"held-out accuracy": value}}
    return Record(Path(f"{name}.jsonl"), {**HEADER, "target": target}, [row], [{"event": ended, "step": 4, "message": ""}])


def choices(count: int) -> list[Choice]:
    return [choose(tasks.experiment(), "kfac", lr=10.0**-i) for i in range(count)]


def test_more_is_better_where_the_target_says_so_and_less_where_not() -> None:
    assert score(record(0.9)) < score(record(0.8))
    assert score(record(0.8, higher=False)) < score(record(0.9, higher=False))


def test_between_equal_values_the_training_loss_decides() -> None:
    assert score(record(0.9, 0.1)) < score(record(0.9, 0.2))
    assert score(record(0.9, 0.2)) < score(record(0.8, 0.1))


@pytest.mark.parametrize("bad", [record(None), record(0.9, None), record(0.9, ended="diverged"), record(0.9, ended="failed")])
def test_a_trial_without_a_number_is_worst(bad: Record) -> None:
    assert score(bad) == (math.inf, math.inf)
    assert score(record(0.0, 1e9)) < score(bad)


def test_the_best_is_picked_and_what_diverged_is_counted() -> None:
    records = [record(0.5, name="a"), record(0.7, ended="diverged", name="b"), record(0.6, name="c")]
    tuned = pick(choices(3), records, lambda hyper: ("lr",) if hyper.lr == 1e-2 else ())
    assert tuned == Tuned(choices(3)[2], 0.6, 3, 1, ("lr",), "c.jsonl")


def test_where_all_diverged_there_is_no_value() -> None:
    tuned = pick(choices(2), [record(None), record(None)], lambda hyper: ())
    assert (tuned.value, tuned.diverged) == (None, 2)
    assert tuned_table([tuned], "accuracy")[1][0][:4] == ["K-FAC, Cholesky", "2", "2", "–"]


def written(folder: Path) -> Path:
    records = [record(0.5), record(0.6), record(0.4)]
    thermal = choose(tasks.experiment(), "kfac", solver="thermodynamic-solve", bits=6, lr=0.3)
    found = [pick(choices(3), records, lambda hyper: ()), pick([thermal], records[:1], lambda hyper: ())]
    write_result(folder / RESULT, found, records=records, seed=0)
    return folder / RESULT


def test_what_was_found_is_read_back_for_the_optimizer_solver_and_machine_it_was_found_for(tmp_path: Path) -> None:
    path = written(tmp_path)
    wanted = choose(tasks.experiment(), "kfac")
    assert tuned_choice(path, "blobs", wanted) == choices(3)[1]
    assert tuned_choice(tmp_path, "blobs", wanted) == choices(3)[1]
    thermal = choose(tasks.experiment(), "kfac", solver="thermodynamic-solve", bits=6)
    assert tuned_choice(path, "blobs", thermal) == replace(thermal, hyper=replace(thermal.hyper, lr=0.3))


def test_a_changed_result_is_refused_and_one_of_version_0_1_is_read(tmp_path: Path) -> None:
    path, wanted = written(tmp_path), choose(tasks.experiment(), "kfac")
    content = json.loads(path.read_text())
    content["tuned"][0]["choice"]["lr"] *= 10
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"best\.json is no result of heatbath tune .*its checksum is wrong"):
        tuned_choice(path, "blobs", wanted)
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert tuned_choice(path, "blobs", wanted).hyper.lr == pytest.approx(10 * choices(3)[1].hyper.lr)


def test_a_result_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no result of a search .*make one with heatbath tune blobs"):
        tuned_choice(tmp_path / RESULT, "blobs", choices(1)[0])
    path = written(tmp_path)
    with pytest.raises(ValueError, match="was tuned on blobs, not on rings"):
        tuned_choice(path, "rings", choices(1)[0])
    with pytest.raises(ValueError, match="has no AdamW; it has K-FAC, Cholesky; K-FAC, thermodynamic solve"):
        tuned_choice(path, "blobs", choose(tasks.experiment(), "adamw"))


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", json.dumps({"recipe": "blobs"}), "[" * 10**5, json.dumps({"tuned": [{"title": "x"}]})]
)
def test_a_file_that_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(ValueError, match="is no result of heatbath tune"):
        tuned_choice(tmp_path, "blobs", choices(1)[0])
