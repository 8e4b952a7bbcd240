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
    code_line,
    compare,
    comparison_table,
    data_lines,
    find_records,
    machines_of,
    predict,
    predict_mean,
    summarize,
)
from heatbath.experiments.training import Training
from heatbath.work import Job, Work
from tests.experiments import hand, tasks


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


def test_the_commits_of_runs_are_said_once() -> None:
    runs = [hand.record(seed, UNEVEN, versions={"commit": commit}) for seed, commit in enumerate("aba")]
    assert code_line(runs) == "Code of the runs: commit a, b."
    assert code_line([hand.record(1, UNEVEN, versions={})]) == "Code of the runs: commit unknown."


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


UNEVEN = {10: (0.6, 5.0), 20: (0.5, 6.0), 40: (0.2, 8.0)}  # five refreshes in ten steps, then fewer


def test_time_to_a_target_is_the_price_of_the_work_until_then() -> None:
    """Five visits of a second until step 10, six until 20, eight until 40: a share of the run would be 2, 4 and 8 s."""
    run = hand.record(1, UNEVEN)
    for step, seconds in ((0, 0.0), (10, 5.0), (20, 6.0), (40, 8.0)):
        bill = predict(run, until=step)
        assert bill is not None and bill.seconds == pytest.approx(seconds)
    assert predict(run) == predict(run, until=40)
    with pytest.raises(ValueError, match=r"no work at step 15, only at 10, 20, 40"):
        predict(run, until=15)


def test_mean_time_to_a_target_is_over_each_seeds_own_step() -> None:
    runs = [hand.record(1, UNEVEN), hand.record(2, UNEVEN)]
    bill = predict_mean(runs, [10, 40])
    assert bill is not None and bill.seconds == pytest.approx((5 + 8) / 2)
    assert predict_mean(runs, [10, None]) is None
    assert predict_mean([], []) is None


def test_every_column_of_the_comparison_is_what_a_record_by_hand_says() -> None:
    plain = hand.record(1, {40: (0.7, 0)}, choice=hand.PLAIN, seconds=2.0)
    table = hand.cells(comparison_table([hand.record(1, UNEVEN), plain]))
    assert table == {
        "K-FAC, thermodynamic inverse (hand)": {
            "steps to target": "20",
            "final test error": "0.2",
            "steps": "40",
            "seconds here": "10.00 s",
            "predicted to target": "6 s",
            "predicted seconds": "8 s",
            "of it analog": "8 s",
        },
        "AdamW": {
            "steps to target": "not reached",
            "final test error": "0.7",
            "steps": "40",
            "seconds here": "2.00 s",
            "predicted to target": "–",
            "predicted seconds": "0 s",
            "of it analog": "–",
        },
    }


@pytest.mark.parametrize(("copies", "sent"), [(1, 100 + 2 * 4), (2, 2 * 4)])
def test_matrices_that_share_a_machine_are_sent_again_at_every_solve(copies: int, sent: int) -> None:
    """Two matrices, sent at four refreshes, solved with in each of 54 steps: 54 · 2 visits, of which 8 follow a programming."""
    upload, solve = Job("hand", 4, upload_bits=16e6), Job("hand", 4, drives=1, settle_seconds=1.0)  # 16 s to send one
    work = Work(jobs={upload: 8, solve: 108})
    occasions = Work(jobs={upload: 4, solve: 54})
    run = hand.record(1, {54: (0.5, 1.0)})
    run.rows[-1].update(work=work.to_json(), occasions=occasions.to_json())
    bill = predict(run, copies=copies)
    assert bill is not None
    assert bill.seconds_by_part["upload"] == pytest.approx(16 * sent / copies)
    assert bill.seconds_by_part["settle"] == pytest.approx(108 / copies)


def test_inverses_are_sent_once_however_few_machines_there_are() -> None:
    upload, invert = Job("hand", 4, upload_bits=16e6), Job("hand", 4, drives=4, settle_seconds=1.0)
    run = hand.record(1, {54: (0.5, 1.0)})
    for name, count in (("work", 8), ("occasions", 4)):
        run.rows[-1][name] = Work(jobs={upload: count, invert: count}).to_json()
    bill = predict(run)
    assert bill is not None
    assert bill.seconds_by_part == {**bill.seconds_by_part, "upload": pytest.approx(16 * 8), "settle": pytest.approx(4 * 8)}
