from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from heatbath.costs import Bill, h100, price
from heatbath.experiments import Record, RunFiles, RunOptions, Target
from heatbath.experiments.comparison import (
    compare,
    comparison_table,
    data_lines,
    find_records,
    machines_of,
    predict,
    summarize,
)
from heatbath.experiments.training import Training
from heatbath.work import Work
from tests.experiments import tasks


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("runs")
    choices = [tasks.choice(name) for name in ("adamw", "solve")]
    return compare(tasks.experiment(), choices, options=RunOptions(steps=20, checkpoint_every=0), folder=folder)


def test_each_run_has_a_record_of_its_own_in_one_folder(records: list[Record]) -> None:
    names = ["adamw.jsonl", "kfac-thermodynamic-solve-tngd-2024-10bit.jsonl"]
    assert [record.path.name for record in records] == names
    found = find_records([records[0].path.parent])
    assert [record.path for record in found] == sorted(record.path for record in records)


def test_runs_start_alike(records: list[Record]) -> None:
    assert records[0].rows[0]["loss"] == records[1].rows[0]["loss"]
    assert records[0].rows[1]["loss"] == records[1].rows[1]["loss"]


def test_the_machine_is_known_from_the_record_alone(records: list[Record]) -> None:
    assert machines_of(records[0]) == {}
    assert machines_of(records[1])["tngd-2024"] == tasks.choice("solve").machine


def test_one_machine_serves_the_drives_of_a_run_one_after_the_other(records: list[Record]) -> None:
    bill = predict(records[1])
    assert bill is not None
    analog = bill.seconds_by_part["settle"] + bill.seconds_by_part["read"]
    assert analog == pytest.approx(records[1].work(records[1].rows[-1]).analog_seconds, rel=1e-9)


def layers_of_one_size() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), *[layer for _ in range(6) for layer in (nn.Tanh(), nn.Linear(8, 8))], nn.Linear(8, 3))


@pytest.mark.parametrize(("name", "copies"), [("kfac", 1), ("inverse", 50)])
def test_a_prediction_is_the_sum_of_the_prices_of_all_steps(name: str, copies: int, tmp_path: Path) -> None:
    """Every step of the same run priced by itself; the average step would lose the batching of what refreshes do at once."""
    task, steps = tasks.experiment(model=layers_of_one_size), 40
    record = tasks.train(tmp_path, name, steps=steps, task=task)
    prices = {"digital": h100(), "machines": machines_of(record), "copies": copies}
    total, truth = Work(), Bill()
    with torch.random.fork_rng(devices=[]):
        run = Training(task, dataset=tasks.blobs(), choice=tasks.choice(name), seed=0, device=torch.device("cpu"))
        for _ in range(steps):
            run.advance()
            step = run.step_work + run.optimizer.work + total * -1  # type: ignore[attr-defined]
            kinds = [{kind: count for kind, count in part.items() if count} for part in (step.kernels, step.jobs)]
            truth, total = truth + price(Work(*kinds), **prices), run.optimizer.work  # type: ignore[attr-defined,arg-type]
    predicted = predict(record, copies=copies)
    assert predicted is not None
    assert predicted.seconds_by_part == pytest.approx(truth.seconds_by_part, rel=1e-9)
    average = price(record.work(record.rows[-1]) * (1 / steps), **prices) * steps  # type: ignore[arg-type]
    assert average.seconds > 1.1 * truth.seconds
    rows = [{key: value for key, value in row.items() if key != "occasions"} for row in record.rows]
    assert predict(replace(record, rows=rows), copies=copies) == average  # what is left for old records


def test_a_run_without_steps_has_no_prediction(records: list[Record]) -> None:
    started = replace(records[0], rows=records[0].rows[:1])
    assert predict(started) is None
    assert predict(replace(records[0], rows=[])) is None
    assert summarize(replace(records[0], rows=[])).final is None


def test_the_table_has_a_row_for_each_run_and_what_the_demo_promises(records: list[Record]) -> None:
    head, rows = comparison_table(records)
    assert head[:3] == ["optimizer", "steps to target", "final test accuracy"]
    assert [row[0] for row in rows] == ["AdamW", "K-FAC, thermodynamic solve (tngd-2024, 10 bits)"]
    for record, row in zip(records, rows, strict=True):
        assert len(row) == len(head)
        reached = record.reached()
        assert row[1] == ("not reached" if reached is None else str(reached["step"]))
        assert row[2] == f"{record.rows[-1]['metrics']['test accuracy']:.4g}"
    assert rows[0][-1] == "–"
    assert rows[1][-2].startswith("≥")  # this machine states nothing about its converters


def test_only_runs_with_one_target_are_compared(records: list[Record]) -> None:
    other = replace(records[1], header={**records[1].header, "target": vars(Target("test accuracy", 0.1))})
    with pytest.raises(ValueError, match=r"runs with one target can be compared, got test accuracy ≥ 0.7 \(1, such as .*≥ 0.1"):
        comparison_table([records[0], other])
    with pytest.raises(ValueError, match="there are no records"):
        comparison_table([])
    other = replace(records[1], header={**records[1].header, "experiment": "another"})
    with pytest.raises(ValueError, match=r"runs of one recipe can be compared, got blobs .*, another .*; make a page for each"):
        comparison_table([records[0], other])


def test_the_data_really_used_are_said_once(records: list[Record]) -> None:
    assert data_lines(records) == ["blobs: 96 training and 30 test examples (made here)"]


def test_ctrl_c_stops_the_comparison_and_keeps_what_there_is(tmp_path: Path) -> None:
    class Impatient:
        def start(self, header: object, step: int) -> None: ...

        def row(self, row: dict[str, int]) -> None:
            if row["step"] == 4:
                signal.raise_signal(signal.SIGINT)

        def event(self, event: object) -> None: ...

        def close(self) -> None: ...

    def watch(choice: object, files: RunFiles) -> list[Impatient]:
        return [Impatient()] if files.name == "adamw" else []

    choices = [tasks.choice("adamw"), tasks.choice("kfac")]
    options = RunOptions(steps=50, checkpoint_every=0, flush_every=1)
    runs = compare(tasks.experiment(), choices, options=options, folder=tmp_path, watch=watch)  # type: ignore[arg-type]
    assert [run.ended for run in runs] == ["interrupted"]
    assert comparison_table(runs)[1][0][3] == "4 (interrupted)"


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no records \(\*\.jsonl\)"):
        find_records([tmp_path])


def test_work_of_a_record_can_be_priced_again(records: list[Record]) -> None:
    assert isinstance(records[1].work(records[1].rows[-1]), Work)
    faster = predict(records[1], copies=8)
    assert faster is not None
    assert faster.seconds <= predict(records[1]).seconds  # type: ignore[union-attr]


def test_records_are_found_in_subfolders_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tasks.train(tmp_path / "runs" / name, steps=1)
    found = find_records([tmp_path / "runs", tmp_path / "runs" / "a" / "run.jsonl"])
    assert [record.path.parent.name for record in found] == ["a", "b"]
