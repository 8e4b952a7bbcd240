from __future__ import annotations

import pytest
import torch

from heatbath.operators import Dense, Kronecker
from heatbath.solvers import Cholesky, Outcome
from heatbath.work import Work, cholesky, inverse
from tests.zoo import spd


def test_the_state_is_the_inverse():
    matrix = spd(2, n=5, condition=1e3)
    state, work = Cholesky().prepare(Dense(matrix))
    torch.testing.assert_close(state.operator.dense(), torch.linalg.inv(matrix), rtol=1e-11, atol=1e-11)
    assert work == Work.of(cholesky(5), 2) + Work.of(inverse(5), 2)


def test_double_inverts_what_float32_cannot():
    """At κ = 10⁶ float32 loses κ·ε = 6 % of the inverse, float64 nothing that float32 could hold."""
    matrix = spd(n=8, condition=1e6, dtype=torch.float32)
    truth = torch.linalg.inv(matrix.double())

    def error(double: bool) -> float:
        got = Cholesky(double=double).prepare(Dense(matrix))[0].operator.dense()
        assert got.dtype == torch.float32
        return ((got.double() - truth).norm() / truth.norm()).item()

    assert error(True) <= torch.finfo(torch.float32).eps
    assert error(False) > 1e-4


def test_a_singular_matrix_is_an_outcome_and_no_exception():
    x = torch.ones(1, 3, dtype=torch.float64)
    state, _ = Cholesky().prepare(Dense(torch.stack((x.mT @ x, torch.eye(3, dtype=torch.float64)))))
    assert Cholesky().outcome(state).tolist() == [Outcome.INDEFINITE.code, Outcome.SOLVED.code]


def test_another_structure_is_refused():
    product = Kronecker(Dense(torch.eye(2)), Dense(torch.eye(2)))
    with pytest.raises(TypeError, match=r"Cholesky takes Dense or Diagonal, got Kronecker; wrap it: Factorwise\(Cholesky"):
        Cholesky().prepare(product)
