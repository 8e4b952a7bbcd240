from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.machines.oracle import oracle
from heatbath.operators import Dense, Diagonal, Kronecker
from heatbath.solvers import Fluctuations, Outcome, ThermodynamicInverse, ThermodynamicSolve, UnitVectors, default_schedule
from tests.laws import fresh, noise
from tests.zoo import IDEAL, LONG, MACHINES, NOISY, SIXTEEN, TAU, spd

READ_ONCE = Schedule(burn_in=3 * TAU, duration=0.0, reads=1)


def relaxed(matrix: Tensor, rhs: Tensor, time: float, *, equilibrate: bool, start: Tensor | None = None) -> Tensor:
    """D V (1 − e^{−λt}) λ⁻¹ Vᵀ D b + what a start leaves, where V λ Vᵀ = D M D over its largest entry: by `matrix_exp`."""
    root = matrix.diagonal().rsqrt() if equilibrate else torch.ones(len(matrix), dtype=matrix.dtype)
    scaled = root[:, None] * matrix * root[None]
    decay = torch.linalg.matrix_exp(-scaled / scaled.abs().max() * time)
    settled = torch.linalg.solve(scaled, (rhs * root).mT).mT
    begun = torch.zeros_like(settled) if start is None else start / root
    return (settled - (settled - begun) @ decay) * root


@pytest.mark.parametrize("equilibrate", [True, False])
def test_a_drive_read_early_gives_the_truncated_answer(equilibrate):
    """A mode λ reaches 1 − e^{−λt/τ} of its answer: time is a damping."""
    matrix, rhs = spd(n=4) * 7, noise(3, 4)
    solver = ThermodynamicSolve(IDEAL, READ_ONCE, equilibrate=equilibrate)
    got = solver.solve(solver.prepare(Dense(matrix))[0], rhs).value
    torch.testing.assert_close(got, relaxed(matrix, rhs, 3.0, equilibrate=equilibrate), rtol=1e-11, atol=1e-11)


def test_unit_vectors_read_early_give_the_truncated_inverse():
    matrix = spd(n=4) * 7
    state, _ = ThermodynamicInverse(IDEAL, UnitVectors(READ_ONCE)).prepare(Dense(matrix))
    root = matrix.diagonal().rsqrt()
    eye = torch.eye(4, dtype=torch.float64) / root  # the machine is driven by unit vectors after equilibration
    truth = relaxed(matrix, eye, 3.0, equilibrate=True) * root[:, None]
    torch.testing.assert_close(state.operator.dense(), truth, rtol=1e-11, atol=1e-11)


