"""Followed inverses: Cholesky from scratch, products from the last inverse, and a report where those did not arrive."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heatbath.machines import Machine, load_machine
from heatbath.operators import Dense, Diagonal, Kronecker, same_structure, select
from heatbath.solvers import Cholesky, NewtonSchulz, Outcome, ThermodynamicSolve, WarmStarted
from heatbath.solvers.inverse import Inverse
from heatbath.work import Work, elementwise, matmul
from tests.solvers.truth import NoHostSync, normal, relative, solved, spd

MACHINE = Machine(load_machine("tngd-2024"))


def inverse_of(matrix: Tensor, previous: Inverse | None = None, solver: WarmStarted | None = None) -> Inverse:
    with NoHostSync():
        return (solver or WarmStarted()).prepare(Dense(matrix), previous=previous)[0]


def held(state: Inverse) -> Tensor:
    return state.operator.dense()


def residual(state: Inverse, matrix: Tensor) -> Tensor:
    n = matrix.shape[-1]
    return (torch.eye(n, dtype=torch.float64) - held(state).double() @ matrix.double()).flatten(-2).norm(dim=-1) / n**0.5


def test_from_scratch_it_is_cholesky_with_a_measured_residual() -> None:
    matrix = spd(3, n=20, condition=1e4)
    state = inverse_of(matrix.float())
    assert torch.equal(held(state), held(Cholesky().prepare(Dense(matrix.float()))[0]))
    assert state.residual is not None
    torch.testing.assert_close(state.residual.double(), residual(state, matrix.float()), rtol=0.3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_small_move_is_followed_to_the_tolerance(dtype: torch.dtype) -> None:
    """A batch of four rows with a weight of 5 %; judged by a product in float64 and by LAPACK."""
    matrix = spd(2, n=24, condition=30)
    rows = normal(2, 4, 24, seed=2)
    moved = 0.95 * matrix + 0.05 * rows.mT @ rows / 4
    solver = WarmStarted(NewtonSchulz(warm_steps=4, tolerance=1e-2, product_dtype=dtype))
    state = inverse_of(moved.float(), inverse_of(matrix.float()), solver)
    assert (state.outcome == Outcome.SOLVED.code).all()
    assert (residual(state, moved) < 1e-2).all()
    assert relative(held(state).double(), torch.linalg.inv(moved)) < 1e-2
    rhs = normal(2, 3, 24, seed=5)
    assert relative(WarmStarted().solve(state, rhs.float()).value.double(), solved(moved, rhs)) < 1e-2


def test_a_member_that_jumped_is_reported_and_the_others_are_followed() -> None:
    matrix = spd(3, n=12, condition=20)
    moved = torch.stack([1.02 * matrix[0], 1000 * spd(n=12, condition=1000, seed=9), 0.98 * matrix[2]])
    state = inverse_of(moved, inverse_of(matrix))
    assert state.outcome.tolist() == [Outcome.SOLVED.code, Outcome.INACCURATE.code, Outcome.SOLVED.code]
    assert (residual(state, moved)[[0, 2]] < 1e-2).all()
    assert residual(state, moved)[1] > 1e-2
    assert inverse_of(moved).outcome.tolist() == [Outcome.SOLVED.code] * 3


def test_states_of_both_ways_can_be_mixed() -> None:
    matrix = spd(2, n=6)
    cold, warm = inverse_of(matrix), inverse_of(1.01 * matrix, inverse_of(matrix))
    assert same_structure(cold, warm)
    mixed = select(torch.tensor([True, False]), cold, warm)
    assert torch.equal(held(mixed), torch.stack([held(cold)[0], held(warm)[1]]))


def test_an_inverse_of_another_shape_or_kind_is_no_start() -> None:
    matrix = spd(n=6)
    for previous in (inverse_of(spd(n=5)), WarmStarted().prepare(Diagonal(torch.ones(6)))[0]):
        assert torch.equal(held(inverse_of(matrix, previous)), held(inverse_of(matrix)))


def test_diagonal_operators_are_inverted_by_division() -> None:
    state, work = WarmStarted().prepare(Diagonal(torch.tensor([2.0, 4.0])))
    assert torch.equal(held(state), torch.diag(torch.tensor([0.5, 0.25])))
    assert work.flops == 2


def test_work_is_that_of_the_way_taken() -> None:
    matrix = Dense(spd(3, n=5))
    state, cold = WarmStarted().prepare(matrix)
    measured = Work.of(matmul(5, 5, 5), 3) + Work.of(elementwise(25, 2), 3)
    assert cold == Cholesky().prepare(matrix)[1] + measured
    warm = WarmStarted().prepare(matrix, previous=state)[1]
    assert warm == NewtonSchulz(warm_steps=4).prepare(matrix, previous=state)[1]


def test_other_structures_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Cholesky takes Dense or Diagonal, got Kronecker; wrap it: Factorwise"):
        WarmStarted().prepare(Kronecker(Dense(torch.eye(2)), Dense(torch.eye(2))))


@pytest.mark.parametrize("options", [{"inner": ThermodynamicSolve(MACHINE)}, {"inner": Cholesky()}, {"cold": NewtonSchulz()}])
def test_only_what_goes_on_from_an_inverse_is_taken(options: dict) -> None:
    with pytest.raises(TypeError, match=r"of WarmStarted must be"):
        WarmStarted(**options)
