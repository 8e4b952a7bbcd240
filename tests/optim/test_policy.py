from __future__ import annotations

import pytest

from heatbath.optim import Interval, KLClip, Policy


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
        ({"boost": 1.0}, r"boost must exceed 1 and relax lie in \(0, 1\], got 1.0 and 0.5"),
        ({"relax": 0.0}, r"boost must exceed 1 and relax lie in \(0, 1\], got 10.0 and 0.0"),
        ({"fallback_lr": -1.0}, "fallback_lr must be at least 0, got -1.0"),
        ({"factor_every": 0}, "an interval needs every >= 1"),
        ({"refresh_every": 0}, "an interval needs every >= 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Policy(**options)


def test_the_default_trust_is_a_clip():
    assert Policy().trust == KLClip()
