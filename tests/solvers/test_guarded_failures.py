"""What `Guarded` makes of failures that come from machines, iterations and residuals rather than from definiteness."""

from __future__ import annotations

import torch

from heatbath.machines import Fault, Faulty, Machine, MachineSpec, Schedule
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
)
from tests.solvers.truth import Approximate, fresh, normal, relative, solved, spd

TAU = 1e-6
LONG = Schedule(2000 * TAU, 100 * TAU)


def faulty(fault: Fault, every: int = 1) -> Faulty:
    return Faulty(Machine(MachineSpec(name="m", tau=TAU)), fault, every=every)


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


def test_garbage_passes_unless_the_residual_is_checked() -> None:
    matrix, rhs = spd(2, n=5), normal(2, 3, 5)
    for tolerance, want in ((None, Outcome.SOLVED), (0.1, Outcome.FELL_BACK)):
        solver = Guarded(ThermodynamicSolve(faulty(Fault.GARBAGE), LONG), residual_tolerance=tolerance)
        solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs, generator=fresh())
        assert solution.outcome.tolist() == [want.code] * 2
        assert (relative(solution.value, solved(matrix, rhs)) < 1e-12) == (want is Outcome.FELL_BACK)


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
    machine = Faulty(Machine(spec), Fault.LATE, every=5)
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
