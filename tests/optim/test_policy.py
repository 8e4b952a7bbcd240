from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from heatbath.optim import KFAC, Interval, KLClip, LevenbergMarquardt, MatchedRMS, Policy
from tests.laws import noise


def test_intervals_share_the_patience():
    policy = Policy(factor_every=3, refresh_every=7, patience=2)
    assert policy.factors == Interval(3, 2)
    assert policy.refresh == Interval(7, 2)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1.0"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\), got -0.1"),
        ({"decay": float("nan")}, r"decay must lie in \[0, 1\), got nan"),
        ({"fallback_lr": -1.0}, "fallback_lr must be at least 0, got -1.0"),
        ({"factor_every": 0}, "an interval needs every >= 1"),
        ({"refresh_every": 0}, "an interval needs every >= 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Policy(**options)


def test_the_default_step_rule_has_no_unit():
    assert KFAC(nn.Linear(2, 2)).policy.trust == MatchedRMS()
    assert KFAC(nn.Linear(2, 2), policy=Policy(adapt=LevenbergMarquardt())).policy.trust == KLClip()
    with pytest.raises(ValueError, match="need the loss's unit: leave out trust"):
        Policy(trust=MatchedRMS(), adapt=LevenbergMarquardt())


def test_intervals_of_another_policy_count_from_the_next_step_on_and_the_past_is_kept():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = KFAC(model, policy=Policy(factor_every=2, refresh_every=4, patience=0))

    def refreshed(steps):
        found = []
        for _ in range(steps):
            before = optimizer.report()["refreshes"]
            optimizer.zero_grad()
            model(noise(5, 3, seed=optimizer.steps)).square().mean().backward()
            optimizer.step()
            found.append(optimizer.report()["refreshes"] > before)
        return found

    assert refreshed(5) == [True, False, False, False, True]
    optimizer.policy = replace(optimizer.policy, factor_every=1, refresh_every=3)
    assert refreshed(6) == [False, False, True, False, False, True]  # steps 7 and 10: three after the last one, at 4
    optimizer.policy = replace(optimizer.policy, refresh_every=10**9)
    assert refreshed(4) == [False] * 4
    assert torch.isfinite(next(model.parameters())).all()
