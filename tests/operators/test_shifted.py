from __future__ import annotations

import torch

from heatbath.operators import Dense, Kronecker, Shifted
from tests.zoo import spd


def test_a_shift_of_a_shift_is_one_shift():
    once = Kronecker(Dense(spd(n=2)), Dense(spd(n=3))).shift(0.25)
    twice = once.shift(0.5)
    assert isinstance(twice, Shifted)
    assert twice.operator is once.operator
    assert twice.amount.item() == 0.75


def test_eigenvalues_move_by_the_amount():
    product = Kronecker(Dense(spd(n=2)), Dense(spd(n=3)))
    before, after = (torch.linalg.eigvalsh(op.dense()) for op in (product, product.shift(0.3)))
    torch.testing.assert_close(after, before + 0.3, rtol=1e-13, atol=1e-13)
