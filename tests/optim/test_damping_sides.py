"""Damping of the input side alone, and curvature that has no sides."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators import BlockDiagonal, Dense, Diagonal, EigenCorrected, Kronecker
from heatbath.optim import ExactDamping, FactoredDamping, InputDamping
from tests.laws import noise
from tests.zoo import spd

AMOUNT = torch.tensor([0.3, 0.7], dtype=torch.float64)


def test_input_damping_is_exact_where_there_is_no_output_side():
    block = Kronecker(Diagonal(torch.ones(2, 3, dtype=torch.float64)), Dense(spd(2, n=4)))
    torch.testing.assert_close(
        InputDamping()(block, AMOUNT).dense(), ExactDamping()(block, AMOUNT).dense(), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("rule", [InputDamping(), FactoredDamping()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(
    "right", [Dense(spd(2, n=4)), BlockDiagonal(spd(2, 2, n=2), 4), Diagonal(noise(2, 4).abs())], ids=lambda r: type(r).__name__
)
def test_where_the_output_side_is_a_number_both_are_exact(rule, right):
    block = Kronecker(Dense(torch.full((2, 1, 1), 2.5, dtype=torch.float64)), right)
    torch.testing.assert_close(rule(block, AMOUNT).dense(), ExactDamping()(block, AMOUNT).dense(), rtol=1e-12, atol=1e-14)


def test_an_output_side_that_is_there_is_not_ignored():
    with pytest.raises(
        TypeError, match=r"InputDamping is for curvature without an output side, got one that is Dense: use InputOnly"
    ):
        InputDamping()(Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4))), AMOUNT)


@pytest.mark.parametrize("rule", [InputDamping(), FactoredDamping()], ids=lambda r: type(r).__name__)
def test_corrected_curvature_has_no_sides(rule):
    eye = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    with pytest.raises(TypeError, match=r"EigenCorrected has no sides to damp one by one: use ExactDamping\(\) with Eigen\(\)"):
        rule(EigenCorrected(eye, eye, noise(2, 3, 3).abs()), AMOUNT)
