from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heatbath.experiments import Choice, Experiment, Hyper, Record
from heatbath.experiments.data import Dataset, Source
from heatbath.experiments.studies import Convergence, Outcome, convergence_page
from heatbath.experiments.studies.convergence import BASELINE_AXES, DIGITAL_AXES
from heatbath.experiments.studies.convergence_page import _findings, _plain, _results, steps_to_level
from heatbath.experiments.studies.searches import spread, trials_csv, tuning_table
from heatbath.experiments.tuned import Tuned, score
from tests.experiments import hand, tasks

STUDY = Convergence(tasks.experiment, steps=6, seeds=2, bits=(10,), eval_every=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[Outcome]:
    return STUDY.run(folder)


@pytest.mark.slow
def test_the_baseline_has_no_fewer_trials_than_anything_else(outcomes: list[Outcome]) -> None:
    baseline, digital, *analog = outcomes
    assert (baseline.tuned.choice.optimizer, baseline.searched) == ("adamw", BASELINE_AXES)
    assert (digital.tuned.choice.solver, digital.searched) == ("cholesky", DIGITAL_AXES)
    assert [one.tuned.choice.solver for one in analog] == ["thermodynamic-inverse", "thermodynamic-solve"]
    assert all(baseline.tuned.trials >= one.tuned.trials == len(one.tuning) for one in outcomes)


@pytest.mark.slow
def test_thermodynamic_solvers_share_damping_and_clip_of_the_digital_one(outcomes: list[Outcome]) -> None:
    _, digital, *analog = outcomes
    for one in analog:
        assert replace(one.tuned.choice.hyper, lr=1.0) == replace(digital.tuned.choice.hyper, lr=1.0)


@pytest.mark.slow
def test_the_best_trial_is_run_anew_on_all_training_data_with_shared_starts(outcomes: list[Outcome]) -> None:
    for one in outcomes:
        best = min(one.tuning, key=score)
        assert best.header["choice"] == one.tuned.choice.to_json()
        assert {trial.header["seed"] for trial in one.tuning} == {0}
        assert [run.header["seed"] for run in one.runs] == [1, 2]
        assert all(run.header["choice"] == best.header["choice"] for run in one.runs)
        assert [run.header["dataset"]["train"] for run in one.runs] == [96, 96]
    for seed in range(2):
        assert len({one.runs[seed].rows[0]["loss"] for one in outcomes}) == 1


@pytest.mark.slow
def test_a_study_run_again_repeats_nothing_and_a_lost_trial_is_made_anew(folder: Path, outcomes: list[Outcome]) -> None:
    fresh: list[str] = []

    def watch(trial: object, record: Record, new: bool) -> None:
        fresh.extend([record.name] if new else [])

    assert STUDY.run(folder, watch=watch) == outcomes
    assert fresh == []
    (folder / "run-adamw-seed2.jsonl").unlink()
    again = STUDY.run(folder, watch=watch)
    assert fresh == ["run-adamw-seed2"]
    assert [one.tuned for one in again] == [one.tuned for one in outcomes]


@pytest.mark.slow
def test_the_page_holds_what_the_records_hold(outcomes: list[Outcome], tmp_path: Path) -> None:
    page = convergence_page(STUDY, outcomes).write(tmp_path / "page")
    names = {path.name for path in page.parent.iterdir()}
    figures = {"loss.csv", "loss.svg", "test-accuracy.csv", "test-accuracy.svg"}
    assert names == {"README.md", "index.html", "result.json", "trials.csv", *figures}
    text, result = page.read_text(), json.loads((page.parent / "result.json").read_text())
    assert f"AdamW {outcomes[0].tuned.trials}." in text
    for one, plain in zip(outcomes, result["outcomes"], strict=True):
        assert one.title in text
        assert plain["final"]["test accuracy"] == [run.rows[-1]["metrics"]["test accuracy"] for run in one.runs]
    rows = list(csv.DictReader(io.StringIO((page.parent / "trials.csv").read_text())))
    assert len(rows) == sum(one.tuned.trials for one in outcomes)
    curve = list(csv.DictReader(io.StringIO((page.parent / "test-accuracy.csv").read_text())))
    ends = [run.rows[-1]["metrics"]["test accuracy"] for run in outcomes[0].runs]
    last = [row for row in curve if row["run"] == "AdamW"][-1]
    assert (int(last["step"]), float(last["mean test accuracy"])) == (6, pytest.approx(sum(ends) / 2, rel=1e-5))


@pytest.mark.slow
def test_further_baselines_are_tuned_and_run_like_the_first(tmp_path: Path) -> None:
    study = replace(STUDY, steps=2, seeds=1, bits=(), others=("sgd", "nadamw"), trials=5)
    outcomes = study.run(tmp_path)
    assert [one.tuned.choice.optimizer for one in outcomes] == ["adamw", "sgd", "nadamw", "kfac"]
    digital = outcomes[-1].tuned.trials
    assert all(digital <= one.tuned.trials <= 5 for one in outcomes)
    assert outcomes[1].searched == ("lr", "momentum")
    text = convergence_page(study, outcomes).write(tmp_path / "page").read_text()
    assert all(f"**{one.title}** " in text for one in outcomes[1:])
    assert (
        f"{outcomes[-1].title} had {digital} trials, AdamW {outcomes[0].tuned.trials}, SGD {outcomes[1].tuned.trials}" in text
    )


@pytest.mark.slow
def test_the_quadratic_policy_may_be_the_contender(tmp_path: Path) -> None:
    task = replace(STUDY, steps=2, seeds=1, bits=(8,), trials=4, contender="kfac-quadratic")
    outcomes = task.run(tmp_path)
    assert [one.tuned.choice.optimizer for one in outcomes] == ["adamw", *["kfac-quadratic"] * 3]
    assert all(one.searched == ("damping",) for one in outcomes[1:])
    text = convergence_page(task, outcomes).write(tmp_path / "page").read_text()
    assert "takes over the digital one's first damping and searches it further, with at most" in text


def test_a_contender_is_known_and_no_baseline_of_itself() -> None:
    with pytest.raises(ValueError, match="there is no contender 'adamw'"):
        replace(STUDY, contender="adamw")
    with pytest.raises(ValueError, match="kfac-quadratic is the contender, so it cannot be a baseline"):
        replace(STUDY, contender="kfac-quadratic", others=("kfac-quadratic",))


def run(accuracies: Sequence[float], losses: Sequence[float]) -> Record:
    rows = [{"step": i, "loss": losses[i], "seconds": 0.0} for i in range(len(losses))]
    for i, value in enumerate(accuracies):
        rows[5 * i]["metrics"] = {"test accuracy": value}  # type: ignore[assignment]
    return Record(Path("x"), {"target": {"metric": "test accuracy", "value": 0.9, "higher": True}}, rows)


def outcome(*runs: Record) -> Outcome:
    return Outcome(Tuned(Choice("adamw", Hyper(lr=1.0)), 1.0, 1, 0, (), "x"), ("lr",), [], runs)


def test_steps_to_the_baselines_end_are_counted_per_seed() -> None:
    flat = [1.0] * 16
    baseline = outcome(run([0.1, 0.5, 0.6, 0.8], flat), run([0.1, 0.5, 0.6, 0.7], flat))
    faster = outcome(run([0.1, 0.7, 0.85, 0.9], flat), run([0.1, 0.2, 0.3, 0.69], flat))
    assert steps_to_level(faster, baseline, "test accuracy") == [10, None]
    assert steps_to_level(baseline, baseline, "test accuracy") == [15, 15]


def test_the_training_loss_is_averaged_over_five_steps_and_the_start_is_left_out() -> None:
    accuracies = [0.1, 0.5, 0.6, 0.8]
    baseline = outcome(run(accuracies, [9.0] + [4.0] * 15))
    spiky = outcome(run(accuracies, [0.0, 9, 9, 9, 0, 9, 9, 9, 2, 2, 2, 2, 2, 2, 2, 2]))
    # means over steps 1–5 to 8–12: 7.2, 7.2, 7.2, 5.8, 5.8, 4.8, 3.4, ...
    assert steps_to_level(spiky, baseline, "loss") == [11]


def test_a_study_without_steps_seeds_or_trials_is_refused() -> None:
    for steps, seeds, trials in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match=f"1 step, 1 seed and 1 trial, got {steps}, {seeds} and {trials}"):
            Convergence(tasks.experiment, steps=steps, seeds=seeds, trials=trials)


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="no further baseline 'adamx'; did you mean adam"):
        Convergence(tasks.experiment, steps=1, others=("adamx",))


