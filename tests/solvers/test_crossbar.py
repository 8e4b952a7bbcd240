"""The closed-loop analog solver: settling by the smallest eigenvalue, gain, bits, and no noise."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import Fault, FaultInjector, Machine, MachineSpec
from heatbath.machines.oracle import oracle
from heatbath.operators import Dense, Diagonal
from heatbath.solvers import Crossbar, Guarded, Outcome, Refined, ThermodynamicSolve
from heatbath.work import elementwise
from tests.solvers.truth import NoHostSync, fresh, normal, relative, solved, spd, with_spectrum

TAU = 1e-6


def machine(**fields: float) -> Machine:
    return Machine(MachineSpec(name="crossbar", tau=TAU, **fields))


def test_settled_solutions_are_exact_without_bits_and_at_infinite_gain() -> None:
    matrix, rhs = spd(3, n=6), normal(3, 2, 6)
    solver = Crossbar(machine(), settle_seconds=1e4 * TAU)
    with NoHostSync():
        state, _ = solver.prepare(Dense(matrix))
        solution = solver.solve(state, rhs)
    assert relative(solution.value, solved(matrix, rhs)) < 1e-12
    assert (solution.outcome == Outcome.SOLVED.code).all()
    assert torch.equal(solver.outcome(state), solution.outcome)
    assert oracle(state.programmed).dynamics.name == "closed loop"


@pytest.mark.parametrize("taus", [20.0, 60.0, 200.0])
def test_what_is_left_decays_at_the_slowest_rate(taus: float) -> None:
    matrix = spd(n=6, condition=30)
    solver = Crossbar(machine(), settle_seconds=taus * TAU, equilibrate=False)
    state, _ = solver.prepare(Dense(matrix))
    full = matrix / matrix.abs().max()
    drift = full / (1 + full.abs().sum(-1, keepdim=True))
    rates, modes = torch.linalg.eig(drift)
    slow = rates.real.argmin()
    rhs = (matrix @ modes.real[:, slow])[None]  # its solution is the slowest mode alone
    solution = solver.solve(state, rhs)
    left = torch.exp(-taus * rates.real.min())
    torch.testing.assert_close(solution.value, (1 - left) * solved(matrix, rhs), rtol=1e-8, atol=1e-10)


def test_finite_gain_is_the_machines_and_systematic() -> None:
    matrix, rhs = spd(n=6), normal(2, 6)
    solver = Crossbar(machine(amplifier_gain=1e3), settle_seconds=1e4 * TAU, equilibrate=False)
    state, _ = solver.prepare(Dense(matrix))
    scale = matrix.abs().max()
    held = matrix + scale * torch.diag(1 + (matrix / scale).abs().sum(-1)) / 1e3
    torch.testing.assert_close(solver.solve(state, rhs).value, solved(held, rhs), rtol=1e-10, atol=1e-12)
    assert 1e-4 < relative(solver.solve(state, rhs).value, solved(matrix, rhs)) < 1e-1


def test_bits_and_mismatch_are_the_machines_and_noise_is_not_emulated() -> None:
    matrix, rhs = spd(2, n=6), normal(2, 3, 6)
    rough = machine(matrix_bits=6, gain_mismatch=0.02, noise_volts_rms=0.1)
    solver = Crossbar(rough, settle_seconds=1e4 * TAU)
    state, _ = solver.prepare(Dense(matrix))
    held = (
        oracle(state.programmed).conductance
        * state.programmed.scale[:, None, None]
        / state.root[:, :, None]
        / state.root[:, None, :]
    )
    value = solver.solve(state, rhs, generator=fresh(1)).value
    torch.testing.assert_close(value, solved(held, rhs), rtol=1e-9, atol=1e-10)
    assert torch.equal(value, solver.solve(state, rhs, generator=fresh(2)).value)
    assert relative(held, matrix) > 1e-3


def test_at_equal_bits_what_remains_of_a_thermodynamic_solve_is_noise() -> None:
    matrix, rhs = spd(n=6), normal(200, 6)
    fields = {"matrix_bits": 8, "noise_volts_rms": 3e-3}
    loop = Crossbar(machine(**fields), settle_seconds=1e4 * TAU)
    noisy = ThermodynamicSolve(machine(**fields))
    exact = loop.solve(loop.prepare(Dense(matrix))[0], rhs).value
    drawn = noisy.solve(noisy.prepare(Dense(matrix), generator=fresh(1))[0], rhs, generator=fresh(2)).value
    assert relative(drawn, solved(matrix, rhs)) > relative(exact, solved(matrix, rhs))


def test_a_guess_shortens_settling() -> None:
    matrix, rhs = spd(n=6), normal(2, 6)
    truth = solved(matrix, rhs)
    solver = Crossbar(machine(), settle_seconds=10 * TAU)
    state, _ = solver.prepare(Dense(matrix))
    torch.testing.assert_close(solver.solve(state, rhs, guess=truth).value, truth, rtol=1e-10, atol=1e-12)
    assert relative(solver.solve(state, rhs).value, truth) > 0.1


def test_a_digital_residual_removes_the_gain_error() -> None:
    matrix, rhs = spd(2, n=6), normal(2, 3, 6)
    solver = Refined(Crossbar(machine(amplifier_gain=200, matrix_bits=8), settle_seconds=1e4 * TAU), sweeps=8)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    assert relative(solution.value, solved(matrix, rhs)) < 1e-6


def test_a_machine_that_runs_away_is_caught_by_what_it_answers_and_a_late_one_says_so() -> None:
    matrix = torch.stack([spd(n=3), with_spectrum(torch.tensor([1.0, 0.5, -0.2]))])
    solver = Guarded(Crossbar(machine(), settle_seconds=200 * TAU), retries=0)
    codes = solver.outcome(solver.prepare(Dense(matrix))[0])
    assert codes[0] == Outcome.SOLVED.code
    assert codes[1] != Outcome.SOLVED.code
    late = Crossbar(Machine(FaultInjector(machine().device, Fault.LATE, every=1)))
    state, _ = late.prepare(Dense(matrix))
    assert late.solve(state, normal(2, 3)).outcome.tolist() == [Outcome.LATE.code] * 2


def test_work_is_one_settling_and_one_read_a_drive() -> None:
    solver = Crossbar(machine(matrix_bits=8, drive_bits=6, read_bits=10), settle_seconds=7 * TAU)
    state, work = solver.prepare(Dense(spd(2, n=5)))
    assert work.programmings == 2
    assert sum(job.upload_bits * count for job, count in work.jobs.items()) == 2 * 8 * 25
    solve = solver.solve(state, normal(2, 3, 5)).work
    (job,) = solve.jobs
    assert (job.drives, job.settle_seconds, job.read_seconds) == (3, 7 * TAU, 0.0)
    assert (job.conversions_in, job.conversions_out, job.drive_bits, job.read_bits) == (5, 5, 30.0, 50.0)
    assert solve.analog_seconds == pytest.approx(2 * 3 * 7 * TAU)
    assert solve.kernels == {elementwise(30, 2): 1}


@pytest.mark.parametrize("settle_taus,want", [(None, 50.0), (20.0, 20.0)])
def test_settling_time_is_the_machines_unless_given(settle_taus: float | None, want: float) -> None:
    spec = MachineSpec(name="m", tau=TAU, settle_taus=settle_taus)
    assert Crossbar(Machine(spec)).schedule.burn_in == pytest.approx(want * TAU)
    assert Crossbar(Machine(spec), settle_seconds=3e-6).schedule.burn_in == 3e-6


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="settle_seconds must be positive, got 0"):
        Crossbar(machine(), settle_seconds=0.0)
    with pytest.raises(TypeError, match="a machine holds Dense operators, got Diagonal; wrap the solver: Factorwise"):
        Crossbar(machine()).prepare(Diagonal(torch.ones(3)))
    with pytest.raises(ValueError, match="a matrix of size 3 needs 3 cells, machine 'small' has 2"):
        Crossbar(Machine(MachineSpec(name="small", tau=TAU, cells=2))).prepare(Dense(torch.eye(3)))
