"""Averages over rounded copies: first-order errors cancel, second-order ones remain."""

from __future__ import annotations

import math

import pytest
import torch

from heatbath.machines import Fault, FaultInjector, Machine, MachineSpec, Schedule
from heatbath.operators import Dense, Kronecker
from heatbath.solvers import Averaged, Factorwise, Outcome, ThermodynamicSolve
from heatbath.work import Work, elementwise
from tests.solvers.truth import NoHostSync, fresh, normal, relative, solved, spd

TAU = 1e-6
LONG = Schedule(2000 * TAU, 100 * TAU)


def rounded(bits: int, **fields: float) -> ThermodynamicSolve:
    spec = MachineSpec(name="rounded", tau=TAU, matrix_bits=bits, stochastic_rounding=True, **fields)
    return ThermodynamicSolve(Machine(spec), LONG, equilibrate=False)


def test_bias_falls_with_the_square_of_the_step() -> None:
    # Without averaging an error of one copy is of order ε; the mean over K has a bias of order ε² and a fluctuation ε/√K.
    matrix, rhs = spd(n=3, condition=3), normal(1, 3)
    truth = solved(matrix, rhs)
    single, bias, noise = [], [], []
    for bits in (5, 6, 7):
        solver = Averaged(rounded(bits), copies=2**16)
        state, _ = solver.prepare(Dense(matrix), generator=fresh(bits))
        solution = solver.solve(state, rhs)
        each = solver.inner.solve(state.inner, rhs.expand(2**16, 1, 3)).value
        single.append((each - truth).norm(dim=(-1, -2)).square().mean().sqrt().item())
        bias.append((solution.value - truth).norm().item())
        noise.append(solution.notes["standard_error"].item() * solution.value.norm().item())
    slopes = [math.log2(bias[k] / bias[k + 1]) for k in (0, 1)]
    assert all(b > 4 * n for b, n in zip(bias, noise, strict=True)), "the bias must stand out of the fluctuation"
    for k, slope in enumerate(slopes):  # the step halves but for (2ᵇ⁻¹ − 1): log₂ of 31/15 and 63/31
        exact = 2 * math.log2((2 ** (k + 5) - 1) / (2 ** (k + 4) - 1))
        uncertainty = math.hypot(noise[k] / bias[k], noise[k + 1] / bias[k + 1]) / math.log(2)
        assert abs(slope - exact) < 4 * uncertainty + 4 * single[k]  # the next order is relatively ε² smaller
    assert math.log2(single[0] / single[2]) == pytest.approx(2, abs=0.3)  # first order without averaging


def test_standard_error_is_the_fluctuation_over_the_root_of_the_copies() -> None:
    matrix, rhs = spd(n=4), normal(1, 4)
    solver = Averaged(rounded(8), copies=32)
    many = Dense(matrix.expand(400, 4, 4))
    solution = solver.solve(solver.prepare(many, generator=fresh(3))[0], rhs.expand(400, 1, 4))
    scatter = (solution.value - solution.value.mean(0)).square().sum((-1, -2)).mean().sqrt()
    stated = (solution.notes["standard_error"] * solution.value.flatten(1).norm(dim=1)).square().mean().sqrt()
    assert scatter.item() == pytest.approx(stated.item(), rel=4 / math.sqrt(2 * 400 * 4) * 2)  # χ² with ≥ 400 degrees


def test_rounding_to_nearest_makes_equal_copies() -> None:
    matrix, rhs = spd(n=4), normal(2, 4)
    nearest = ThermodynamicSolve(Machine(MachineSpec(name="nearest", tau=TAU, matrix_bits=6)), LONG)
    solver = Averaged(nearest, copies=5)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    assert solution.notes["standard_error"].item() < 1e-12
    alone = nearest.solve(nearest.prepare(Dense(matrix))[0], rhs).value
    torch.testing.assert_close(solution.value, alone, rtol=1e-12, atol=1e-12)


