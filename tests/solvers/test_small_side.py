"""`SmallSide` and `Full` beside the laws of every solver."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators import Dense, DenseRoot, Gram
from heatbath.solvers import Cholesky, Full, Outcome, Refined, SmallSide
from tests.laws import noise
from tests.zoo import spd


def test_other_operators_are_refused():
    with pytest.raises(TypeError, match="SmallSide takes Gram operators, got Dense; use its inner solver"):
        SmallSide().prepare(Dense(torch.eye(2)))


def test_a_wide_gram_without_damping_is_called_singular():
    state, _ = SmallSide().prepare(Gram(DenseRoot(noise(2, 4)), torch.tensor(0.0, dtype=torch.float64)))
    assert SmallSide().outcome(state) == Outcome.INDEFINITE.code


@pytest.mark.parametrize("m", [3, 40])
def test_the_small_side_is_what_is_factored(m):
    _, work = SmallSide().prepare(Gram(DenseRoot(noise(m, 12)), torch.tensor(0.1, dtype=torch.float64)))
    sizes = {kernel.shape for kernel in work.kernels if kernel.name == "cholesky"}
    assert sizes == {(min(m, 12),)}


def test_rounding_grows_with_the_root_over_the_damping_and_a_sweep_takes_it_back():
    """b = M x by hand, for ‖S‖²/λ = 10⁹; the identity subtracts nearly equal numbers."""
    root, damping = noise(3, 8), torch.tensor(1e-8, dtype=torch.float64)
    x, gram = noise(8, seed=1), Gram(DenseRoot(root), damping)
    b = root.T @ (root @ x) + damping * x
    errors = []
    for solver in (SmallSide(), Refined(SmallSide(), sweeps=2)):
        state, _ = solver.prepare(gram)
        residual = gram @ solver.solve(state, b).value - b
        errors.append((residual.norm() / b.norm()).item())
    assert errors[1] <= 1e-15
    assert errors[1] < errors[0]


def test_a_matrix_above_the_limit_is_refused():
    with pytest.raises(ValueError, match="a full matrix of size 5 was asked for, the limit is 4: train fewer parameters"):
        Full(Cholesky(), limit=4).prepare(Dense(spd(n=5)))


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="the limit of Full must be at least 1, got 0"):
        Full(Cholesky(), limit=0)
