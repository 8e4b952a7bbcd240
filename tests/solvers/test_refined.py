"""Refinement converges at ρ(I − PM), needs ρ < 1, and survives a machine that fails now and then."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import Fault, FaultInjector, Machine, MachineSpec, Schedule
from heatbath.machines.oracle import oracle
from heatbath.operators import Dense, Kronecker
from heatbath.solvers import Cholesky, Crossbar, Factorwise, Jacobi, Outcome, Refined, ThermodynamicSolve, product_work
from heatbath.work import Work, elementwise
from tests.solvers.truth import Approximate, NoHostSync, fresh, normal, relative, solved, spd

TAU = 1e-6
LONG = Schedule(2000 * TAU, 100 * TAU)


def rough(matrix: torch.Tensor, size: float, seed: int = 7) -> torch.Tensor:
    """An inverse that errs by E with ‖E‖₂ = size relative to it."""
    n = matrix.shape[-1]
    error = normal(*matrix.shape, seed=seed)
    error = size * error / torch.linalg.matrix_norm(error, 2)[..., None, None]
    return (torch.eye(n) + error) @ torch.linalg.inv(matrix)


@pytest.mark.parametrize("sweeps", [1, 2, 5])
def test_error_after_m_sweeps_is_the_mth_power_of_the_iteration_matrix(sweeps: int) -> None:
    matrix, rhs = spd(2, n=7), normal(2, 3, 7)
    inverse = rough(matrix, 0.3)
    solver = Refined(Approximate(inverse), sweeps)
    with NoHostSync():
        solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    truth = solved(matrix, rhs)
    iteration = torch.eye(7) - matrix @ inverse  # rows: e ← e (I − MP)
    want = truth @ -torch.linalg.matrix_power(iteration, sweeps + 1)
    torch.testing.assert_close(solution.value - truth, want, rtol=1e-7, atol=1e-13)


def test_rate_is_the_spectral_radius() -> None:
    matrix = spd(n=8, condition=4)
    matrix = matrix + matrix.diagonal().diag()  # Jacobi converges
    radius = torch.linalg.eigvals(torch.eye(8) - matrix / matrix.diagonal()).abs().max().item()
    solver = Refined(Jacobi(), sweeps=20)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], normal(5, 8))
    history = solution.notes["residuals"]
    assert history.shape == (21,)
    assert (history[20] / history[10]).item() ** 0.1 == pytest.approx(radius, rel=0.02)
    assert solution.residual is not None
    torch.testing.assert_close(solution.residual, history[-1])


def test_a_rounded_machine_converges_at_the_rate_of_what_it_holds() -> None:
    """P = (sÂ)⁻¹ of a machine of 7 bits without noise: ρ(I − PM) is known as soon as the matrix is programmed."""
    matrix = spd(n=8, condition=30)
    machine = ThermodynamicSolve(Machine(MachineSpec(name="m", tau=TAU, matrix_bits=7)), LONG, equilibrate=False)
    solver = Refined(machine, sweeps=24)
    state, _ = solver.prepare(Dense(matrix))
    held = oracle(state.inner.programmed).conductance * state.inner.programmed.scale
    radius = torch.linalg.eigvals(torch.eye(8) - torch.linalg.solve(held, matrix)).abs().max().item()
    assert 0.05 < radius < 1
    history = solver.solve(state, normal(5, 8)).notes["residuals"]
    sweeps = int((history > 1e-10).sum()) - 1  # those above rounding
    start = sweeps // 2  # by then the slowest mode is alone
    assert (history[sweeps] / history[start]).item() ** (1 / (sweeps - start)) == pytest.approx(radius, rel=0.1)


def test_residuals_are_the_true_ones() -> None:
    matrix, rhs = spd(2, n=6), normal(2, 3, 6)
    solver = Refined(Approximate(rough(matrix, 0.2)), 2)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    last = (rhs - solution.value @ matrix).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)
    assert solution.residual is not None
    torch.testing.assert_close(solution.residual, last, rtol=1e-8, atol=0)
    first = (rhs - rhs @ rough(matrix, 0.2) @ matrix).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)
    torch.testing.assert_close(solution.notes["residuals"][:, 0], first, rtol=1e-8, atol=0)


def test_where_it_diverges_the_best_iterate_is_kept_column_by_column() -> None:
    matrix = torch.eye(2, dtype=torch.float64)
    inverse = torch.diag(torch.tensor([2.5, 0.9], dtype=torch.float64))  # ρ = 1.5 for one column, 0.1 for the other
    solver = Refined(Approximate(inverse), sweeps=3, tolerance=0.5)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(solution.value, torch.diag(torch.tensor([2.5, 0.9999], dtype=torch.float64)))
    assert solution.outcome.item() == Outcome.INACCURATE.code
    assert solution.notes["residuals"][3] > solution.notes["residuals"][0]


def test_tolerance_judges_each_member() -> None:
    matrix = spd(2, n=5)
    inverse = torch.stack([rough(matrix, 0.05)[0], rough(matrix, 0.5)[1]])
    for tolerance, want in ((1e-4, [Outcome.SOLVED.code, Outcome.INACCURATE.code]), (None, [Outcome.SOLVED.code] * 2)):
        solver = Refined(Approximate(inverse), 4, tolerance)
        assert solver.solve(solver.prepare(Dense(matrix))[0], normal(2, 3, 5)).outcome.tolist() == want


def test_a_noisy_eight_bit_machine_reaches_ten_digits() -> None:
    spec = MachineSpec(name="rough", tau=TAU, noise_volts_rms=1e-3, matrix_bits=8, drive_bits=8, read_bits=8)
    matrix, rhs = spd(2, n=12), normal(2, 3, 12)
    inner = ThermodynamicSolve(Machine(spec), LONG)
    solver = Refined(inner, sweeps=10, tolerance=1e-9)
    state, work = solver.prepare(Dense(matrix), generator=fresh(1))
    solution = solver.solve(state, rhs, generator=fresh(2))
    assert relative(inner.solve(state.inner, rhs, generator=fresh(2)).value, solved(matrix, rhs)) > 1e-3
    assert relative(solution.value, solved(matrix, rhs)) < 1e-9
    assert (solution.outcome == Outcome.SOLVED.code).all()
    assert work.programmings == 2


def test_a_visit_that_fails_is_skipped() -> None:
    matrix, rhs = spd(2, n=5), normal(2, 3, 5)
    inverse = rough(matrix, 0.1)
    perfect = Refined(Approximate(inverse), 2)
    want = perfect.solve(perfect.prepare(Dense(matrix))[0], rhs).value
    for bad in ((0,), (1,), (3,)):
        solver = Refined(Approximate(inverse, bad, visits=[]), 3)
        solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
        torch.testing.assert_close(solution.value, want, rtol=1e-12, atol=1e-12)
        assert solution.outcome.tolist() == [Outcome.SOLVED.code] * 2
    lost = Refined(Approximate(inverse, (0, 1, 2, 3), visits=[]), 3)
    solution = lost.solve(lost.prepare(Dense(matrix))[0], rhs)
    assert solution.outcome.tolist() == [Outcome.LATE.code] * 2
    assert torch.equal(solution.value, torch.zeros_like(rhs))


def test_a_value_that_is_not_finite_is_told_even_if_the_inner_solver_does_not() -> None:
    solver = Refined(Approximate(torch.full((2, 2), torch.nan)), 1)
    assert solver.solve(solver.prepare(Dense(torch.eye(2)))[0], torch.ones(2)).outcome.item() == Outcome.NONFINITE.code


def test_garbage_from_a_faulty_machine_is_corrected() -> None:
    machine = Machine(FaultInjector(Machine(MachineSpec(name="m", tau=TAU)).device, Fault.GARBAGE, every=3))
    matrix, rhs = spd(n=6), normal(2, 6)
    solver = Refined(ThermodynamicSolve(machine, LONG), sweeps=3)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs, generator=fresh())
    assert relative(solution.value, solved(matrix, rhs)) < 1e-8


def test_indefinite_members_are_told_and_left_at_zero() -> None:
    matrix = torch.stack([spd(n=3), torch.diag(torch.tensor([1.0, 0.5, -0.3], dtype=torch.float64))])
    solver = Refined(Crossbar(Machine(MachineSpec(name="m", tau=TAU))))
    state, _ = solver.prepare(Dense(matrix))
    solution = solver.solve(state, normal(2, 2, 3))
    assert solution.outcome.tolist() == [Outcome.SOLVED.code, Outcome.INDEFINITE.code]
    assert torch.equal(solver.outcome(state), solution.outcome)
    assert torch.equal(solution.value[1], torch.zeros(2, 3, dtype=torch.float64))


def test_a_warm_machine_goes_on_from_the_solution_not_from_a_correction() -> None:
    inner = ThermodynamicSolve(Machine(MachineSpec(name="m", tau=TAU)), Schedule(3 * TAU, TAU), warm_start=True)
    matrix, rhs = spd(n=5), normal(2, 5)
    solver = Refined(inner, sweeps=2)
    state, _ = solver.prepare(Dense(matrix))
    solution = solver.solve(state, rhs)
    alone = inner.solve(state.inner, rhs)
    assert torch.equal(solution.state.inner.carry, alone.state.carry)
    again = solver.solve(solution.state, rhs)
    assert relative(again.value, solved(matrix, rhs)) < 0.7 * relative(solution.value, solved(matrix, rhs))
    cold = Refined(ThermodynamicSolve(inner.machine, inner.schedule), sweeps=2)
    torch.testing.assert_close(solution.value, cold.solve(cold.prepare(Dense(matrix))[0], rhs).value, rtol=1e-10, atol=1e-12)
    after, _ = solver.prepare(Dense(matrix), previous=solution.state)
    assert torch.equal(after.inner.carry, alone.state.carry)


def test_a_guess_reaches_the_first_solve() -> None:
    inner = ThermodynamicSolve(Machine(MachineSpec(name="m", tau=TAU)), Schedule(3 * TAU, TAU))
    matrix, rhs = spd(n=5), normal(2, 5)
    solver = Refined(inner, sweeps=1)
    state, _ = solver.prepare(Dense(matrix))
    assert relative(solver.solve(state, rhs, guess=solved(matrix, rhs)).value, solved(matrix, rhs)) < 1e-12


def test_kronecker_products_are_refined_as_a_whole() -> None:
    spec = MachineSpec(name="rough", tau=TAU, matrix_bits=8, drive_bits=10, read_bits=10)
    product = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4, seed=1)))
    rhs = normal(2, 5, 3, 4)
    solver = Refined(Factorwise(ThermodynamicSolve(Machine(spec), LONG)), sweeps=6)
    solution = solver.solve(solver.prepare(product)[0], rhs)
    truth = solved(product.dense(), rhs.reshape(2, 5, 12)).reshape(2, 5, 3, 4)
    assert relative(solution.value, truth) < 1e-6


def test_work_is_that_of_every_visit_and_of_every_residual() -> None:
    operator, rhs = Dense(spd(2, n=5)), normal(2, 3, 5)
    solver = Refined(Cholesky(), sweeps=4)
    state, work = solver.prepare(operator)
    assert work == Cholesky().prepare(operator)[1]
    visit = Cholesky().solve(state.inner, rhs).work
    assert solver.solve(state, rhs).work == visit * 5 + (product_work(operator, 3) + Work.of(elementwise(30, 6))) * 5


@pytest.mark.parametrize(
    "options,message",
    [
        ({"sweeps": 0}, "at least one sweep, got 0; without any use the inner solver"),
        ({"tolerance": 0.0}, "must be positive, or None, got 0.0"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Refined(Cholesky(), **options)