class Untouched:
    """A test split whose examples must not be read while hyper-parameters are chosen."""

    def __init__(self, split: Dataset) -> None:
        self.split = split.test
        self.reads: list[str] = []

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.reads.append("read")
        return self.split.batch(indices)

    def to(self, device: torch.device) -> Untouched:
        return self


GUARD = Untouched(tasks.blobs())


def guarded() -> Experiment:
    whole = tasks.blobs()
    return tasks.experiment(source=Source("blobs", "", lambda: Dataset("blobs", "made here", whole.train, GUARD)))


@pytest.mark.slow
def test_the_test_split_is_read_by_the_final_runs_alone(tmp_path: Path) -> None:
    reads: dict[str, int] = {}

    def watch(trial: object, record: Record, new: bool) -> None:
        reads[record.name] = len(GUARD.reads)
        GUARD.reads.clear()

    Convergence(guarded, steps=2, seeds=1, bits=(10,)).run(tmp_path, watch=watch)
    assert {name for name, count in reads.items() if count} == {name for name in reads if name.startswith("run-")}


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    from heatbath.experiments.studies import Page

    (tmp_path / "file").write_text("")
    page = Page("x", [], [], {}, [], {}, {})
    with pytest.raises(OSError, match=r"cannot write the page in .*choose another with --out"):
        page.write(tmp_path / "file" / "folder")


