from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from heatbath.experiments import Record
from heatbath.experiments.groups import group, interval, interval_text, steps_text
from tests.experiments import tasks


def record(seed: int, final: float = 0.8, *, ended: str = "finished", started: str = "", **choice: object) -> Record:
    target = {"metric": "test accuracy", "value": 0.7, "higher": True}
    setting = {"choice": {"optimizer": "adamw", "lr": 0.1, **choice}, "dataset": {"name": "d"}, "batch_size": 2, "steps": 5}
    header = {**setting, "experiment": "e", "title": "AdamW", "seed": seed, "target": target, "started": started}
    rows = [{"step": 5, "loss": 1.0, "seconds": 1.0, "metrics": {"test accuracy": final}}]
    return Record(Path("x"), header, rows, [{"event": ended, "step": 5, "message": ""}])


def test_runs_that_differ_in_the_seed_alone_are_one_group() -> None:
    one, other = group([record(0), record(1, lr=0.2), record(1), record(2)])
    assert (one.seeds, other.seeds) == ([0, 1, 2], [1])
    assert (one.title, other.title) == ("AdamW, lr 0.1", "AdamW, lr 0.2")


def test_of_two_runs_with_one_seed_the_later_one_counts() -> None:
    early, late = record(0, 0.1, started="2026-01-01"), record(0, 0.2, started="2026-01-02")
    for order in ([early, late], [late, early]):
        (one,) = group([*order, record(1, 0.3)])
        assert one.final("test accuracy") == [0.2, 0.3]


def test_a_diverged_run_is_counted_beside_the_interval() -> None:
    (one,) = group([record(0, 0.8), record(1, 0.6), record(2, math.nan, ended="diverged")])
    assert one.final("test accuracy") == [0.8, 0.6]
    assert one.reached() == [5, None, None]


def test_machines_that_differ_are_told_apart() -> None:
    titles = [one.title for one in group([record(0, machine="tau = 1"), record(0, machine="tau = 2")])]
    assert titles == ["AdamW, machine 1", "AdamW, machine 2"]


def test_the_interval_is_students() -> None:
    values = [0.3, 0.5, 0.45, 0.6]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_holds_the_mean_in_19_of_20_cases() -> None:
    """Coverage of 4,000 samples of three normal values each: 0.95 ± 0.0034 (one standard error of a binomial share)."""
    draws = torch.randn(4000, 3, generator=torch.Generator().manual_seed(5)).tolist()
    held = sum(abs(mean) <= half for mean, half in map(interval, draws)) / 4000
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert interval([0.5])[0] == 0.5
    assert math.isnan(interval([0.5])[1])
    assert all(math.isnan(value) for value in interval([]))
    assert interval_text([0.5, 0.5]) == "0.5, every seed"
    assert interval_text([]) == "–"
    assert steps_text([30, None, 25]) == "25 to 30, not reached by 1 of 3"


def test_the_bill_of_a_group_is_that_of_one_step_averaged_over_runs(tmp_path: Path) -> None:
    from heatbath.experiments.comparison import predict

    run = tasks.train(tmp_path, "solve", steps=5)
    (one,) = group([run, replace(run, header={**run.header, "seed": 9})])
    bill, whole = one.bill(), predict(run)
    assert bill is not None and whole is not None
    assert bill.seconds == pytest.approx(whole.seconds / 5)
    assert bill.unstated_joules == whole.unstated_joules
    assert group([record(0)])[0].bill() is None
