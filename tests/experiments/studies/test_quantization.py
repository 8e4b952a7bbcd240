from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from heatbath.experiments import Choice, Hyper, Record, read_record
from heatbath.experiments.studies import Grid, Outcome, Quantization, Setting, quantization_page
from heatbath.experiments.studies.grid import SWEEPS
from heatbath.experiments.studies.quantization import Findings, Point, final_loss
from heatbath.experiments.studies.quantization_figures import kept, row
from heatbath.experiments.studies.quantization_page import _alone, _bits, _plain_points
from heatbath.experiments.tuned import Tuned
from heatbath.machines import MachineSpec, load_machine
from tests.experiments import hand, tasks

GRID = Grid((6, 12), (8,), (1.0, 10.0), ("thermodynamic-inverse",), ("noise",))
STUDY = Quantization(Setting(tasks.experiment, steps=6), GRID, seeds=2, trials=3)
SMALL = Quantization(
    Setting(tasks.experiment, steps=4), replace(GRID, matrix_bits=(8,), dampings=(1.0,), sweeps=()), seeds=1, trials=2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def findings(folder: Path) -> Findings:
    return STUDY.run(folder)


@pytest.mark.slow
def test_nothing_has_fewer_trials_than_digital_kfac(findings: Findings) -> None:
    adam, sgd, digital, huge = findings.tuning
    assert [o.tuned.choice.optimizer for o in findings.tuning] == ["adamw", "sgd", "kfac", "kfac"]
    assert min(o.tuned.trials for o in (adam, sgd, huge)) >= digital.tuned.trials
    for outcome in findings.tuning:
        worst: dict[str, Record] = {}  # over the seeds of each setting
        for record in sorted(outcome.tuning, key=final_loss):
            worst[json.dumps(record.header["choice"], sort_keys=True)] = record
        best = min(worst.values(), key=final_loss)
        assert best.header["choice"] == outcome.tuned.choice.to_json()


@pytest.mark.slow
def test_the_machine_takes_over_what_digital_kfac_was_tuned_to(findings: Findings) -> None:
    tuned = {p.multiple: p.choice.hyper for p in findings.points if p.group == "digital"}
    assert set(tuned) == {1.0, 10.0}
    assert tuned[10.0].damping == pytest.approx(10 * (tuned[1.0].damping or 0), rel=1e-2)
    machines = [p for p in findings.points if p.choice.machine is not None]
    assert all(p.choice.hyper == tuned[p.multiple] for p in machines)
    grid = {
        (p.multiple, p.choice.machine.matrix_bits, p.choice.machine.read_bits)
        for p in machines
        if p.group == "grid" and p.choice.machine
    }
    assert grid == {(d, m, r) for d in (1.0, 10.0) for m in (6, 12) for r in (8,)}
    assert [p.value for p in machines if p.group == "noise"] == list(SWEEPS["noise"].values)


@pytest.mark.slow
def test_every_run_says_what_its_preconditioner_is_like_and_the_control_is_a_learning_rate(findings: Findings) -> None:
    for point in findings.points:
        if point.choice.optimizer == "kfac":
            assert point.preconditioner.keys() == {"condition", "median_condition", "spread", "layer_spread", "cosine"}
        else:
            assert point.preconditioner == {}
    control, digital = findings.points[3].preconditioner, findings.digital.preconditioner
    assert control["layer_spread"] < 1e-3
    assert control["cosine"] == pytest.approx(1, abs=1e-3)
    assert digital["layer_spread"] > 10 * control["layer_spread"]


@pytest.mark.slow
def test_a_study_run_again_repeats_nothing_and_a_lost_trial_is_made_anew(folder: Path, findings: Findings) -> None:
    fresh: list[str] = []

    def watch(trial: object, record: Record, new: bool) -> None:
        fresh.extend([record.name] if new else [])

    assert STUDY.run(folder, watch=watch) == findings
    assert fresh == []
    (folder / "run-sgd-seed2.jsonl").unlink()
    again = STUDY.run(folder, watch=watch)
    assert fresh == ["run-sgd-seed2"]
    assert [p.losses for p in again.points] == [p.losses for p in findings.points]


@pytest.mark.slow
def test_the_page_holds_what_the_records_hold(findings: Findings, tmp_path: Path) -> None:
    page = quantization_page(STUDY, findings).write(tmp_path / "page")
    figures = {"bits", "sweeps", "anisotropy"} if findings.shares(findings.digital) else {"anisotropy"}
    names = {path.name for path in page.parent.iterdir()}
    whole = {"README.md", "index.html", "result.json", "trials.csv", "points.csv"}
    assert names == whole | {f"{name}.{end}" for name in figures for end in ("svg", "csv")}
    result = json.loads((page.parent / "result.json").read_text())
    rows = list(csv.DictReader(io.StringIO((page.parent / "points.csv").read_text())))
    assert len(rows) == len(result["points"]) == len(findings.points)
    for point, plain in zip(findings.points, result["points"], strict=True):
        assert plain["final training loss"] == pytest.approx(sum(point.losses) / 2)


KILLED = """
from pathlib import Path
import sys
from tests.experiments.studies.test_quantization import SMALL
SMALL.run(Path(sys.argv[1]), watch=lambda trial, record, fresh: print(record.name, fresh, flush=True))
"""


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was_and_loses_no_finished_trial(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [child.stdout.readline().split()[0] for _ in range(9)]
    time.sleep(0.05)  # into the next trial
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    before = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in told}
    assert all(read_record(tmp_path / f"{name}.jsonl").ended in ("finished", "diverged") for name in told)
    old: list[str] = []
    SMALL.run(tmp_path, watch=lambda trial, record, fresh: old.append("" if fresh else record.name))
    assert set(told) <= set(old)
    assert {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in told} == before
    assert "" in old


# --- the numbers ---------------------------------------------------------------------------------------------------------


def run(loss: float, *, ended: str = "finished", report: dict[str, float] | None = None, spread: float = 1.0) -> Record:
    """Ten steps, the last five at a loss."""
    rows = [{"step": i, "loss": 9.0 if i < 6 else loss, "seconds": 0.0} for i in range(11)]
    curvature = {"condition": 9.0, "median_condition": 3.0, "spread": spread, "layer_spread": spread, "cosine": 0.5}
    rows[-1] |= {"metrics": {"m": 0.5}, "optimizer": report or {"prepare.solved": 4.0}, "preconditioner": curvature}
    data = {"name": "made", "source": "here", "train": 10, "test": 5}
    header = {"target": {"metric": "m", "value": 0.9, "higher": True}, "seed": 1, "experiment": "made", "dataset": data}
    return Record(Path("x"), {**header, "summary": "made", "batch_size": 5}, rows, [{"event": ended}])


def point(losses: Sequence[float], group: str = "grid", **report: float) -> Point:
    machine = replace(load_machine("tngd-2024"), matrix_bits=8, read_bits=8) if group == "grid" else None
    choice = Choice("kfac", Hyper(lr=0.1, damping=0.1), "thermodynamic-inverse", machine)
    return Point(group, group, choice, [run(loss, report=dict(report)) for loss in losses], multiple=1.0)


ONE_CELL = replace(STUDY, grid=Grid((8,), (8,), (1.0,), ("thermodynamic-inverse",), ()))


def made(*points: Point) -> Findings:
    """AdamW at 3 and 5, K-FAC at 1 and 1."""
    plain = [point([3.0, 5.0], "baseline"), point([4.0, 4.0], "control"), point([1.0, 1.0], "digital")]
    return Findings([], [*plain, *points])


def test_the_share_kept_is_taken_seed_by_seed() -> None:
    one = point([2.0, 2.0])
    findings = made(one)
    assert findings.shares(one) == pytest.approx([math.log(3 / 2) / math.log(3), math.log(5 / 2) / math.log(5)])
    assert findings.shares(findings.digital) == pytest.approx([1.0, 1.0])
    assert findings.shares(findings.adam) == [0.0, 0.0]
    assert findings.bar == pytest.approx((3**0.1 + 5**0.1) / 2)
    lost = Point("grid", "", one.choice, [run(2.0), run(2.0, ended="diverged")])
    assert (findings.shares(lost) or [])[1] == -math.inf


def test_a_loss_ten_times_kfacs_does_not_keep_its_benefit() -> None:
    """AdamW 92 times K-FAC's loss, as the study of digits found: a linear share calls 10 times K-FAC's loss 90 % kept."""
    plain = [point([0.92, 0.92], "baseline"), point([4.0, 4.0], "control"), point([0.01, 0.01], "digital")]
    ten, near = point([0.1, 0.1]), point([0.015, 0.015])
    findings = Findings([], [*plain, ten, near])
    assert (0.92 - 0.1) / (0.92 - 0.01) > 0.9
    assert not kept(findings, ten)
    assert kept(findings, near)  # 92^0.1 = 1.57 times is the bar


def test_every_column_of_the_page_is_what_records_by_hand_say() -> None:
    """AdamW at losses 3 and 5, K-FAC at 1 and 1, the machine at 1 and 2: shares 1 and ln 2.5/ln 5 = 0.569, mean 0.785."""
    machine = point([1.0, 2.0], **{"prepare.solved": 2.0, "prepare.redamped": 1.0, "prepare.fell_back": 1.0})
    swept = replace(machine, group="noise", value=1e-3, runs=[run(1.0, spread=0.25), run(2.0, spread=0.75)])
    findings = made(machine, swept)
    study = replace(ONE_CELL, grid=replace(ONE_CELL.grid, sweeps=("noise",)))
    curvature = {"largest κ of a factor": "9", "spread": "1", "layer spread": "1", "cosine": "0.50"}
    table = _bits(study, findings, "thermodynamic-inverse")
    assert hand.cells((table.head, table.rows)) == {"1, 8": {"8 read bits": "78% (d 25%, r 25%)", **curvature}}
    table = _plain_points(findings)
    digital = {"training loss": "1 ± 0", "over AdamW": "0.25", "over K-FAC": "1", "share kept": "100%", "m": "0.5 ± 0"}
    control = {"training loss": "4 ± 0", "over AdamW": "1", "over K-FAC": "4", "share kept": "-6%", "m": "0.5 ± 0"}
    baseline = {"training loss": "4 ± 1", "over AdamW": "1", "over K-FAC": "4", "share kept": "0%", "m": "0.5 ± 0"}
    assert hand.cells((table.head, table.rows)) == {
        name: {"lr": "0.1", **cells, **curvature}
        for name, cells in (("baseline", baseline), ("control", control), ("digital", digital))
    }
    table = _alone(study, findings)
    assert (table.head[1:5], table.rows) == (
        ["value", "solver", "share kept", "training loss"],
        [[SWEEPS["noise"].label, "0.001", "thermodynamic inverse", "78%", "1.5", "9", "0.5", "0.5", "0.50"]],
    )
    plain = row(findings, machine)
    assert plain["share kept"] == pytest.approx((1 + math.log(2.5) / math.log(5)) / 2)
    assert plain["lowest share"] == pytest.approx(math.log(2.5) / math.log(5))
    assert (plain["final training loss"], plain["over AdamW"], plain["over digital K-FAC"]) == (1.5, 1.5 / 4, 1.5)
    assert (plain["solved digitally"], plain["damped more"], plain["test metric"]) == (0.25, 0.25, 0.5)
    assert list(row(findings, swept).values())[-5:-2] == [0.5, 0.5, 0.5]  # spread, layer spread, cosine


def test_where_kfac_is_no_better_there_is_nothing_to_keep() -> None:
    one = point([2.0, 2.0])
    findings = Findings([], [point([3.0, 1.0], "baseline"), point([4.0, 4.0]), point([1.0, 1.0], "digital"), one])
    assert findings.shares(one) is None
    assert not kept(findings, one)
    outcome = Outcome(Tuned(one.choice, 1.0, 1, 0, (), "x"), ("lr",), [])
    page = quantization_page(ONE_CELL, replace(findings, tuning=[outcome] * 4))
    assert "no benefit whose share could be kept" in page.answer[-1]
    assert [picture.name for picture in page.pictures] == ["anisotropy"]


def test_the_page_says_where_the_benefit_is_kept_by_the_machine_itself() -> None:
    good, bad = point([1.0, 1.0]), point([3.0, 5.0])
    outcome = Outcome(Tuned(good.choice, 1.0, 1, 0, (), "x"), ("lr",), [])
    words = {}
    for name, one in (("good", good), ("bad", bad)):
        findings = replace(made(one), tuning=[outcome] * 4)
        page = quantization_page(ONE_CELL, findings)
        assert [picture.name for picture in page.pictures] == ["bits", "anisotropy"]
        words[name] = page.answer[2]
    assert "(digital K-FAC: 100%): 90% kept in 1 of 1 cells (8 read bits: from 8 matrix bits)" in words["good"]
    assert "90% kept in 0 of 1 cells." in words["bad"]


def test_the_loss_at_the_end_is_a_mean_of_the_last_five_and_infinite_for_what_diverged() -> None:
    assert final_loss(run(2.0)) == 2.0
    assert final_loss(run(2.0, ended="diverged")) == math.inf
    assert final_loss(run(math.nan)) == math.inf
    long = replace(run(2.0), rows=[{"step": i, "loss": float(i), "seconds": 0.0} for i in range(101)])
    assert final_loss(long) == 95.5  # a tenth of 100 steps: 91 … 100


def test_what_the_digital_fallback_solved_does_not_count_as_kept() -> None:
    own = point([1.0, 1.0], **{"prepare.solved": 3.0, "prepare.redamped": 1.0})
    rescued = point([1.0, 1.0], **{"prepare.solved": 3.0, "prepare.fell_back": 1.0})
    findings = made(own, rescued)
    assert (own.digital_share, own.damped_share) == (0.0, 0.25)
    assert (rescued.digital_share, rescued.damped_share) == (0.25, 0.0)
    assert kept(findings, own)
    assert not kept(findings, rescued)
    assert not kept(findings, findings.adam)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_changes_one_figure_of_the_machine_and_its_values_are_allowed(name: str) -> None:
    spec, sweep = load_machine("tngd-2024"), SWEEPS[name]
    fields = [
        {f for f in spec.__dataclass_fields__ if getattr(sweep.change(spec, v), f) != getattr(spec, f)}
        for v in sweep.values
        if sweep.change(spec, v) != spec
    ]
    drifting = {"hold_seconds", "drift_exponent", "drift_spread"}
    assert fields
    assert all(len(changed) == 1 or changed == drifting for changed in fields)
    assert isinstance(sweep.change(spec, sweep.values[0]), MachineSpec)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solvers": ("cholesky",)}, "there is no solver cholesky to vary; known: thermodynamic-inverse"),
        ({"sweeps": ("heat",)}, "there is no sweep heat to vary; known: noise, settling"),
        ({"dampings": (0.0,)}, "dampings are multiples of the tuned one and must be positive"),
        ({"read_bits": ()}, "at least one of matrix bits, read bits, dampings and solvers"),
    ],
)
def test_a_grid_of_what_is_not_there_is_refused(wrong: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GRID, **wrong)  # type: ignore[arg-type]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 seed and 1 trial, got 0 and 3"):
        replace(STUDY, seeds=0)
    with pytest.raises(ValueError, match="a search takes 1 to 5 seeds, got 6"):
        replace(STUDY, search_seeds=6)
    with pytest.raises(ValueError, match="a study needs at least 1 step, got 0"):
        Setting(tasks.experiment, steps=0)
