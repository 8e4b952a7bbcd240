"""What `Guarded` makes of failures that come from machines, iterations and residuals rather than from definiteness."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from heatbath.machines import Emulator, Fault, FaultInjector, Machine, MachineSpec, Schedule
from heatbath.operators import Dense, Kronecker
from heatbath.solvers import (
    ConjugateGradient,
    Factorwise,
    Guarded,
    NewtonSchulz,
    Outcome,
    Refined,
    ThermodynamicInverse,
    ThermodynamicSolve,
    UnitVectors,
    clips_of,
)
from heatbath.solvers.products import better_than_nothing
from heatbath.work import Work, cholesky, elementwise, inverse, matmul
from tests.solvers.truth import Approximate, fresh, normal, relative, solved, spd

TAU = 1e-6
LONG = Schedule(2000 * TAU, 100 * TAU)


def faulty(fault: Fault, every: int = 1) -> Machine:
    return Machine(FaultInjector(Machine(MachineSpec(name="m", tau=TAU)).device, fault, every=every))


def test_a_late_machine_is_replaced_by_the_fallback() -> None:
    matrix, rhs = spd(2, n=5), normal(2, 3, 5)
    solver = Guarded(ThermodynamicSolve(faulty(Fault.LATE), LONG))
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    assert solution.outcome.tolist() == [Outcome.FELL_BACK.code] * 2
    assert relative(solution.value, solved(matrix, rhs)) < 1e-12


def test_lateness_is_said_by_the_solvers_themselves() -> None:
    matrix = Dense(spd(2, n=3))
    solve = ThermodynamicSolve(faulty(Fault.LATE), LONG)
    assert solve.solve(solve.prepare(matrix)[0], normal(2, 3)).outcome.tolist() == [Outcome.LATE.code] * 2
    inverse = ThermodynamicInverse(faulty(Fault.LATE), UnitVectors(LONG))
    assert inverse.prepare(matrix)[0].outcome.tolist() == [Outcome.LATE.code] * 2


def test_garbage_passes_only_where_no_check_is_asked_for() -> None:
    """By default a machine's answer must be better than nothing: random numbers are so by luck, here 1 time in 100."""
    matrix, rhs = spd(200, n=5), normal(200, 3, 5)
    for tolerance, passed in ((math.inf, 1.0), (None, 0.05), (0.1, 0.0)):
        solver = Guarded(ThermodynamicSolve(faulty(Fault.GARBAGE), LONG), residual_tolerance=tolerance, overshoot=None)
        solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs, generator=fresh(1))
        fell_back = solution.outcome == Outcome.FELL_BACK.code
        assert (~fell_back).double().mean() <= passed
        assert (tolerance == math.inf) == (not fell_back.any())
        exact = (solution.value - solved(matrix, rhs)).flatten(1).norm(dim=1) < 1e-12
        assert torch.equal(exact, fell_back)


def test_what_is_short_of_the_solution_is_better_than_nothing_and_zero_is_not() -> None:
    """c M⁻¹b is nearer to M⁻¹b than 0 is, in the norm of M, if and only if 0 < c < 2."""
    matrix, rhs = spd(n=5), normal(3, 5)
    answer, factors = solved(matrix, rhs), torch.tensor([-0.1, 0.0, 0.01, 1.0, 1.99, 2.01], dtype=torch.float64)
    x = factors[:, None, None] * answer
    want = torch.tensor([False, False, True, True, True, False])
    for size in (1e-200, 1.0, 1e200):
        b = (rhs * size).expand_as(x)
        assert torch.equal(better_than_nothing(x * size, b, b - x * size @ matrix, 1), want)
    zeros = torch.zeros_like(rhs)
    assert better_than_nothing(zeros, zeros, zeros, 0)
    assert not better_than_nothing(rhs, zeros, -rhs @ matrix, 0)


def test_a_check_is_counted_as_a_product() -> None:
    matrix, rhs = Dense(spd(2, n=5)), normal(2, 3, 5)
    machine = ThermodynamicSolve(Machine(MachineSpec(name="m", tau=TAU)), LONG)
    works = []
    for tolerance in (math.inf, None, 0.5):
        solver = Guarded(machine, residual_tolerance=tolerance)
        works.append(solver.solve(solver.prepare(matrix)[0], rhs).work)
    check = Work.of(matmul(3, 5, 5), 2) + Work.of(elementwise(30, 4))
    assert works[1] == works[2] == works[0] + check


def test_what_the_fallback_cannot_do_either_is_inaccurate_or_not_finite() -> None:
    matrix, rhs = spd(2, n=4), normal(2, 3, 4)
    useless = ConjugateGradient(1, 1e-12)
    wrong, lost = Approximate(torch.eye(4).double().expand(2, 4, 4)), Approximate(torch.full((2, 4, 4), torch.nan).double())
    for inner, tolerance, want in (
        (wrong, 1e-3, Outcome.INACCURATE),
        (lost, 1e-3, Outcome.NONFINITE),
        (lost, None, Outcome.NONFINITE),
    ):
        solver = Guarded(inner, fallback=useless, residual_tolerance=tolerance)
        solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
        assert solution.outcome.tolist() == [want.code] * 2
        assert solution.outcome.dtype == torch.int8


