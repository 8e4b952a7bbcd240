from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from heatbath.experiments import Choice, Experiment, Hyper, choose
from heatbath.experiments.data import Dataset, Source
from heatbath.experiments.tuned import RESULT
from heatbath.experiments.tuning import Range, Search, candidates, search, space
from tests.experiments import tasks
from tests.experiments.data.test_held_out import Forbidden


def blind() -> Experiment:
    """The task of `tasks`, whose test split raises when it is looked at."""
    whole = tasks.blobs()
    return tasks.experiment(source=Source("blobs", "", lambda: Dataset("blobs", "made here", whole.train, Forbidden())))


def picked(*names: str) -> list[Choice]:
    return [choose(tasks.experiment(), name) for name in names]


def test_the_points_of_a_power_of_two_fill_equal_parts_of_the_log_range_one_each() -> None:
    """The elementary-interval law of a (0, m, 1)-net in base 2, which a scrambled Sobol' sequence is in one dimension."""
    values = Range(1e-4, 1e2)
    (choice,) = picked("adamw")
    for seed in (0, 7):
        found = [c.hyper.lr for c in candidates(choice, {"lr": values}, trials=16, seed=seed)]
        parts = sorted(int(16 * math.log(lr / 1e-4) / math.log(1e6)) for lr in found)
        assert parts == list(range(16))


def test_more_trials_go_on_where_fewer_ended_and_another_seed_gives_others() -> None:
    (choice,) = picked("kfac")
    few, many = (candidates(choice, space(choice), trials=n, seed=3) for n in (5, 12))
    assert many[:5] == few
    assert len({(c.hyper.lr, c.hyper.damping) for c in many}) == 12
    assert candidates(choice, space(choice), trials=5, seed=4) != few


def test_every_range_has_the_same_width_about_the_default() -> None:
    for choice in picked("sgd", "adamw", "kfac"):
        ranges = space(choice)
        assert set(ranges) == ({"lr", "damping"} if choice.optimizer == "kfac" else {"lr"})
        assert ranges["lr"].high / choice.hyper.lr == pytest.approx(30)
        assert choice.hyper.lr / ranges["lr"].low == pytest.approx(30)


def test_an_optimizer_that_sets_its_own_step_is_searched_for_damping_alone() -> None:
    (choice,) = picked("kfac-quadratic")
    assert set(space(choice)) == {"damping"}


def test_only_what_is_searched_differs_between_candidates() -> None:
    (choice,) = picked("kfac")
    for candidate in candidates(choice, space(choice), trials=4, seed=0):
        hyper = replace(candidate.hyper, lr=choice.hyper.lr, damping=choice.hyper.damping)
        assert replace(candidate, hyper=hyper) == choice


def test_a_best_value_near_an_end_is_noticed() -> None:
    values = Range(1.0, 100.0)
    assert [values.near_edge(v) for v in (1.0, 1.5, 1.6, 60.0, 64.0)] == [True, True, False, False, True]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_a_range_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="a range needs 0 < low < high"):
        Range(low, high)


def test_no_trials_and_no_steps_are_refused() -> None:
    (choice,) = picked("adamw")
    with pytest.raises(ValueError, match="a search needs at least 1 trial, got 0"):
        candidates(choice, space(choice), trials=0, seed=0)
    with pytest.raises(ValueError, match="at least 1 trial of at least 1 step, got 0 and 5"):
        Search(tasks.experiment, trials=0, steps=5)
    with pytest.raises(ValueError, match="at least 1 trial of at least 1 step, got 3 and 0"):
        Search(tasks.experiment, trials=3, steps=0)


def test_a_search_never_looks_at_the_test_split_and_gives_all_the_same_budget(tmp_path: Path) -> None:
    runs = []
    found = search(
        Search(blind, trials=3, steps=4), picked("adamw", "kfac"), tmp_path, watch=lambda t, record, f: runs.append(record)
    )
    assert [tuned.trials for tuned in found] == [3, 3]
    assert {(run.header["choice"]["optimizer"], run.header["steps"]) for run in runs} == {("adamw", 4), ("kfac", 4)}
    assert len(runs) == 6


def test_the_best_on_held_out_data_is_written_down(tmp_path: Path) -> None:
    ends: dict[str, tuple[float, float]] = {}

    def watch(trial: object, record: object, fresh: bool) -> None:
        ends[record.path.name] = (-record.measured[-1]["metrics"]["held-out accuracy"], record.rows[-1]["loss"])  # type: ignore[attr-defined]

    (tuned,) = search(Search(tasks.experiment, trials=4, steps=15), picked("adamw"), tmp_path, watch=watch)
    assert tuned.record == min(ends, key=ends.__getitem__)
    assert tuned.value == -ends[tuned.record][0]
    result = json.loads((tmp_path / RESULT).read_text())
    assert result["tuned"][0]["record"] == tuned.record
    assert result["tuned"][0]["choice"]["lr"] == tuned.choice.hyper.lr
    assert (result["metric"], result["steps"], result["dataset"]["test"]) == ("held-out accuracy", 15, 10)


def test_a_killed_search_goes_on_without_repeating_a_finished_trial(tmp_path: Path) -> None:
    how = Search(tasks.experiment, trials=3, steps=5)
    whole = search(how, picked("adamw"), tmp_path / "whole")
    search(replace(how, trials=2), picked("adamw"), tmp_path / "cut")
    fresh: list[str] = []
    again = search(how, picked("adamw"), tmp_path / "cut", watch=lambda t, r, new: fresh.append(t.name) if new else None)
    assert fresh == ["adamw-003"]
    assert again == whole


def test_a_folder_with_another_search_is_refused(tmp_path: Path) -> None:
    search(Search(tasks.experiment, trials=1, steps=3), picked("adamw"), tmp_path)
    with pytest.raises(ValueError, match="is of another search: its choice is"):
        search(Search(tasks.experiment, trials=1, steps=3, seed=1), picked("adamw"), tmp_path)


def test_hyper_parameters_without_a_value_are_not_searched() -> None:
    (choice,) = picked("adamw")
    assert "damping" not in space(replace(choice, hyper=Hyper(lr=1.0)))
