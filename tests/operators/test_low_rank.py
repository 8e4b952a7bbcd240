"""Q S Qᵀ + τ(I − QQᵀ) against its dense matrix."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators import LowRank
from heatbath.solvers import diagonal_of, product_work
from heatbath.solvers.inverse import Inverse, apply_inverse, apply_inverse_to_columns
from heatbath.work import matmul
from tests.laws import noise
from tests.zoo import spd

N, R = 9, 4


def low_rank(*stack: int) -> LowRank:
    basis, _ = torch.linalg.qr(noise(*stack, N, R))
    return LowRank(basis, spd(*stack, n=R, seed=1), noise(*stack, 1, seed=2)[..., 0].abs() + 0.5)


def truth(operator: LowRank) -> torch.Tensor:
    projection = operator.basis @ operator.basis.mT
    inside = operator.basis @ operator.core @ operator.basis.mT
    return inside + operator.rest[..., None, None] * (torch.eye(N).double() - projection)


@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
def test_dense_trace_diagonal_and_shift_are_those_of_the_matrix(stack):
    operator = low_rank(*stack)
    torch.testing.assert_close(operator.dense(), truth(operator))
    torch.testing.assert_close(operator.trace(), truth(operator).diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(diagonal_of(operator), truth(operator).diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(operator.shift(0.3).dense(), truth(operator) + 0.3 * torch.eye(N).double())
    assert (operator.domain, operator.stack, operator.rank) == ((N,), stack, R)


@pytest.mark.parametrize("shape", [(2, N), (2, 5, N), (2, 3, 5, N)])
def test_a_product_is_that_of_the_matrix(shape):
    operator, x = low_rank(2), noise(*shape, seed=3)
    torch.testing.assert_close(operator @ x, (x.reshape(2, -1, N) @ truth(operator)).reshape(shape))


def test_columns_are_multiplied_where_they_lie():
    operator, x = low_rank(2), noise(2, N, 5, seed=3)
    torch.testing.assert_close(operator.columns(x), truth(operator) @ x)


def test_a_gradient_flows_through_a_product():
    operator, x = low_rank(2), noise(2, 3, N, seed=3).requires_grad_()
    (operator @ x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(2, 3, N).double() @ truth(operator))


def test_the_inverse_keeps_the_form():
    operator = low_rank(2)
    inverse = LowRank(operator.basis, torch.linalg.inv(operator.core), operator.rest.reciprocal())
    torch.testing.assert_close(inverse.dense(), torch.linalg.inv(truth(operator)))
    state, x = Inverse(inverse, torch.zeros(2, dtype=torch.int8)), noise(2, 3, N, seed=3)
    rows, columns = apply_inverse(state, x), apply_inverse_to_columns(state, x.mT)
    torch.testing.assert_close(rows.value, torch.linalg.solve(truth(operator), x.mT).mT)
    torch.testing.assert_close(columns.value, rows.value.mT)
    assert columns.work == rows.work == product_work(operator, 3)
    assert rows.work.kernels[matmul(3, N, R)] == 2  # one for each member


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a core \[\*stack, r, r\], got shapes \(9, 4\) and \(3, 3\)"):
        LowRank(noise(N, R), noise(3, 3), torch.tensor(1.0))
    with pytest.raises(ValueError, match="got shapes"):
        LowRank(noise(N), noise(3, 3), torch.tensor(1.0))