def test_an_iteration_that_stops_short_falls_back_for_its_member_only() -> None:
    matrix = torch.stack([spd(n=6, condition=2), spd(n=6, condition=1e6)])
    rhs = normal(2, 3, 6)
    solver = Guarded(NewtonSchulz(8), retries=0)
    state, _ = solver.prepare(Dense(matrix))
    assert solver.outcome(state).tolist() == [Outcome.SOLVED.code, Outcome.FELL_BACK.code]
    assert relative(solver.solve(state, rhs).value, solved(matrix, rhs)) < 1e-8
    krylov = Guarded(ConjugateGradient(4, 1e-8))
    solution = krylov.solve(krylov.prepare(Dense(matrix))[0], rhs)
    assert solution.outcome[1].item() == Outcome.FELL_BACK.code


def test_the_inner_residual_is_passed_on() -> None:
    matrix, rhs = Dense(spd(2, n=5)), normal(2, 3, 5)
    inner = Refined(ThermodynamicSolve(Machine(MachineSpec(name="m", tau=TAU)), LONG), 1)
    solver = Guarded(inner)
    solution = solver.solve(solver.prepare(matrix)[0], rhs)
    want = inner.solve(inner.prepare(matrix)[0], rhs).residual
    assert torch.equal(solution.residual, want)


def test_the_whole_tower_composes() -> None:
    spec = MachineSpec(name="rough", tau=TAU, matrix_bits=8, drive_bits=8, read_bits=8, noise_volts_rms=1e-3)
    machine = Machine(FaultInjector(Emulator(spec), Fault.LATE, every=5))
    product = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4, seed=1)))
    rhs = normal(2, 5, 3, 4)
    solver = Factorwise(Guarded(Refined(ThermodynamicSolve(machine, LONG, warm_start=True), sweeps=6)))
    state, _ = solver.prepare(product, generator=fresh(1))
    truth = solved(product.dense(), rhs.reshape(2, 5, 12)).reshape(2, 5, 3, 4)
    for seed in (2, 3):
        solution = solver.solve(state, rhs, generator=fresh(seed))
        assert relative(solution.value, truth) < 1e-4
        assert solution.outcome.tolist() == [Outcome.SOLVED.code] * 2
        state = solution.state


@pytest.mark.parametrize("fault", [Fault.LATE, Fault.NONFINITE])
def test_an_accident_while_preparing_is_tried_again_without_more_damping(fault: Fault) -> None:
    """Every second call fails: the second preparation is the one that is repeated, for the same matrix."""
    matrix, rhs = spd(2, n=5), normal(2, 3, 5)
    solver = Guarded(ThermodynamicInverse(faulty(fault, every=2), UnitVectors(LONG)))
    good, once = solver.prepare(Dense(matrix))
    again, twice = solver.prepare(Dense(matrix))
    assert solver.outcome(good).tolist() == [Outcome.SOLVED.code] * 2
    assert solver.outcome(again).tolist() == [Outcome.RETRIED.code] * 2
    assert not again.rise.any()
    assert relative(solver.solve(again, rhs).value, solved(matrix, rhs)) < 1e-9
    assert twice.programmings == 2 * once.programmings


def test_garbage_while_preparing_is_tried_again_without_more_damping() -> None:
    """Every second run fails; an inverse takes one run, and the power iteration shows that it is none."""
    matrix = spd(2, n=5)
    solver = Guarded(ThermodynamicInverse(faulty(Fault.GARBAGE, every=2), UnitVectors(LONG)))
    for outcome in (Outcome.SOLVED, Outcome.RETRIED):
        state, _ = solver.prepare(Dense(matrix), generator=fresh(2))
        assert solver.outcome(state).tolist() == [outcome.code] * 2
        assert not state.rise.any()


@pytest.mark.parametrize("fault,tolerance", [(Fault.LATE, None), (Fault.NONFINITE, None), (Fault.GARBAGE, 0.1)])
def test_a_machine_that_failed_once_is_asked_once_more(fault: Fault, tolerance: float | None) -> None:
    matrix, rhs = spd(2, n=5), normal(2, 3, 5)
    solver = Guarded(ThermodynamicSolve(faulty(fault, every=2), LONG), residual_tolerance=tolerance, overshoot=None)
    state, _ = solver.prepare(Dense(matrix))
    first, second = (solver.solve(state, rhs, generator=fresh(k)) for k in range(2))
    assert first.outcome.tolist() == [Outcome.SOLVED.code] * 2
    assert second.outcome.tolist() == [Outcome.RETRIED.code] * 2
    assert sum(second.work.jobs.values()) == 2 * sum(first.work.jobs.values())
    assert "fallbacks" not in second.notes
    assert relative(second.value, solved(matrix, rhs)) < 1e-9