def test_every_copy_is_another_machine_whose_mismatch_averages_out() -> None:
    spec = MachineSpec(name="mismatched", tau=TAU, gain_mismatch=0.02)
    matrix, rhs = spd(n=4), normal(3, 4)
    inner = ThermodynamicSolve(Machine(spec), LONG)
    truth = solved(matrix, rhs)
    alone = inner.solve(inner.prepare(Dense(matrix))[0], rhs).value
    solver = Averaged(inner, copies=256)
    mean = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    assert relative(mean.value, truth) < 0.3 * relative(alone, truth)


def test_shapes_of_stacks_and_batches_come_back() -> None:
    product = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4, seed=1)))
    rhs = normal(2, 5, 3, 4)
    solver = Averaged(Factorwise(rounded(12)), copies=8)
    state, _ = solver.prepare(product, generator=fresh(1))
    with NoHostSync():
        solution = solver.solve(state, rhs, generator=fresh(2))
    assert solution.value.shape == rhs.shape
    assert solution.outcome.tolist() == [Outcome.SOLVED.code] * 2
    assert torch.equal(solver.outcome(state), solution.outcome)
    assert solution.notes["left.read_clipped"].shape == (2,)
    truth = solved(product.dense(), rhs.reshape(2, 5, 12)).reshape(2, 5, 3, 4)
    assert relative(solution.value, truth) < 0.05


def test_copies_that_fail_are_left_out() -> None:
    faulty = Machine(FaultInjector(Machine(MachineSpec(name="m", tau=TAU)).device, Fault.NONFINITE, rate=0.4))
    matrix, rhs = spd(3, n=4), normal(3, 2, 4)
    solver = Averaged(ThermodynamicSolve(faulty, LONG), copies=12)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs, generator=fresh(1))
    assert (solution.notes["copies"] < 12).all()
    assert (solution.notes["copies"] > 0).all()
    assert solution.outcome.tolist() == [Outcome.SOLVED.code] * 3
    assert relative(solution.value, solved(matrix, rhs)) < 1e-8


def test_a_member_whose_copies_all_fail_says_why() -> None:
    matrix = torch.stack([spd(n=3), torch.diag(torch.tensor([1.0, 0.5, -0.3], dtype=torch.float64))])
    solver = Averaged(ThermodynamicSolve(Machine(MachineSpec(name="m", tau=TAU))), copies=3)
    state, _ = solver.prepare(Dense(matrix))
    solution = solver.solve(state, normal(2, 3))
    assert solver.outcome(state).tolist() == [Outcome.SOLVED.code, Outcome.INDEFINITE.code]
    assert solution.outcome.tolist() == [Outcome.SOLVED.code, Outcome.INDEFINITE.code]
    assert solution.notes["copies"].tolist() == [3, 0]
    assert torch.equal(solution.value[1], torch.zeros(3, dtype=torch.float64))


def test_warm_starts_and_guesses_reach_every_copy() -> None:
    inner = ThermodynamicSolve(Machine(MachineSpec(name="m", tau=TAU)), Schedule(3 * TAU, TAU), warm_start=True)
    matrix, rhs = spd(2, n=4), normal(2, 3, 4)
    solver = Averaged(inner, copies=3)
    state, _ = solver.prepare(Dense(matrix))
    first = solver.solve(state, rhs)
    assert first.state.inner.carry.shape == (2, 3, 3, 4)
    warmed, _ = solver.prepare(Dense(matrix), previous=first.state)
    truth = solved(matrix, rhs)
    assert relative(solver.solve(warmed, rhs).value, truth) < 0.9 * relative(first.value, truth)
    assert relative(solver.solve(state, rhs, guess=truth).value, truth) < 1e-12


def test_work_is_that_of_all_copies_and_the_average() -> None:
    inner = rounded(8)
    operator, rhs = Dense(spd(2, n=5)), normal(2, 3, 5)
    solver = Averaged(inner, copies=7)
    state, work = solver.prepare(operator, generator=fresh())
    one, one_work = inner.prepare(operator, generator=fresh())
    assert work == one_work * 7
    assert solver.solve(state, rhs).work == inner.solve(one, rhs).work * 7 + Work.of(elementwise(30, 7))


def test_one_copy_is_no_ensemble() -> None:
    with pytest.raises(ValueError, match="at least two copies, got 1; with one use the inner solver"):
        Averaged(rounded(8), copies=1)
