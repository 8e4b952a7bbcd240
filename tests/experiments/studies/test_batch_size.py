from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares

from heatbath.experiments import Choice, Hyper, Record, Target
from heatbath.experiments.studies import BatchSize, Contender, Outcome, Setting, batch_size_page
from heatbath.experiments.studies.batch_size import Scaling, by_steps, steps_to
from heatbath.experiments.studies.batch_size_page import _csv, _fits_table, _steps_table, _tuning
from heatbath.experiments.tuned import Tuned
from tests.experiments import tasks

GOAL = Target("test accuracy", 0.6)
STUDY = BatchSize(
    Setting(tasks.experiment, steps=12, eval_every=1),
    (8, 16, 40),
    GOAL,
    (Contender("sgd"), Contender("kfac"), Contender("kfac", "thermodynamic-inverse", bits=10)),
    seeds=2,
    trials=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Scaling]:
    return STUDY.run(folder)


@pytest.mark.slow
def test_every_optimizer_has_the_same_number_of_trials_at_every_batch_size(found: list[Scaling]) -> None:
    for one in found:
        assert list(one.outcomes) == [8, 16, 40]
        for size, outcome in one.outcomes.items():
            assert outcome.tuned.trials == len(outcome.tuning) == 3
            assert {run.header["batch_size"] for run in (*outcome.tuning, *outcome.runs)} == {size}
            assert {run.target.metric for run in outcome.tuning} == {"held-out accuracy"}
            assert [run.header["seed"] for run in outcome.runs] == [1, 2]


@pytest.mark.slow
def test_a_search_starts_from_the_best_at_the_next_smaller_batch_size(found: list[Scaling]) -> None:
    for one in found:
        for small, large in ((8, 16), (16, 40)):
            assert one.outcomes[large].tuning[0].header["choice"] == one.outcomes[small].tuned.choice.to_json()


@pytest.mark.slow
def test_the_best_has_the_fewest_steps_on_held_out_data_and_runs_end_at_the_target(found: list[Scaling]) -> None:
    held_out = replace(GOAL, metric="held-out accuracy")
    for one in found:
        for size, outcome in one.outcomes.items():
            best = min(outcome.tuning, key=by_steps(held_out))
            assert best.header["choice"] == outcome.tuned.choice.to_json()
            for run, steps in zip(outcome.runs, one.steps[size], strict=True):
                assert run.header["choice"] == outcome.tuned.choice.to_json()
                assert steps in (None, run.rows[-1]["step"])


@pytest.mark.slow
def test_a_study_run_again_repeats_nothing_and_a_lost_trial_is_made_anew(folder: Path, found: list[Scaling]) -> None:
    fresh: list[str] = []

    def watch(trial: object, record: Record, new: bool) -> None:
        fresh.extend([record.name] if new else [])

    assert STUDY.run(folder, watch=watch) == found
    assert fresh == []
    (folder / "b16-run-sgd-seed2.jsonl").unlink()
    again = STUDY.run(folder, watch=watch)
    assert fresh == ["b16-run-sgd-seed2"]
    assert [one.steps for one in again] == [one.steps for one in found]


@pytest.mark.slow
def test_the_page_holds_what_the_records_hold(found: list[Scaling], tmp_path: Path) -> None:
    page = batch_size_page(STUDY, found).write(tmp_path / "page")
    names = {path.name for path in page.parent.iterdir()}
    assert names == {
        "README.md",
        "index.html",
        "result.json",
        "trials.csv",
        "steps.svg",
        "steps.csv",
        "examples.svg",
        "examples.csv",
    }
    text, result = page.read_text(), json.loads((page.parent / "result.json").read_text())
    for one, plain in zip(found, result["optimizers"], strict=True):
        assert one.title in text
        assert {int(size): entry["steps"] for size, entry in plain["batch_sizes"].items()} == one.steps
    rows = list(csv.DictReader(io.StringIO((page.parent / "steps.csv").read_text())))
    assert len(rows) == 3 * 3 * 2
    for row in rows:
        if row["steps"]:
            assert int(row["examples"]) == int(row["steps"]) * int(row["batch size"])


def record(values: Sequence[float], *, ended: str = "finished") -> Record:
    rows = [{"step": 2 * i, "loss": 1.0, "seconds": 0.0, "metrics": {"m": value}} for i, value in enumerate(values)]
    return Record(Path("x"), {"target": {"metric": "m", "value": 0.5, "higher": False}}, rows, [{"event": ended}])


def test_steps_are_those_of_the_first_measurement_at_the_target_after_the_start() -> None:
    goal = Target("m", 0.5, higher=False)
    assert steps_to(record([0.4, 0.9, 0.5, 0.3]), goal) == 4
    assert steps_to(record([0.9, 0.8]), goal) is None
    assert steps_to(record([0.9, 0.1], ended="diverged"), goal) is None


def test_trials_that_miss_the_target_are_ranked_by_how_near_they_came() -> None:
    rank = by_steps(Target("m", 0.5, higher=False))
    late, early, near, far, lost = [0.9, 0.9, 0.4], [0.9, 0.4], [0.9, 0.6], [0.9, 0.8], [0.9, math.nan]
    order = [early, late, near, far, lost]
    assert sorted([lost, far, late, near, early], key=lambda values: rank(record(values))) == order


