"""Work and diagonals of structured operators, against their dense forms and closed formulas."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from heatbath.operators import BlockDiagonal, Dense, Diagonal, EigenCorrected, Kronecker, Operator
from heatbath.solvers import diagonal_of, product_work
from heatbath.solvers.products import finite_members, over, relative_residual, vectors_of
from heatbath.work import Work, elementwise, matmul
from tests.solvers.truth import HostSyncError, NoHostSync, normal, spd

A, B = Dense(spd(2, n=4)), Dense(spd(2, n=3, seed=1))
D = Diagonal(normal(2, 5, seed=2).abs())
ROTATED = EigenCorrected(torch.linalg.qr(normal(2, 3, 3)).Q, torch.linalg.qr(normal(2, 4, 4)).Q, normal(2, 3, 4).abs())
BLOCKS = BlockDiagonal(spd(2, 3, n=4), 11)


@dataclass(frozen=True, eq=False)
class Unknown(Operator):
    """A matrix-free operator that nobody registered."""

    inner: Dense

    @property
    def domain(self) -> torch.Size:
        return self.inner.domain

    @property
    def stack(self) -> torch.Size:
        return self.inner.stack

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.inner @ x

    def dense(self) -> Tensor:
        return self.inner.dense()

    def trace(self) -> Tensor:
        return self.inner.trace()

    def shift(self, amount: Tensor | float) -> Operator:
        return Unknown(self.inner.shift(amount))


@pytest.mark.parametrize(
    "operator", [A, D, Kronecker(B, A), Kronecker(B, D), Kronecker(B, A).shift(torch.tensor([0.3, 0.5])), ROTATED, BLOCKS]
)
def test_diagonal_is_that_of_the_dense_matrix(operator: Operator) -> None:
    torch.testing.assert_close(
        diagonal_of(operator).reshape(*operator.stack, -1),
        operator.dense().diagonal(dim1=-2, dim2=-1),
        rtol=1e-12,
        atol=1e-12,
    )


def test_work_of_a_product_is_that_of_its_structure() -> None:
    assert product_work(A, 7) == Work.of(matmul(7, 4, 4), 2)
    assert product_work(D, 7) == Work.of(elementwise(35), 2)
    assert product_work(Kronecker(B, A), 7) == Work.of(matmul(21, 4, 4), 2) + Work.of(matmul(28, 3, 3), 2)
    shifted = Kronecker(B, A).shift(0.1)
    assert product_work(shifted, 7) == product_work(Kronecker(B, A), 7) + Work.of(elementwise(84, 2), 2)
    assert product_work(BLOCKS, 7) == Work.of(matmul(7, 4, 4), 6)
    rotations = Work.of(matmul(28, 3, 3), 4) + Work.of(matmul(21, 4, 4), 4)
    assert product_work(ROTATED, 7) == rotations + Work.of(elementwise(84), 2)


def test_unregistered_operators_count_as_dense_and_have_no_diagonal() -> None:
    assert product_work(Unknown(A), 7) == product_work(A, 7)
    with pytest.raises(TypeError, match=r"the diagonal of a Unknown is not known; use preconditioner=None, or register"):
        diagonal_of(Unknown(A))


def test_vectors_are_counted_per_member() -> None:
    assert vectors_of(Kronecker(B, A), torch.zeros(2, 7, 5, 3, 4)) == 35
    assert vectors_of(Dense(torch.eye(4)), torch.zeros(4)) == 1


def test_relative_residual_is_joint_over_right_hand_sides() -> None:
    r, b = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    want = r.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    torch.testing.assert_close(relative_residual(r, b, 1), want)
    torch.testing.assert_close(relative_residual(r[0, 0], b[0, 0], 0), r[0, 0].norm() / b[0, 0].norm())
    assert relative_residual(torch.zeros(2, 3), torch.zeros(2, 3), 1).tolist() == [0.0, 0.0]


def test_one_bad_number_makes_its_member_not_finite() -> None:
    x = torch.zeros(3, 2, 4)
    x[1, 0, 2] = torch.inf
    assert finite_members(x, 1).tolist() == [True, False, True]
    assert over(finite_members(x, 1), x).shape == (3, 1, 1)


def test_the_judge_of_host_syncs_sees_one() -> None:
    with NoHostSync():
        assert torch.ones(2).sum().shape == ()
    with pytest.raises(HostSyncError), NoHostSync():
        bool(torch.ones(()))
