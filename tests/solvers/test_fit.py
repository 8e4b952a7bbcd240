"""Random vectors tell whether an inverse still fits; judged by ‖I − XM‖_F/√n, formed in full."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heatbath.operators import BlockDiagonal, Dense, Diagonal, Kronecker, Operator
from heatbath.solvers import Cholesky, Factorwise, Guarded, NewtonSchulz, ThermodynamicSolve, misfit
from heatbath.solvers.fit import PROBES
from tests.solvers.truth import NoHostSync, fresh, spd, with_spectrum
from tests.zoo import IDEAL


def size_of(residual: Tensor) -> Tensor:
    return residual.flatten(-2).norm(dim=-1) / residual.shape[-1] ** 0.5


def moved_by(matrix: Tensor, seed: int = 4) -> Tensor:
    return matrix + 0.3 * spd(n=matrix.shape[-1], condition=3, seed=seed)


def true_misfit(old: Operator, new: Operator) -> Tensor:
    eye = torch.eye(old.size, dtype=torch.float64)
    return size_of(eye - torch.linalg.inv(old.dense()) @ new.dense())


def test_the_square_is_unbiased_with_the_predicted_spread() -> None:
    """z-scores of mean and variance of 4,000 estimates: Var = 2‖RRᵀ‖_F²/(k n²) each."""
    old, new = spd(n=10, condition=5), moved_by(spd(n=10, condition=5))
    count = 4000
    state, _ = Cholesky().prepare(Dense(old.expand(count, 10, 10)))
    squares = misfit(state, Dense(new.expand(count, 10, 10)), fresh(1)).square()
    residual = torch.eye(10, dtype=torch.float64) - torch.linalg.inv(old) @ new
    spread = math.sqrt(2 * (residual @ residual.mT).square().sum().item() / PROBES) / 10
    assert abs(squares.mean() - size_of(residual).square()) < 4 * spread / math.sqrt(count)
    assert spread < math.sqrt(2 / PROBES) * size_of(residual).square()
    assert squares.std().item() == pytest.approx(spread, rel=0.15)  # 4/√(2·4000), some more for tails of χ²


def test_an_inverse_of_the_matrix_itself_fits() -> None:
    matrix = Dense(spd(3, n=8))
    with NoHostSync():
        found = misfit(Cholesky().prepare(matrix)[0], matrix, fresh())
    assert found.shape == (3,)
    assert (found < 1e-13).all()


def test_a_kronecker_product_fits_as_badly_as_its_worse_side() -> None:
    old = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4, seed=1)))
    solver = Factorwise(NewtonSchulz(tolerance=1e-10))
    state, _ = solver.prepare(old)
    new = Kronecker(old.left, Dense(torch.stack([old.right.dense()[0], 7 * old.right.dense()[1]])))
    found = misfit(state, new, fresh())
    assert found[0] < 1e-10
    assert found[1] == pytest.approx(6, rel=4 * math.sqrt(0.5 / 4 / PROBES))  # R = −6 I: a χ² of 4·PROBES, square root taken


def test_blocks_are_judged_one_by_one() -> None:
    blocks = spd(2, 3, n=2)
    old, new = BlockDiagonal(blocks, 5), BlockDiagonal(blocks * torch.tensor([1.0, 1.0, 2.0])[:, None, None], 5)
    state, _ = Factorwise(Cholesky()).prepare(Kronecker(Diagonal(torch.ones(2, 1)), old))
    sides = Kronecker(Diagonal(torch.ones(2, 1).double()), old)
    assert (misfit(state, sides, fresh()) < 1e-13).all()
    found = misfit(state, Kronecker(sides.left, new), fresh())
    assert (found > 0.1).all()


def test_a_guarded_inverse_is_judged_where_it_is_used() -> None:
    """A member that fell back is judged by its fallback."""
    matrix = torch.stack([spd(n=4), spd(n=4, condition=1e7)])
    solver = Guarded(NewtonSchulz(3, tolerance=1e-2), retries=0)
    state, _ = solver.prepare(Dense(matrix))
    assert state.fallback is not None
    assert (misfit(state, Dense(matrix), fresh()) < 2e-2).all()
    healthy, _ = Guarded(Cholesky()).prepare(Dense(matrix))
    assert (misfit(healthy, Dense(matrix), fresh()) < 1e-8).all()


def test_an_indefinite_move_and_a_nan_do_not_fit() -> None:
    matrix = spd(2, n=4)
    state, _ = Cholesky().prepare(Dense(matrix))
    spoilt = torch.stack([with_spectrum(torch.tensor([1.0, 0.5, 0.2, -0.3])), matrix[1] * torch.nan])
    assert not (misfit(state, Dense(spoilt), fresh()) <= 0.1).any()


def test_states_without_an_explicit_inverse_are_refused() -> None:
    state, _ = ThermodynamicSolve(IDEAL).prepare(Dense(spd(n=3)))
    with pytest.raises(
        TypeError, match=r"a Held holds no explicit inverse whose fit could be tested: leave Policy.refresh_above"
    ):
        misfit(state, Dense(spd(n=3)), None)
