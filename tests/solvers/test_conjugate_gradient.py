"""Conjugate gradients against LAPACK, SciPy and the theory of Krylov spaces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.operators import Dense, Diagonal, Kronecker, Operator
from heatbath.solvers import Cholesky, ConjugateGradient, Jacobi, Outcome, Solution, ThermodynamicSolve, product_work
from heatbath.solvers.conjugate_gradient import PASSES
from heatbath.work import Work, elementwise
from tests.solvers.test_products import Unknown
from tests.solvers.truth import NoHostSync, fresh, normal, relative, solved, spd, with_spectrum

TAU = 1e-6


def run(solver: ConjugateGradient, operator: Operator, rhs: Tensor, guess: Tensor | None = None) -> Solution:
    state, _ = solver.prepare(operator)
    with NoHostSync():
        return solver.solve(state, rhs, guess=guess)


def test_a_stack_of_right_hand_sides_is_solved() -> None:
    matrix, rhs = spd(3, n=8), normal(3, 5, 8)
    solution = run(ConjugateGradient(tolerance=1e-13), Dense(matrix), rhs)
    assert relative(solution.value, solved(matrix, rhs)) < 1e-12
    assert (solution.outcome == Outcome.SOLVED.code).all()
    assert solution.outcome.dtype == torch.int8
    assert solution.residual is not None
    assert (solution.residual <= 1e-13).all()


def test_matrix_free_operators_need_no_registration() -> None:
    matrix, rhs = spd(n=6), normal(2, 6)
    assert relative(run(ConjugateGradient(tolerance=1e-13), Unknown(Dense(matrix)), rhs).value, solved(matrix, rhs)) < 1e-12


def test_an_exactly_damped_kronecker_product_is_solved_in_its_own_shape() -> None:
    product = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4, seed=1))).shift(torch.tensor([0.1, 0.2]))
    rhs = normal(2, 5, 3, 4)
    solution = run(ConjugateGradient(tolerance=1e-13), product, rhs)
    truth = solved(product.dense(), rhs.reshape(2, 5, 12)).reshape(2, 5, 3, 4)
    assert relative(solution.value, truth) < 1e-11


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_as_many_steps_as_distinct_eigenvalues_suffice(distinct: int) -> None:
    values = torch.linspace(1, 3, distinct, dtype=torch.float64).repeat(12 // distinct + 1)[:12]
    matrix, rhs = with_spectrum(values), normal(12)
    assert relative(run(ConjugateGradient(distinct, 0.0), Dense(matrix), rhs).value, solved(matrix, rhs[None])[0]) < 1e-12
    if distinct > 1:
        short = run(ConjugateGradient(distinct - 1, 0.0), Dense(matrix), rhs)
        assert relative(short.value, solved(matrix, rhs[None])[0]) > 1e-3


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_iterates_are_those_of_scipy(steps: int) -> None:
    matrix, rhs = spd(n=10, condition=50), normal(10)
    iterates: list[np.ndarray] = []
    scipy.sparse.linalg.cg(matrix.numpy(), rhs.numpy(), maxiter=steps, rtol=0, callback=lambda x: iterates.append(x.copy()))
    torch.testing.assert_close(
        run(ConjugateGradient(steps, 0.0), Dense(matrix), rhs).value, torch.from_numpy(iterates[-1]), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("steps", [2, 5, 10, 15])
def test_error_stays_below_the_chebyshev_bound(steps: int) -> None:
    condition = 100.0
    matrix, rhs = spd(n=40, condition=condition), normal(40)
    truth = solved(matrix, rhs[None])[0]
    error = run(ConjugateGradient(steps, 0.0), Dense(matrix), rhs).value - truth
    energy = lambda v: math.sqrt(v @ matrix @ v)  # noqa: E731
    rate = (math.sqrt(condition) - 1) / (math.sqrt(condition) + 1)
    assert energy(error) <= 2 * rate**steps * energy(truth)


def test_columns_do_not_see_one_another_and_freeze_on_their_own() -> None:
    matrix = spd(n=9, condition=30)
    rhs = torch.stack([matrix @ torch.linalg.eigh(matrix).eigenvectors[:, 0], normal(9)])  # the first takes one step
    solver = ConjugateGradient(6, 1e-8)
    together = run(solver, Dense(matrix), rhs)
    alone = [run(solver, Dense(matrix), row) for row in rhs]
    torch.testing.assert_close(together.value, torch.stack([s.value for s in alone]), rtol=1e-12, atol=1e-12)
    assert [s.notes["steps"].item() for s in alone] == [1, 6]
    assert together.notes["steps"].item() == 6
    frozen = run(ConjugateGradient(1, 1e-8), Dense(matrix), rhs[0])
    assert torch.equal(alone[0].value, frozen.value)


def test_a_guess_is_where_it_starts() -> None:
    matrix, rhs = spd(2, n=8, condition=100), normal(2, 3, 8)
    truth = solved(matrix, rhs)
    solver = ConjugateGradient(3, 1e-10)
    exact = run(solver, Dense(matrix), rhs, guess=truth)
    assert exact.notes["steps"].tolist() == [0, 0]
    assert torch.equal(exact.value, truth)
    near, cold = run(solver, Dense(matrix), rhs, guess=truth + 1e-3 * normal(2, 3, 8, seed=4)), run(solver, Dense(matrix), rhs)
    assert relative(near.value, truth) < 0.01 * relative(cold.value, truth)
    assert (near.work + cold.work * -1).flops == product_work(Dense(matrix), 3).flops


def test_a_zero_right_hand_side_is_solved_by_zero() -> None:
    solution = run(ConjugateGradient(), Dense(spd(n=4)), torch.zeros(2, 4, dtype=torch.float64))
    assert torch.equal(solution.value, torch.zeros(2, 4, dtype=torch.float64))
    assert solution.outcome.item() == Outcome.SOLVED.code


def test_jacobi_undoes_bad_units() -> None:
    units = torch.logspace(-3, 3, 12, dtype=torch.float64)
    matrix = units[:, None] * (spd(n=12, condition=3) + torch.eye(12)) * units
    rhs = units * normal(12)
    plain, scaled = (run(ConjugateGradient(12, 1e-10, p), Dense(matrix), rhs) for p in (None, Jacobi()))
    assert relative(scaled.value * units, solved(matrix, rhs[None])[0] * units) < 1e-8
    assert plain.outcome.item() == Outcome.INACCURATE.code


def test_an_exact_preconditioner_needs_one_step() -> None:
    matrix, rhs = spd(2, n=8, condition=1000), normal(2, 3, 8)
    solution = run(ConjugateGradient(1, 1e-9, Cholesky()), Dense(matrix), rhs)
    assert relative(solution.value, solved(matrix, rhs)) < 1e-10
    assert (solution.outcome == Outcome.SOLVED.code).all()


def test_a_noisy_machine_is_a_good_preconditioner() -> None:
    spec = MachineSpec(name="rough", tau=TAU, noise_volts_rms=1e-2, matrix_bits=8, drive_bits=8, read_bits=8)
    rough = ThermodynamicSolve(Machine(spec), Schedule(2000 * TAU, 100 * TAU), warm_start=True)
    matrix, rhs = spd(2, n=16, condition=100), normal(2, 3, 16)
    solver = ConjugateGradient(8, 1e-12, rough)
    state, work = solver.prepare(Dense(matrix), generator=fresh(1))
    solution = solver.solve(state, rhs, generator=fresh(2))
    plain = run(ConjugateGradient(8, 1e-12), Dense(matrix), rhs)
    alone = rough.solve(state.preconditioner, rhs, generator=fresh(2))
    truth = solved(matrix, rhs)
    assert relative(solution.value, truth) < 1e-3 * min(relative(plain.value, truth), relative(alone.value, truth))
    assert work.programmings == 2
    assert sum(count * job.drives for job, count in solution.work.jobs.items()) == 8 * 2 * 3
    assert solution.state is not None
    assert solution.state.preconditioner.carry is not None
    assert "preconditioner.read_clipped" in solution.notes


def test_failures_are_told_apart_member_by_member() -> None:
    bad = with_spectrum(torch.tensor([3.0, 2.0, 1.0, -0.5]))
    infinite = spd(n=4) * torch.nan
    hard = with_spectrum(torch.tensor([1.0, 1e-2, 1e-4, 1e-6]))
    matrix = torch.stack([spd(n=4), bad, infinite, hard])
    solver = ConjugateGradient(4, 1e-12)
    state, _ = solver.prepare(Dense(matrix))
    solution = solver.solve(state, normal(1, 3, 4).expand(4, 3, 4))
    want = [Outcome.SOLVED, Outcome.INDEFINITE, Outcome.NONFINITE, Outcome.INACCURATE]
    assert solution.outcome.tolist() == [o.code for o in want]
    assert relative(solution.value[0], solved(matrix[0], normal(1, 3, 4)[0])) < 1e-11


def test_a_negative_trace_is_seen_before_any_step() -> None:
    solver = ConjugateGradient()
    state, work = solver.prepare(Dense(torch.stack([torch.eye(3), -torch.eye(3)])))
    assert solver.outcome(state).tolist() == [Outcome.SOLVED.code, Outcome.INDEFINITE.code]
    assert work == Work.of(elementwise(3), 2)


def test_work_is_products_and_passes_of_every_step() -> None:
    operator, rhs = Dense(spd(2, n=8)), normal(2, 3, 8)
    step = product_work(operator, 3) + Work.of(elementwise(48, PASSES))
    assert run(ConjugateGradient(7), operator, rhs).work == step * 7
    jacobi = run(ConjugateGradient(7, preconditioner=Jacobi()), operator, rhs).work
    assert jacobi == step * 7 + Work.of(elementwise(48)) * 7


def test_previous_state_reaches_the_preconditioner() -> None:
    spec = MachineSpec(name="ideal", tau=TAU)
    solver = ConjugateGradient(2, preconditioner=ThermodynamicSolve(Machine(spec), warm_start=True))
    operator, rhs = Dense(spd(n=4)), normal(3, 4)
    state, _ = solver.prepare(operator)
    after = solver.solve(state, rhs).state
    state, _ = solver.prepare(operator, previous=after)
    assert torch.equal(state.preconditioner.carry, after.preconditioner.carry)


@pytest.mark.parametrize("iterations,tolerance", [(0, 1e-6), (5, -1.0)])
def test_bad_parameters_are_refused(iterations: int, tolerance: float) -> None:
    with pytest.raises(ValueError, match=f"iterations >= 1 and tolerance >= 0, got {iterations} and {tolerance}"):
        ConjugateGradient(iterations, tolerance)


def test_a_preconditioner_that_cannot_take_the_operator_says_so() -> None:
    with pytest.raises(TypeError, match="Cholesky takes Dense or Diagonal, got Kronecker"):
        ConjugateGradient(preconditioner=Cholesky()).prepare(Kronecker(Diagonal(torch.ones(2)), Diagonal(torch.ones(2))))


@pytest.mark.parametrize("size", [1e-30, 1e-24, 1e24, 1e30])
def test_the_scale_of_right_hand_sides_does_not_matter(size: float) -> None:
    matrix, rhs = spd(2, n=6).float(), normal(2, 3, 6).float()
    guess = 0.9 * solved(matrix, rhs)
    for start in (None, guess):
        solution = run(ConjugateGradient(), Dense(matrix), rhs * size, None if start is None else start * size)
        assert solution.outcome.tolist() == [Outcome.SOLVED.code] * 2
        assert relative(solution.value / size, solved(matrix, rhs)) < 1e-4


@pytest.mark.parametrize("stack", [(), (2,)])
def test_an_empty_batch_is_solved(stack: tuple[int, ...]) -> None:
    solution = run(ConjugateGradient(), Dense(spd(*stack, n=3)), normal(*stack, 0, 3))
    assert solution.value.shape == (*stack, 0, 3)
    assert (solution.outcome == Outcome.SOLVED.code).all()