def by_hand() -> list[Outcome]:
    """Two seeds: the baseline ends at 0.5 and 0.4, K-FAC is there at steps 20 and 30, after 6 and 7 of its 8 visits."""
    kfac = [
        hand.record(1, {10: (0.6, 5), 20: (0.5, 6), 30: (0.4, 7), 40: (0.2, 8)}, seconds=30.0),
        hand.record(2, {10: (0.7, 5), 20: (0.6, 6), 30: (0.4, 7), 40: (0.3, 8)}, seconds=50.0),
    ]
    ends = {1: 0.5, 2: 0.4}
    plain = [
        hand.record(s, {10: (0.9, 0), 20: (0.8, 0), 30: (0.7, 0), 40: (end, 0)}, choice=hand.PLAIN) for s, end in ends.items()
    ]
    found = [(hand.PLAIN, plain), (hand.ANALOG, kfac)]
    return [Outcome(Tuned(choice, 1.0, 3, 0, (), "x"), ("lr",), [], runs) for choice, runs in found]


def test_every_column_of_the_page_is_what_records_by_hand_say() -> None:
    """± is half the distance from the lowest to the highest; to there: (6 + 7)/2 s, where 8 s · 25/40 would be 5 s."""
    table = _results(by_hand(), "test error", "test loss")
    assert hand.cells((table.head, table.rows)) == {
        "AdamW": {
            "test error, step 10": "0.9 ± 0",
            "test error, step 20": "0.8 ± 0",
            "test error, step 40": "0.45 ± 0.05",
            "test loss, step 40": "0.9 ± 0.1",
            "steps to AdamW's final test error": "40",
            "seconds here": "10",
            "predicted seconds": "0 s",
            "predicted seconds to there": "0 s",
        },
        "K-FAC, thermodynamic inverse (hand)": {
            "test error, step 10": "0.65 ± 0.05",
            "test error, step 20": "0.55 ± 0.05",
            "test error, step 40": "0.25 ± 0.05",
            "test loss, step 40": "0.5 ± 0.1",
            "steps to AdamW's final test error": "20 to 30",
            "seconds here": "40",
            "predicted seconds": "8 s",
            "predicted seconds to there": "6.5 s",
        },
    }


def test_the_sentences_and_numbers_of_the_page_are_those_of_its_table() -> None:
    baseline, kfac = by_hand()
    assert _findings([baseline, kfac]) == [
        "- **K-FAC, thermodynamic inverse (hand)** needs up to 75% of the steps, more than half: it is at AdamW's final test "
        "error at step 20 to 30 of 40, and at its final training loss at step 5. After 40 steps its test error is 0.25 ± 0.05, "
        "against 0.45 ± 0.05; predicted, it is there after 6.5 s, AdamW after 0 s."
    ]
    plain = _plain(kfac, baseline)
    assert plain["steps_to_baseline"] == {"test error": [20, 30], "loss": [5, 5]}
    assert plain["predicted_to_baseline"]["seconds"]["settle"] == pytest.approx(6.5)
    assert plain["predicted"]["seconds"]["settle"] == pytest.approx(8.0)
    assert plain["final"] == {"test error": [0.2, 0.3], "test loss": [0.4, 0.6]}
    assert (plain["seconds_here"], plain["searched"]) == (40.0, ["lr"])


def test_the_tables_of_a_search_are_what_records_by_hand_say() -> None:
    trial = hand.record(0, {10: (0.25, 3)}, losses=[2.0] * 10 + [0.75], choice=hand.PLAIN)
    tuned = Tuned(replace(hand.PLAIN, hyper=Hyper(lr=0.03, momentum=0.8)), 0.12344, 7, 2, ("lr",), "x")
    one = Outcome(tuned, ("lr", "momentum"), [trial])
    table = tuning_table([one])
    assert hand.cells((table.head, table.rows)) == {
        "AdamW": {
            "trials": "7",
            "diverged": "2",
            "best": "lr 0.03, β₁ 0.8",
            "held-out": "0.1234",
            "neighbours tried": "not all: lr",
        }
    }
    (row,) = csv.DictReader(io.StringIO(trials_csv([one])))
    assert (row["optimizer"], float(row["lr"]), row["ended"]) == ("AdamW", 0.1, "finished")
    assert [float(row[name]) for name in ("held-out", "last training loss", "seconds")] == [0.25, 0.75, 10.0]
    assert spread([1.0, 4.0, 1.0]) == "2 ± 1.5"
    assert spread([3.0]) == "3"
    assert spread([1.0, math.inf]) == "diverged"
