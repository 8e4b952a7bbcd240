from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.optim import KFAC, KLClip, Unclipped
from tests.curvature.truth import exact_passes, fill, optimizer_for
from tests.laws import noise
from tests.zoo import PLAIN


@pytest.mark.parametrize("predicted,scale", [(4.0, 0.05), (0.01, 1.0), (1e-9, 1.0), (0.0, 1.0), (-4.0, 0.05)])
def test_the_clip_is_the_root_of_the_bound_over_the_prediction(predicted, scale):
    value = KLClip(0.01)(torch.tensor(predicted, dtype=torch.float64))
    assert value.item() == pytest.approx(scale, rel=1e-12)
    assert value.ndim == 0


def test_unclipped_is_one():
    assert Unclipped()(torch.tensor(1e9)).item() == 1


@pytest.mark.parametrize("kappa", [0.0, -1.0, float("nan")])
def test_a_bound_that_is_not_positive_is_refused(kappa):
    with pytest.raises(ValueError, match=rf"kappa must be positive, got {kappa}; pass trust=Unclipped\(\) for no clipping"):
        KLClip(kappa)


def gaussian(outputs):
    """Columns of the output Hessian of ½‖f − y‖², the negative log-likelihood of a unit Gaussian."""
    size = outputs.shape[-1]
    return [torch.eye(size, dtype=outputs.dtype)[c].expand_as(outputs) for c in range(size)]


@pytest.mark.parametrize("kappa", [1e-4, 1e-2])
def test_a_clipped_step_changes_the_predictions_by_half_the_bound(kappa):
    """KL(N(f, I) ‖ N(f + Δf, I)) = ½‖Δf‖², on average ½ lr² ν² vᵀFv = κ/2: exact for a linear Gaussian model, undamped."""
    model, x, y = fill(nn.Linear(4, 3)), noise(40, 4), 10 * noise(40, 3, seed=1)
    policy = {"lr": 1.0, "damping": 0.0}
    optimizer = optimizer_for(model, **policy)
    object.__setattr__(optimizer.policy, "trust", KLClip(kappa))
    exact_passes(model, x, gaussian, 40)
    model.zero_grad()
    optimizer.capture.enabled = False
    before = model(x)
    (0.5 * F.mse_loss(before, y, reduction="sum") / 40).backward()
    optimizer.step()
    divergence = 0.5 * (model(x) - before).square().sum(1).mean()
    assert divergence.item() == pytest.approx(kappa / 2, rel=1e-9)
    assert optimizer.report()["clipped_share"] == 1


def test_the_clip_adds_up_groups_each_with_its_own_rate_and_momentum():
    """ν = √(κ / Σ_i (lr_i/(1 − m_i))² v_iᵀg_i), with v_i read off an unclipped first step of −lr_i v_i."""
    rates, momenta = (1.0, 0.3), (0.5, 0.9)
    x, y = noise(40, 4), 10 * noise(40, 3, seed=1)
    moves, slopes = [], []
    for trust in (Unclipped(), KLClip(1e-3)):
        model = fill(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
        layers = (model[0], model[2])
        groups = [
            {"params": list(a.parameters()), "lr": lr, "momentum": m} for a, lr, m in zip(layers, rates, momenta, strict=True)
        ]
        optimizer = KFAC(model, groups, damping=0.1, policy=replace(PLAIN, trust=trust))
        F.mse_loss(model(x), y).backward()
        before = [torch.cat([p.detach().flatten() for p in layer.parameters()]) for layer in layers]
        slopes = [torch.cat([p.grad.flatten() for p in layer.parameters()]) for layer in layers]
        optimizer.step()
        after = [torch.cat([p.detach().flatten() for p in layer.parameters()]) for layer in layers]
        moves.append([b - a for a, b in zip(before, after, strict=True)])
    change = sum(
        (lr / (1 - m)) ** 2 * (-move / lr) @ slope for lr, m, move, slope in zip(rates, momenta, moves[0], slopes, strict=True)
    )
    for free, clipped in zip(*moves, strict=True):
        torch.testing.assert_close(clipped, free * (1e-3 / change).sqrt(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_is_counted_in_the_reach_of_a_step(momentum):
    """A sustained step grows to lr/(1 − m): the clip bounds that, so the first step is shorter by 1 − m."""
    scales = []
    for m in (0.0, momentum):
        model, x, y = fill(nn.Linear(4, 3)), noise(40, 4), 100 * noise(40, 3, seed=1)
        optimizer = optimizer_for(model, lr=1.0, damping=1e-3, momentum=m)
        object.__setattr__(optimizer.policy, "trust", KLClip(1e-3))
        F.mse_loss(model(x), y).backward()
        before = model.weight.detach().clone()
        optimizer.step()
        scales.append((model.weight - before).norm().item())
    assert scales[1] == pytest.approx((1 - momentum) * scales[0], rel=1e-9)
