from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heatbath.operators import Dense, Diagonal, Kronecker, Shifted
from heatbath.solvers import Cholesky, Eigen, Factorwise, Outcome
from heatbath.work import Work, eigh, elementwise, matmul
from tests.laws import noise
from tests.zoo import spd

sizes = st.integers(1, 5)


def of_rank(n: int, rank: int, seed: int):
    x = noise(rank, n, seed=seed)
    return x.mT @ x


@given(sizes, sizes, st.integers(0, 5), st.integers(0, 5), st.sampled_from([1e-3, 0.1, 10.0]))
def test_law_10_the_exactly_damped_solve_is_the_dense_solve(outputs, inputs, rank_b, rank_a, damping):
    """For any PSD sides, singular ones included: vec⁻¹((B ⊗ A + λI)⁻¹ vec G)."""
    b, a, g = of_rank(outputs, rank_b, 0), of_rank(inputs, rank_a, 1), noise(outputs, inputs, seed=2)
    operator = Kronecker(Dense(b), Dense(a)).shift(damping)
    state, _ = Eigen().prepare(operator)
    truth = torch.linalg.solve(torch.kron(b, a) + damping * torch.eye(len(b) * len(a), dtype=b.dtype), g.flatten())
    got = Eigen().solve(state, g).value.flatten()
    assert (got - truth).norm() <= 1e-11 * truth.norm() * (1 + torch.linalg.matrix_norm(torch.kron(b, a), 2) / damping)
    assert state.outcome == Outcome.SOLVED.code


def test_no_product_of_damped_inverses_is_the_exactly_damped_inverse():
    """Exact and factored damping differ for every split of λ unless one side is a multiple of the identity."""
    b, a, g = spd(n=3), spd(n=4, seed=1), noise(3, 4)
    exact = Eigen().solve(Eigen().prepare(Kronecker(Dense(b), Dense(a)).shift(0.1))[0], g).value
    for split in (0.1, 1.0, 10.0):
        sides = Kronecker(Dense(b).shift(0.1**0.5 * split), Dense(a).shift(0.1**0.5 / split))
        factored = Factorwise(Cholesky())
        other = factored.solve(factored.prepare(sides)[0], g).value
        assert (other - exact).norm() / exact.norm() > 0.01


def test_each_member_has_its_own_damping():
    b, a, g = spd(2, n=3), spd(2, n=4, seed=1), noise(2, 3, 4)
    amounts = torch.tensor([0.1, 2.0], dtype=torch.float64)
    solution = Eigen().solve(Eigen().prepare(Kronecker(Dense(b), Dense(a)).shift(amounts))[0], g)
    for i, amount in enumerate(amounts):
        alone = Eigen().solve(Eigen().prepare(Kronecker(Dense(b[i]), Dense(a[i])).shift(amount))[0], g[i])
        torch.testing.assert_close(solution.value[i], alone.value, rtol=1e-12, atol=1e-12)


def test_a_negative_eigenvalue_from_rounding_counts_as_zero():
    """(A − 10⁻¹² I) of a singular A, damped by λ, is solved as A + λI."""
    a = of_rank(4, 2, 0)
    rounded = a - 1e-12 * torch.eye(4, dtype=a.dtype)
    assert torch.linalg.eigvalsh(rounded).min() < 0
    state, _ = Eigen().prepare(Shifted(Dense(rounded), torch.tensor(1e-3, dtype=a.dtype)))
    assert state.outcome == Outcome.SOLVED.code
    assert state.values.min() == 1e-3


def test_a_negative_entry_of_a_diagonal_counts_as_zero_too():
    diagonal = Diagonal(torch.tensor([-1e-12, 1.0], dtype=torch.float64))
    state, _ = Eigen().prepare(Shifted(diagonal, torch.tensor(1e-3, dtype=torch.float64)))
    assert state.values.tolist() == [1e-3, 1 + 1e-3]


def test_an_undamped_singular_matrix_is_indefinite():
    state, _ = Eigen().prepare(Dense(torch.zeros(2, 3, 3)))
    assert state.outcome.tolist() == [Outcome.INDEFINITE.code] * 2


def test_a_nan_on_either_side_is_an_outcome_and_no_exception():
    good, bad = spd(2, n=3), spd(2, n=3)
    bad[0, 0, 0] = torch.nan
    for left, right in ((good, bad), (bad, good)):
        state, _ = Eigen().prepare(Kronecker(Dense(left), Dense(right)).shift(0.1))
        assert state.outcome.tolist() == [Outcome.NONFINITE.code, Outcome.SOLVED.code]
    diagonal = Kronecker(Diagonal(torch.tensor([[1.0, torch.inf]])), Dense(torch.eye(2)[None]))
    assert Eigen().prepare(diagonal)[0].outcome.tolist() == [Outcome.NONFINITE.code]


def test_work_is_two_decompositions_and_four_products():
    operator = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4)))
    state, work = Eigen().prepare(operator)
    assert work == Work.of(eigh(3), 2) + Work.of(eigh(4), 2)
    applied = Eigen().solve(state, noise(2, 3, 4)).work
    assert applied == Work.of(elementwise(24)) + Work.of(matmul(4, 3, 3), 4) + Work.of(matmul(3, 4, 4), 4)


def test_other_structures_are_refused():
    with pytest.raises(TypeError, match="Eigen takes Dense, Diagonal or Kronecker operators, shifted or not, got Nothing"):
        Eigen().prepare(type("Nothing", (), {})())
    nested = Kronecker(Kronecker(Dense(torch.eye(2)), Dense(torch.eye(2))), Dense(torch.eye(2)))
    with pytest.raises(TypeError, match="Eigen takes Dense or Diagonal sides, got Kronecker"):
        Eigen().prepare(nested)