def test_equilibration_gives_the_machine_a_unit_diagonal():
    scales = torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    matrix = scales[:, None] * spd(n=3) * scales[None]
    state, _ = ThermodynamicSolve(IDEAL, LONG).prepare(Dense(matrix))
    held = oracle(state.programmed).conductance * state.programmed.scale
    torch.testing.assert_close(held.diagonal(), torch.ones(3, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    solution = ThermodynamicSolve(IDEAL, LONG).solve(state, noise(2, 3))
    torch.testing.assert_close(solution.value, torch.linalg.solve(matrix, noise(2, 3).mT).mT, rtol=1e-9, atol=0)


def test_equilibration_makes_bits_go_further():
    """Scales from 10⁻³ to 1 take 20 of the bits of a product's entries; a unit diagonal gives them back."""
    scales = torch.tensor([1e-3, 1.0, 1.0], dtype=torch.float64)
    matrix, rhs = scales[:, None] * spd(n=3) * scales[None], noise(5, 3)
    truth = torch.linalg.solve(matrix, rhs.mT).mT

    def error(equilibrate: bool) -> float:
        solver = ThermodynamicSolve(SIXTEEN, LONG, equilibrate=equilibrate)
        got = solver.solve(solver.prepare(Dense(matrix))[0], rhs, generator=fresh()).value
        return ((got - truth).norm() / truth.norm()).item()

    assert error(True) < 2e-3  # as in tests/zoo.py
    assert error(False) > 0.1


def test_a_warm_start_continues_where_the_last_drive_ended():
    """Twice t on one right-hand side is 2t; after a new preparation too."""
    matrix, rhs = spd(n=4), noise(3, 4)
    solver = ThermodynamicSolve(IDEAL, READ_ONCE, warm_start=True)
    state, _ = solver.prepare(Dense(matrix))
    state = solver.solve(state, rhs).state
    torch.testing.assert_close(
        solver.solve(state, rhs).value, relaxed(matrix, rhs, 6.0, equilibrate=True), rtol=1e-11, atol=1e-11
    )
    again, _ = solver.prepare(Dense(matrix), previous=state)
    torch.testing.assert_close(
        solver.solve(again, rhs).value, relaxed(matrix, rhs, 6.0, equilibrate=True), rtol=1e-11, atol=1e-11
    )
    cold = ThermodynamicSolve(IDEAL, READ_ONCE)
    assert cold.solve(cold.prepare(Dense(matrix), previous=state)[0], rhs).state is None


def test_an_end_state_of_another_shape_is_not_used():
    solver = ThermodynamicSolve(IDEAL, READ_ONCE, warm_start=True)
    state = solver.solve(solver.prepare(Dense(spd(n=4)))[0], noise(3, 4)).state
    truth = relaxed(spd(n=4), noise(2, 4), 3.0, equilibrate=True)
    torch.testing.assert_close(solver.solve(state, noise(2, 4)).value, truth, rtol=1e-11, atol=1e-11)


def test_a_warm_started_inverse_continues_too():
    matrix = spd(n=4)
    solver = ThermodynamicInverse(IDEAL, UnitVectors(READ_ONCE, warm_start=True))
    first, _ = solver.prepare(Dense(matrix))
    second, _ = solver.prepare(Dense(matrix), previous=first)
    twice = Schedule(burn_in=6 * TAU, duration=0.0, reads=1)
    long, _ = ThermodynamicInverse(IDEAL, UnitVectors(twice)).prepare(Dense(matrix))
    torch.testing.assert_close(second.operator.dense(), long.operator.dense(), rtol=1e-11, atol=1e-11)
    assert first.carry.shape == (4, 4)


def test_a_guess_is_where_the_drive_starts():
    matrix, rhs, guess = spd(n=4), noise(3, 4), noise(3, 4, seed=8)
    solver = ThermodynamicSolve(IDEAL, READ_ONCE)
    got = solver.solve(solver.prepare(Dense(matrix))[0], rhs, guess=guess).value
    torch.testing.assert_close(got, relaxed(matrix, rhs, 3.0, equilibrate=True, start=guess), rtol=1e-11, atol=1e-11)


def test_fluctuations_have_the_covariance_of_independent_reads():
    """Law (d) at ρ = 0: S is Wishart, Var S_ij = (Σ_ii Σ_jj + Σ_ij²)/k; z-scores of all entries."""
    matrix, k = spd(n=4), 2000
    readout = Fluctuations(reads=k, interval=400 * TAU, burn_in=2000 * TAU)
    state, _ = ThermodynamicInverse(NOISY, readout).prepare(Dense(matrix), generator=fresh(3))
    truth = torch.linalg.inv(matrix)
    deviation = ((truth.diagonal()[:, None] * truth.diagonal()[None] + truth.square()) / k).sqrt()
    z = (state.operator.dense() - truth) / deviation
    assert z.abs().max() < 4
    assert z.square().mean().sqrt() > 0.3  # it is noisy, as it must be


def test_a_machine_that_states_its_time_is_read_after_it():
    stated = default_schedule(SIXTEEN)
    assert (stated.burn_in, stated.duration, stated.reads) == (pytest.approx(40e-6), pytest.approx(10e-6), None)
    other = default_schedule(Machine(MachineSpec(name="slow", tau=1e-3, settle_taus=200.0)))
    assert (other.burn_in, other.duration) == (pytest.approx(0.16), pytest.approx(0.04))
    assert default_schedule(IDEAL).seconds == pytest.approx(50 * TAU)


@pytest.mark.parametrize("rows", [1, 7])
def test_work_of_a_solve_is_one_drive_a_row(rows):
    solver = ThermodynamicSolve(SIXTEEN)
    state, programmed = solver.prepare(Dense(spd(2, n=4)), generator=fresh())
    work = solver.solve(state, noise(2, rows, 4), generator=fresh()).work
    assert programmed.programmings == 2
    assert sum(job.upload_bits * count for job, count in programmed.jobs.items()) == 2 * 16 * 16
    assert {(job.cells, job.drives, job.drive_bits, job.read_bits): c for job, c in work.jobs.items()} == {(4, rows, 64, 64): 2}
    assert work.analog_seconds == pytest.approx(2 * rows * 50e-6)


def test_work_of_an_inverse_is_one_drive_a_cell():
    _, work = ThermodynamicInverse(SIXTEEN).prepare(Dense(spd(2, n=4)), generator=fresh())
    drives = sum(job.drives * count for job, count in work.jobs.items())
    assert drives == 2 * 4
    assert work.programmings == 2


def test_a_diagonal_is_inverted_digitally():
    state, work = ThermodynamicInverse(SIXTEEN).prepare(Diagonal(torch.tensor([2.0, 4.0])))
    assert torch.equal(state.operator.diagonal, torch.tensor([0.5, 0.25]))
    assert not work.jobs


def test_a_diagonal_that_is_zero_is_reported_and_not_divided_by():
    matrix = torch.zeros(2, 3, 3, dtype=torch.float64)
    matrix[1] = torch.eye(3)
    for solver in (ThermodynamicSolve(IDEAL, LONG), ThermodynamicInverse(IDEAL, UnitVectors(LONG))):
        state, _ = solver.prepare(Dense(matrix))
        assert solver.outcome(state).tolist() == [Outcome.INDEFINITE.code, Outcome.SOLVED.code]


@pytest.mark.parametrize("solver", [ThermodynamicSolve(IDEAL), ThermodynamicInverse(IDEAL)], ids=["solve", "inverse"])
def test_another_structure_is_refused(solver):
    product = Kronecker(Dense(torch.eye(2)), Dense(torch.eye(2)))
    with pytest.raises(TypeError, match=r"a machine holds Dense operators, got Kronecker; wrap the solver: Factorwise"):
        solver.prepare(product)


def test_a_matrix_larger_than_the_machine_is_refused_with_both_sizes():
    solver = ThermodynamicSolve(Machine(MACHINES["spu-2023"]))
    with pytest.raises(ValueError, match="a matrix of size 9 needs 9 cells, machine 'spu-2023' has 8"):
        solver.prepare(Dense(spd(n=9)))
