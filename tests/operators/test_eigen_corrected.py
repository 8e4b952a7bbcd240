"""Eigenvalue-corrected operators against their dense matrices."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators import EigenCorrected
from heatbath.solvers import Eigen, Outcome
from tests.laws import noise


def operator(*stack: int) -> EigenCorrected:
    left, right = (torch.linalg.qr(noise(*stack, n, n, seed=n))[0] for n in (3, 4))
    return EigenCorrected(left, right, noise(*stack, 3, 4).square())


@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
def test_products_traces_and_shifts_are_those_of_the_dense_matrix(stack):
    op = operator(*stack)
    dense, x = op.dense(), noise(*stack, 5, 3, 4)
    assert op.domain == (3, 4)
    assert op.stack == stack
    torch.testing.assert_close((op @ x).flatten(-2), x.flatten(-2) @ dense, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(op.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-12, atol=0)
    eye = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(op.shift(0.5).dense(), dense + 0.5 * eye, rtol=0, atol=1e-13)
    amount = noise(*stack, 1)[..., 0].abs()
    torch.testing.assert_close(op.shift(amount).dense(), dense + amount[..., None, None] * eye, rtol=0, atol=1e-13)


@pytest.mark.parametrize("stack", [(), (2,)])
def test_eigen_solves_it_without_a_decomposition(stack):
    op, rhs = operator(*stack).shift(0.1), noise(*stack, 5, 3, 4)
    state, work = Eigen().prepare(op)
    assert work.flops == 0
    solution = Eigen().solve(state, rhs)
    truth = torch.linalg.solve(op.dense(), rhs.flatten(-2).mT).mT.reshape(rhs.shape)
    torch.testing.assert_close(solution.value, truth, rtol=1e-10, atol=1e-12)
    assert (solution.outcome == Outcome.SOLVED.code).all()


@pytest.mark.parametrize("bad,outcome", [(-1.0, Outcome.INDEFINITE), (float("nan"), Outcome.NONFINITE)])
def test_eigen_reports_a_bad_member(bad, outcome):
    op = operator(2)
    op.values[1, 0, 0] = bad
    state, _ = Eigen().prepare(op)
    assert Eigen().outcome(state).tolist() == [Outcome.SOLVED.code, outcome.code]


def test_bases_that_do_not_fit_are_refused():
    op = operator()
    with pytest.raises(ValueError, match=r"values \[3, 4\] need bases \[3, 3\] and \[4, 4\], got \[4, 4\] and \[3, 3\]"):
        EigenCorrected(op.right, op.left, op.values)
