from __future__ import annotations

import pytest
import torch

from heatbath.operators import Dense, Diagonal
from heatbath.solvers import Outcome
from heatbath.solvers.inverse import Inverse, apply_inverse, apply_inverse_to_columns, invert_diagonal
from heatbath.work import Work, elementwise, matmul
from tests.laws import noise
from tests.zoo import spd


def test_a_diagonal_is_inverted_number_by_number():
    diagonal = torch.tensor([[1.0, 2.0], [4.0, 0.5]])
    state, work = invert_diagonal(Diagonal(diagonal))
    assert torch.equal(state.operator.diagonal, 1 / diagonal)
    assert work == Work.of(elementwise(2), 2)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_diagonal_that_is_not_positive_is_reported_member_by_member(value):
    state, _ = invert_diagonal(Diagonal(torch.tensor([[1.0, 1.0], [1.0, value]])))
    assert state.outcome.tolist() == [Outcome.SOLVED.code, Outcome.INDEFINITE.code]


def test_applying_an_inverse_is_one_product_per_side():
    matrix, rhs = spd(2, n=3), noise(2, 5, 3)
    solution = apply_inverse(Inverse(Dense(matrix), torch.zeros(2, dtype=torch.int8)), rhs)
    torch.testing.assert_close(solution.value, rhs @ matrix, rtol=1e-14, atol=1e-14)
    assert solution.work == Work.of(matmul(5, 3, 3), 2)


def test_applying_a_diagonal_inverse_is_elementwise():
    solution = apply_inverse(Inverse(Diagonal(torch.full((2, 3), 2.0)), torch.zeros(2, dtype=torch.int8)), torch.ones(2, 5, 3))
    assert torch.equal(solution.value, torch.full((2, 5, 3), 2.0))
    assert solution.work == Work.of(elementwise(15), 2)


@pytest.mark.parametrize("columns", [3, 65])  # with and without rows that are filled up
def test_columns_are_solved_as_rows_are_by_an_inverse_that_is_not_quite_symmetric(columns):
    state = Inverse(Dense(noise(2, 5, 5, seed=1)), torch.zeros(2, dtype=torch.int8))
    b = noise(2, 5, columns, seed=2)
    by_rows = apply_inverse(state, b.mT).value.mT
    torch.testing.assert_close(apply_inverse_to_columns(state, b).value, by_rows, rtol=1e-12, atol=1e-12)
