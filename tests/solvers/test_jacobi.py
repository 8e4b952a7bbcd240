"""Division by the diagonal."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators import Dense, Diagonal, Kronecker
from heatbath.solvers import Jacobi, Outcome
from heatbath.work import Work, elementwise
from tests.solvers.test_products import Unknown
from tests.solvers.truth import NoHostSync, normal, spd


def test_solution_is_the_right_hand_side_over_the_diagonal() -> None:
    product = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4, seed=1)))
    rhs = normal(2, 5, 3, 4)
    with NoHostSync():
        state, work = Jacobi().prepare(product)
        solution = Jacobi().solve(state, rhs)
    diagonal = product.dense().diagonal(dim1=-2, dim2=-1).reshape(2, 1, 3, 4)
    torch.testing.assert_close(solution.value, rhs / diagonal, rtol=1e-12, atol=0)
    assert work == Work.of(elementwise(12), 2)
    assert solution.work == Work.of(elementwise(120))


def test_diagonal_operators_are_solved_exactly() -> None:
    operator = Diagonal(normal(2, 4).abs())
    state, _ = Jacobi().prepare(operator)
    solution = Jacobi().solve(state, normal(2, 4, seed=1))
    torch.testing.assert_close(operator @ solution.value, normal(2, 4, seed=1), rtol=1e-14, atol=0)
    assert (Jacobi().outcome(state) == Outcome.SOLVED.code).all()


def test_a_diagonal_that_is_not_positive_is_indefinite_and_left_alone() -> None:
    state, _ = Jacobi().prepare(Diagonal(torch.tensor([[1.0, 2.0], [0.5, -1.0]])))
    assert state.outcome.tolist() == [Outcome.SOLVED.code, Outcome.INDEFINITE.code]
    assert state.weight.tolist() == [[1.0, 0.5], [2.0, 1.0]]


def test_operators_without_a_known_diagonal_are_refused() -> None:
    with pytest.raises(TypeError, match="the diagonal of a Unknown is not known"):
        Jacobi().prepare(Unknown(Dense(torch.eye(3))))