def scaling(title: str, smallest: float, critical: float, *, missing: int | None = None) -> Scaling:
    """Made by the law."""
    goal = Target("m", 0.5, higher=False)
    outcomes = {}
    for size in (10, 30, 100, 300, 1000):
        runs = []
        for seed in (1, 2):
            count = round(smallest * (1 + critical / size) * (1 + 0.01 * (seed - 1.5)))
            rows = [
                {"step": s, "loss": 1.0, "seconds": 0.0, "metrics": {"m": 0.4 if s and size != missing else 0.9}}
                for s in (0, count)
            ]
            header = {"target": vars(goal), "seed": seed, "experiment": "made", "summary": "made", "dataset": DATA}
            runs.append(Record(Path("x"), header, rows, [{"event": "finished"}]))
        tuned = Tuned(Choice("sgd", Hyper(lr=1.0)), 1.0, 1, 0, (), "x")
        outcomes[size] = Outcome(tuned, ("lr",), [], runs)
    return Scaling(title, outcomes, goal)


DATA = {"name": "made", "source": "here", "train": 10, "test": 5}


@pytest.mark.parametrize(
    ("critical", "words"),
    [
        (1000.0, "larger, as Zhang et al. say"),
        (10.0, "smaller, against Zhang et al. and with Ma et al."),
        (101.0, "not told apart from 1"),
    ],
)
def test_the_page_says_which_paper_a_critical_batch_size_agrees_with(critical: float, words: str) -> None:
    plain, curved = scaling("SGD", 200.0, 100.0), scaling("K-FAC", 100.0, critical)
    study = replace(STUDY, contenders=(Contender("sgd"), Contender("kfac")))
    page = batch_size_page(study, [plain, curved])
    assert words in page.answer[-1]
    fit = curved.fit
    assert fit is not None
    assert fit.critical.value == pytest.approx(critical, rel=0.1)


def test_a_batch_size_at_which_a_seed_missed_is_not_fitted_and_named() -> None:
    one = scaling("SGD", 200.0, 100.0, missing=30)
    assert {size for size, _ in one.reached} == {10, 100, 300, 1000}
    page = batch_size_page(replace(STUDY, contenders=(Contender("sgd"),)), [one])
    assert "not reached by every seed within the steps allowed at 30" in page.answer[1]


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 3 different batch sizes of at least 1"):
        replace(STUDY, batch_sizes=(8, 8, 16))
    with pytest.raises(ValueError, match="at least 1 seed and 1 trial, got 0 and 3"):
        replace(STUDY, seeds=0)
    with pytest.raises(ValueError, match="blobs does not measure 'x'; it measures test accuracy, test loss"):
        replace(STUDY, target=Target("x", 1.0)).run(tmp_path)
    with pytest.raises(ValueError, match="a batch of 90 is more than the 86 examples"):
        replace(STUDY, batch_sizes=(8, 16, 90)).run(tmp_path)


def test_every_column_of_the_page_is_what_runs_by_hand_say() -> None:
    """Runs that reach their target at steps 40 (1 + 20/B) ± 2 %, by hand; the fit is that of scipy's own least squares."""
    steps = {10: (118, 122), 20: (79, 81), 40: (59, 61), 80: (49, None)}
    goal = Target("m", 0.5, higher=False)
    outcomes = {}
    for size, reached in steps.items():
        runs = []
        for seed, step in enumerate(reached, start=1):
            ends = [(0, 0.9), (30, 0.8), (step or 200, 0.4 if step else 0.8)]
            rows = [{"step": s, "loss": 1.0, "seconds": 0.0, "metrics": {"m": value}} for s, value in ends]
            runs.append(Record(Path("x"), {"target": vars(goal), "seed": seed}, rows, [{"event": "finished"}]))
        tuned = Tuned(Choice("sgd", Hyper(lr=0.1 * size)), 1.0, 5, 0, ("lr",) if size == 10 else (), "x")
        outcomes[size] = Outcome(tuned, ("lr",), [], runs)
    one = Scaling("SGD", outcomes, goal)
    assert _steps_table([one]).rows == [
        ["10", "120 (118 to 122)"],
        ["20", "80 (79 to 81)"],
        ["40", "60 (59 to 61)"],
        ["80", "49 (49 to 49), 1 of 2 missed"],
    ]
    tries = [(size, step) for size in (10, 20, 40) for step in steps[size]]

    def residuals(p: np.ndarray) -> list[float]:
        return [math.log(step or 0) - p[0] - math.log(1 + math.exp(p[1]) / size) for size, step in tries]

    found = least_squares(residuals, [3.0, 3.0], xtol=1e-12, ftol=1e-12)
    spread = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)) * 2 * found.cost / (len(tries) - 2))
    words = [
        f"{math.exp(x):.3g} ({math.exp(x - 2.776 * e):.3g} to {math.exp(x + 2.776 * e):.3g})"  # t with 4 degrees, 97.5 %
        for x, e in zip(found.x, spread, strict=True)
    ]
    assert _fits_table([one]).rows == [["SGD", words[1], words[0], "3"]]
    assert _tuning([one]).rows == [
        ["SGD", "10", "5", "lr 1", "not all: lr"],
        ["SGD", "20", "5", "lr 2", "all"],
        ["SGD", "40", "5", "lr 4", "all"],
        ["SGD", "80", "5", "lr 8", "all"],
    ]
    rows = list(csv.DictReader(io.StringIO(_csv([one]))))
    assert [(row["batch size"], row["seed"], row["steps"], row["examples"]) for row in rows[:2]] == [
        ("10", "1", "118", "1180"),
        ("10", "2", "122", "1220"),
    ]
    assert float(rows[0]["fitted steps"]) == pytest.approx(120, rel=0.01)
