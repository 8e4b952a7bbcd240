"""Squared Frobenius norms of structured matrices against those of the matrices in full."""

import math

import pytest
import torch

from heatbath.operators import Dense, Diagonal, EigenCorrected, Kronecker, LowRank, Sketched
from heatbath.operators.sketched import random_basis


def psd(n, seed=0, stack=2):
    root = torch.randn(stack, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT


def orthogonal(n, seed=0, stack=2):
    return torch.linalg.qr(psd(n, seed, stack)).Q


@pytest.mark.parametrize(
    "operator",
    [
        Dense(psd(4)),
        Diagonal(torch.rand(2, 5, dtype=torch.float64)),
        Kronecker(Dense(psd(3)), Diagonal(torch.rand(2, 4, dtype=torch.float64))),
        Kronecker(Dense(psd(3)), Dense(psd(2))).shift(0.7),
        EigenCorrected(orthogonal(3), orthogonal(4), torch.rand(2, 3, 4, dtype=torch.float64)),
        LowRank(orthogonal(6)[..., :2], psd(2), torch.rand(2, dtype=torch.float64)),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_square_norm_is_that_of_the_matrix_in_full(operator):
    torch.testing.assert_close(operator.square_norm(), operator.dense().square().sum((-2, -1)))


def test_square_norm_of_a_sketch_is_unbiased_and_exact_for_the_shift():
    """Matrices of one spectrum in bases drawn uniformly: the mean of the estimates within four of its standard errors."""
    n, rank, count = 24, 8, 400
    values = 0.7 ** torch.arange(n, dtype=torch.float64)
    gaussian = torch.randn(count, n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    basis = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    matrices = basis @ (values[:, None] * basis.mT)
    omega = random_basis(n, rank, torch.float64, torch.device("cpu"))
    sketch = Sketched(matrices @ omega, values.sum().expand(count), torch.zeros(count, dtype=torch.float64))
    estimates = sketch.square_norm()
    assert abs(estimates.mean() - values.square().sum()) < 4 * estimates.std() / math.sqrt(count)
    shifted = sketch.shift(0.5).square_norm() - estimates
    torch.testing.assert_close(shifted, torch.full_like(shifted, float(values.sum()) + 0.25 * n))
