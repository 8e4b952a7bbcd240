from __future__ import annotations

import pytest
import torch

from heatbath.operators import Dense, Diagonal, Kronecker
from heatbath.optim import ExactDamping, FactoredDamping
from tests.laws import noise
from tests.zoo import spd

AMOUNT = torch.tensor([0.1, 2.0], dtype=torch.float64)


def product(out: int = 3, inputs: int = 4, *, diagonal: bool = False) -> Kronecker:
    a = spd(2, n=inputs, seed=1) * 5
    return Kronecker(Dense(spd(2, n=out)), Diagonal(a.diagonal(dim1=-2, dim2=-1)) if diagonal else Dense(a))


def identity(size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("diagonal", [False, True])
def test_exact_damping_adds_the_identity(diagonal):
    curvature = product(diagonal=diagonal)
    truth = curvature.dense() + AMOUNT[:, None, None] * identity(12)
    torch.testing.assert_close(ExactDamping()(curvature, AMOUNT).dense(), truth, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("diagonal", [False, True])
def test_factored_damping_is_its_own_formula(diagonal):
    """(B + √λ/π I) ⊗ (A + π√λ I), π² = (tr A/dim A)/(tr B/dim B)."""
    curvature = product(diagonal=diagonal)
    got = FactoredDamping()(curvature, AMOUNT).dense()
    for i, amount in enumerate(AMOUNT):
        b, a = curvature.left.dense()[i], curvature.right.dense()[i]
        pi = ((a.trace() / 4) / (b.trace() / 3)).sqrt()
        truth = torch.kron(b + amount.sqrt() / pi * identity(3), a + pi * amount.sqrt() * identity(4))
        torch.testing.assert_close(got[i], truth, rtol=1e-13, atol=1e-14)


def test_pi_balances_the_cross_terms():
    """π is where ‖π√λ B ⊗ I‖ and ‖√λ/π I ⊗ A‖ agree in trace norm (Martens & Grosse 2015, §6.3)."""
    curvature = product()
    b, a = curvature.left.dense()[0], curvature.right.dense()[0]
    pi = ((a.trace() / 4) / (b.trace() / 3)).sqrt()
    one, other = torch.kron(b * pi, identity(4)).trace(), torch.kron(identity(3) / pi, a).trace()
    torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


def test_factored_damping_does_not_depend_on_how_a_scalar_is_split():
    """(cB) ⊗ (A/c) is the same curvature, and stays so when damped: units of a and g do not matter."""
    curvature = product()
    other = Kronecker(Dense(curvature.left.matrix * 7), Dense(curvature.right.matrix / 7))
    torch.testing.assert_close(
        FactoredDamping()(other, AMOUNT).dense(), FactoredDamping()(curvature, AMOUNT).dense(), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("out,inputs", [(1, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("diagonal", [False, True])
def test_law_11_factored_is_exact_where_one_side_is_a_number(out, inputs, diagonal):
    """The other side takes all of λ: B ⊗ A + λI, written out."""
    curvature = product(out, inputs, diagonal=diagonal)
    sides = zip(curvature.left.dense(), curvature.right.dense(), strict=True)
    truth = torch.stack([torch.kron(b, a) for b, a in sides]) + AMOUNT[:, None, None] * identity(out * inputs)
    for rule in (FactoredDamping(), ExactDamping()):
        torch.testing.assert_close(rule(curvature, AMOUNT).dense(), truth, rtol=1e-13, atol=1e-14)


def test_no_damping_changes_nothing():
    curvature, zero = product(), torch.zeros(2, dtype=torch.float64)
    for rule in (FactoredDamping(), ExactDamping()):
        assert torch.equal(rule(curvature, zero).dense(), curvature.dense())


@pytest.mark.parametrize("dead", ["left", "right", "both"])
def test_a_side_of_zeros_is_damped_without_overflow(dead):
    """A dead layer: no gradient, or no activation, or neither. The product stays positive definite and of size λ at least."""
    b, a = spd(2, n=3), spd(2, n=4, seed=1)
    curvature = Kronecker(Dense(b * (dead == "right")), Dense(a * (dead == "left")))
    damped = FactoredDamping()(curvature, AMOUNT)
    assert torch.isfinite(damped.dense()).all()
    values = torch.linalg.eigvalsh(damped.left.dense())[:, :1] * torch.linalg.eigvalsh(damped.right.dense())[:, :1]
    torch.testing.assert_close(values[:, 0].clamp(max=AMOUNT), AMOUNT, rtol=1e-6, atol=0)


def test_factored_tikhonov_is_not_exact_damping():
    """Law 11 needs a side that is a number: elsewhere the two differ, by cross terms that are positive semidefinite."""
    curvature = product()
    difference = FactoredDamping()(curvature, AMOUNT).dense() - ExactDamping()(curvature, AMOUNT).dense()
    assert (difference.norm(dim=(1, 2)) > 0.1 * AMOUNT).all()
    assert torch.linalg.eigvalsh(difference).min() > -1e-13


def test_rules_leave_the_curvature_alone():
    curvature = product()
    before = curvature.left.matrix.clone(), curvature.right.matrix.clone()
    FactoredDamping()(curvature, AMOUNT)
    ExactDamping()(curvature, AMOUNT)
    assert torch.equal(curvature.left.matrix, before[0])
    assert torch.equal(curvature.right.matrix, before[1])


def test_a_factor_of_another_structure_is_refused():
    inner = Kronecker(Dense(noise(1, 1, 1)), Dense(noise(1, 4, 4)))
    with pytest.raises(TypeError, match="a factor must be Dense or Diagonal, got Kronecker"):
        FactoredDamping()(Kronecker(Dense(noise(1, 1, 1)), inner), torch.ones(1))
