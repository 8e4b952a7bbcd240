"""One linear system on one machine: forecasts, the study of errors against time, what is written."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from heatbath.experiments.solving import BEFORE, MACHINE_SOLVERS, REPEATS, Settling, Task, forecast, settling, solve
from heatbath.experiments.solving_report import bill_of, clip_counts, settling_figure, write_solution
from heatbath.machines import Machine, MachineSpec, load_machine, with_bits
from heatbath.solvers.prediction import InaccuracyWarning
from tests.machines.truth import spd

N = 12
MATRIX = spd(N, 8.0)
RHS = torch.randn(2, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
NOISY = MachineSpec(name="noisy", tau=1e-6, noise_volts_rms=0.02, matrix_bits=10)


@pytest.mark.parametrize("solver", ["thermodynamic-solve", "crossbar"])
def test_measured_errors_scatter_about_the_closed_form(solver: str) -> None:
    study = settling(Task(Machine(NOISY, tolerance=0.0), solver, MATRIX, RHS))
    z = []
    for expected, errors in zip(study.expected, study.measured, strict=True):
        squares = np.square(errors)
        deviation = squares.std(ddof=1)
        if solver == "crossbar":
            assert errors == pytest.approx([expected] * REPEATS, rel=1e-9)
        else:
            z.append((squares.mean() - expected**2) / (deviation / REPEATS**0.5))
    assert np.abs(z).max(initial=0.0) < 5  # 26 times Student's t with 23 degrees of freedom: 5 is seen once in 800 studies
    assert study.seconds[BEFORE] == pytest.approx(50e-6)
    assert study.expected[0] > 10 * study.expected[BEFORE]


def test_refinement_goes_far_below_the_closed_form_of_one_drive() -> None:
    study = settling(Task(Machine(NOISY), "refined", MATRIX, RHS))
    assert study.refined
    assert study.rms[BEFORE] < 1e-3 * study.expected[BEFORE]


@pytest.mark.parametrize("solver", list(MACHINE_SOLVERS))
def test_the_error_is_that_against_a_dense_solve(solver: str) -> None:
    task = Task(Machine(NOISY), solver, MATRIX, RHS, seed=4)
    solved = solve(task)
    exact = np.linalg.solve(MATRIX.numpy(), RHS.numpy().T).T
    assert solved.error == pytest.approx(np.linalg.norm(solved.result.value.numpy() - exact) / np.linalg.norm(exact), rel=1e-9)
    assert solved.result.solved
    assert bool((solve(task).result.value == solved.result.value).all())  # the seed decides everything


def test_a_crossbar_is_forecast_by_its_slower_modes() -> None:
    spec = MachineSpec(name="m", tau=1e-6, noise_volts_rms=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccuracyWarning)
        prediction = forecast(Task(Machine(spec), "crossbar", MATRIX, RHS))
        driven = forecast(Task(Machine(spec), "thermodynamic-solve", MATRIX, RHS))
    error = solve_quietly(Task(Machine(spec), "crossbar", MATRIX, RHS))
    assert float(prediction.noise) == 0.0
    assert float(driven.noise) > 0.01
    assert 0.1 * float(prediction.settling) < error <= float(prediction.settling)  # the slowest mode bounds all of them


def test_a_finite_gain_is_forecast_as_an_error_of_the_matrix() -> None:
    spec = MachineSpec(name="m", tau=1e-6, amplifier_gain=1e3, settle_taus=2000.0)
    prediction = forecast(Task(Machine(spec), "crossbar", MATRIX, RHS))
    error = solve_quietly(Task(Machine(spec), "crossbar", MATRIX, RHS))
    assert 0.1 * float(prediction.rounding) < error < float(prediction.rounding)


def solve_quietly(task: Task) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccuracyWarning)
        return solve(task).error


def test_a_huge_condition_number_is_warned_of_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("worked before the warning")

    monkeypatch.setattr(Machine, "program", refuse)
    task = Task(Machine(with_bits(load_machine("tngd-2024"), matrix=8)), "thermodynamic-solve", spd(N, 1e8), RHS)
    with pytest.warns(
        InaccuracyWarning, match=r"condition number 1.0e\+08: the predicted relative error is .*rounding .*--bits"
    ):
        forecast(task)


def test_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match="the right-hand side is all zeros, and so is the solution"):
        Task(Machine(NOISY), "refined", MATRIX, torch.zeros(N, dtype=torch.float64))


def test_what_is_singular_in_float64_is_refused() -> None:
    task = Task(Machine(NOISY), "refined", torch.ones(2, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="the matrix is singular in float64"):
        _ = task.answer


def test_the_bill_has_what_was_stated_and_says_what_was_not() -> None:
    task = Task(Machine(load_machine("tngd-2024")), "thermodynamic-solve", MATRIX, RHS)
    bill = bill_of(task, solve(task))
    assert bill.seconds_by_part["upload"] == pytest.approx(16 * N * N / 50e9)
    assert bill.seconds_by_part["settle"] + bill.seconds_by_part["read"] == pytest.approx(2 * 50e-6)
    assert {"settle", "read", "upload", "convert"} <= bill.unstated_joules


def test_clipped_entries_are_counted() -> None:
    matrix = MATRIX.clone()
    matrix[0, 1] = matrix[1, 0] = 0.9 * float((MATRIX[0, 0] * MATRIX[1, 1]).sqrt())  # stands out beside a unit diagonal
    matrix += torch.diag((torch.arange(N) < 2).double())
    spec = MachineSpec(name="m", tau=1e-6, matrix_percentile=50.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccuracyWarning)
        solved = solve(Task(Machine(spec), "thermodynamic-solve", matrix, RHS))
    scaled = matrix / (matrix.diagonal()[:, None] * matrix.diagonal()).sqrt()
    full = scaled.abs().flatten().sort().values[N * N // 2 - 1]
    assert clip_counts(solved)["matrix"] == int((scaled.abs() > full * (1 + 1e-6)).sum())


@pytest.mark.slow
def test_a_folder_holds_result_picture_data_and_summary(tmp_path: Path) -> None:
    task = Task(Machine(NOISY, serial=3), "thermodynamic-solve", MATRIX, RHS[0], seed=5)
    solved, study = solve(task), settling(task)
    bill = bill_of(task, solved)
    files = write_solution(tmp_path / "a" / "b", task, solved, study, bill, command="heatbath solve")
    assert [f.name for f in files] == ["result.json", "result.npy", "settling.csv", "settling.png", "settling.svg"]
    assert all(f.stat().st_size > 100 for f in files)
    assert (np.load(files[1]) == solved.result.value.numpy()).all()
    record = json.loads(files[0].read_text())
    assert (record["relative_error"], record["seed"], record["serial"]) == (solved.error, 5, 3)
    assert record["expected"] == study.expected[BEFORE]
    rows = list(csv.DictReader(files[2].read_text().splitlines()))
    assert [float(r["closed_form"]) for r in rows] == pytest.approx(study.expected, rel=1e-6)
    assert [float(r["measured_rms"]) for r in rows] == pytest.approx(study.rms, rel=1e-6)
    assert [float(r[f"measured_{REPEATS}"]) for r in rows] == pytest.approx([m[-1] for m in study.measured], rel=1e-6)


def test_the_picture_has_every_point_and_the_curve() -> None:
    study = Settling([1e-6 * (k + 1) for k in range(26)], [[0.1, 0.2]] * 26, [0.15] * 26)
    (axes,) = settling_figure(study, title="t").axes
    points, rms, curve, own = axes.get_lines()
    assert len(points.get_xdata()) == 52
    assert list(rms.get_ydata()) == pytest.approx([(0.5 * (0.01 + 0.04)) ** 0.5] * 26)
    assert list(curve.get_ydata()) == [0.15] * 26
    assert list(own.get_xdata()) == pytest.approx([1.0 * (BEFORE + 1)] * 2)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    task = Task(Machine(NOISY), "thermodynamic-solve", MATRIX, RHS)
    solved = solve(task)
    study = Settling([1e-6] * 26, [[0.1]] * 26, [0.1] * 26)
    with pytest.raises(ValueError, match=r"the folder .*file/folder cannot be written: .*--out"):
        write_solution(tmp_path / "file" / "folder", task, solved, study, bill_of(task, solved), command="c")