def test_only_the_failed_member_is_prepared_again() -> None:
    """Members that were good keep what the machine held for them; write noise would show another matrix."""
    spec = MachineSpec(name="m", tau=TAU, write_noise=1e-3)
    machine = Machine(FaultInjector(Emulator(spec), Fault.LATE, rate=0.5))
    matrix = Dense(spd(40, n=3))
    inner = ThermodynamicInverse(machine, UnitVectors(LONG))
    alone, _ = inner.prepare(matrix, generator=fresh(1))
    guarded, _ = Guarded(inner, retries=20).prepare(matrix, generator=fresh(1))
    first = alone.outcome == Outcome.SOLVED.code
    assert 0 < int(first.sum()) < 40
    assert torch.equal(guarded.inner.operator.matrix[first], alone.operator.matrix[first])
    assert torch.equal(guarded.outcome == Outcome.RETRIED.code, ~first)


def test_the_residual_of_a_re_damped_matrix_is_of_what_was_asked() -> None:
    """Rounding to 5 bits at κ = 1000: what is solved is M + δI, and M + δI is what the residual is measured against."""
    matrix, rhs = spd(n=6, condition=1000.0), normal(3, 6)
    spec = MachineSpec(name="m", tau=TAU, matrix_bits=5)
    solver = Guarded(ThermodynamicSolve(Machine(spec), LONG), residual_tolerance=0.5)
    state, _ = solver.prepare(Dense(matrix))
    assert state.outcome == Outcome.REDAMPED.code
    solution = solver.solve(state, rhs)
    assert solution.outcome == Outcome.REDAMPED.code
    asked = rhs - solution.value @ (matrix + state.rise * torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(solution.residual, asked.norm() / rhs.norm(), rtol=1e-9, atol=0)
    assert solution.residual < 0.5 < (rhs - solution.value @ matrix).norm() / rhs.norm()


def test_a_fallback_is_prepared_once_and_counted() -> None:
    matrix, rhs = spd(2, n=5), normal(2, 3, 5)
    solver = Guarded(ThermodynamicInverse(faulty(Fault.GARBAGE), UnitVectors(LONG)), residual_tolerance=0.1, overshoot=None)
    state, _ = solver.prepare(Dense(matrix), generator=fresh())
    first = solver.solve(state, rhs)
    second = solver.solve(first.state, rhs)
    assert first.notes["fallbacks"].tolist() == second.notes["fallbacks"].tolist() == [True, True]
    assert first.work == second.work + Work.of(cholesky(5), 2) + Work.of(inverse(5), 2)
    assert torch.equal(first.value, second.value)


def test_what_was_clipped_while_preparing_is_counted() -> None:
    machine = Machine(MachineSpec(name="m", tau=TAU, matrix_percentile=96.0))
    matrix = Dense(torch.diag(torch.tensor([50.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)))
    held, _ = ThermodynamicSolve(machine, LONG, equilibrate=False).prepare(matrix)
    inverted, _ = Guarded(ThermodynamicInverse(machine, UnitVectors(LONG), equilibrate=False)).prepare(matrix)
    assert clips_of(held) == clips_of(inverted) == 1
    assert clips_of(Guarded(NewtonSchulz()).prepare(matrix)[0]) is None


@pytest.mark.parametrize("size", [1e-30, 1e-24, 1e-20, 1e20, 1e30])
def test_garbage_is_told_at_every_scale_of_float32(size: float) -> None:
    """Squares of 1e-24 are 0 in float32: a residual that is taken without scaling is 0 for any answer."""
    matrix, rhs = spd(2, n=5).float(), normal(2, 3, 5).float() * size
    garbage = Approximate(torch.linalg.inv(spd(2, n=5, seed=3).float()) * 5)
    for solver, want in (
        (Guarded(garbage, residual_tolerance=0.1), Outcome.FELL_BACK),
        (Refined(garbage, 1, tolerance=0.1), Outcome.INACCURATE),
    ):
        solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
        assert solution.outcome.tolist() == [want.code] * 2
        if want is Outcome.FELL_BACK:
            assert relative(solution.value / size, solved(matrix, rhs / size)) < 1e-4


@pytest.mark.parametrize("make", [Guarded, Refined, lambda inner: ConjugateGradient(preconditioner=inner)])
@pytest.mark.parametrize("inner", [NewtonSchulz, "cholesky", None])
def test_what_is_no_solver_is_refused_at_construction(make: Callable[..., object], inner: object) -> None:
    if make not in (Guarded, Refined) and inner is None:
        return
    with pytest.raises(TypeError, match="must be a solver"):
        make(inner)
