from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heatbath.curvature import update_average
from heatbath.operators import Dense, Diagonal, Kronecker
from tests.laws import noise


def batch(seed: int, places: int = 3) -> Kronecker:
    return Kronecker(Dense(noise(places, 2, 2, seed=seed)), Diagonal(noise(places, 4, seed=seed + 50)))


@given(st.floats(0, 0.99), st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_mean_is_the_bias_corrected_average_of_what_each_member_saw(decay, history):
    """Σ β^{t−s} x_s / Σ β^{t−s} over the batches a member saw (Kingma & Ba 2015), member by member."""
    mean, ages = None, [0, 0, 0]
    for t, seen in enumerate(history):
        mean = update_average(mean, batch(t), ages=ages, seen=seen, decay=decay)
    for member in range(3):
        own = [batch(t) for t, seen in enumerate(history) if seen[member]]
        assert ages[member] == len(own)
        if not own:
            assert mean.left.matrix[member].abs().max() == 0
            continue
        weights = torch.tensor([decay ** (len(own) - 1 - s) for s in range(len(own))], dtype=torch.float64)
        weights /= weights.sum()
        for got, parts in (
            (mean.left.matrix[member], [b.left.matrix[member] for b in own]),
            (mean.right.diagonal[member], [b.right.diagonal[member] for b in own]),
        ):
            truth = torch.einsum("t,t...->...", weights, torch.stack(parts))
            torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-11)


def test_the_first_batch_is_the_mean_bit_by_bit():
    mean = update_average(None, batch(0), ages=[0, 0, 0], seen=[True] * 3, decay=0.95)
    assert torch.equal(mean.left.matrix, batch(0).left.matrix)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_batch_that_is_not_finite_counts_for_nothing(bad, side, when):
    """Only the member that holds it; its average is that of the other batches, also where the bad one comes first."""
    ages, good_ages, mean, good = [0, 0, 0], [0, 0, 0], None, None
    for t in range(4):
        spoilt = batch(t)
        tensor = spoilt.left.matrix if side == "left" else spoilt.right.diagonal
        if t == when:
            tensor[1] = bad
        mean = update_average(mean, spoilt, ages=ages, seen=[True] * 3, decay=0.9)
        good = update_average(good, batch(t), ages=good_ages, seen=[True, t != when, True], decay=0.9)
    assert torch.isfinite(mean.left.matrix).all()
    assert torch.equal(mean.left.matrix[[0, 2]], good.left.matrix[[0, 2]])
    # its age went on on the host, so that its later weights are a little smaller than those of a member that saw less
    error = (mean.left.matrix[1] - good.left.matrix[1]).norm() / good.left.matrix[1].norm()
    assert error < 0.5
    weights = _weights(when)
    truth = torch.einsum("t,t...->...", weights, torch.stack([batch(t).left.matrix[1] for t in range(4)]))
    torch.testing.assert_close(mean.left.matrix[1], truth, rtol=1e-11, atol=1e-11)
    assert weights.sum().item() == pytest.approx(1)


def _weights(when: int, decay: float = 0.9) -> torch.Tensor:
    """Weights of four batches of which one is left out, by the recursion with c_t of the full age; they add up to 1."""
    weights = torch.zeros(4, dtype=torch.float64)
    for t in range(4):
        if t == when:
            continue
        c = 1.0 if not weights.any() else (1 - decay) / (1 - decay ** (t + 1))
        weights *= 1 - c
        weights[t] = c
    return weights


def test_nothing_seen_changes_nothing():
    mean, ages = batch(0), [1, 1, 1]
    assert update_average(mean, batch(1), ages=ages, seen=[False] * 3, decay=0.9) is mean
    assert ages == [1, 1, 1]
