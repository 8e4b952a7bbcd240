from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatbath.optim import Interval


def dates(interval: Interval, steps: int) -> list[int]:
    found: list[int] = []
    for step in range(steps):
        if interval.due(step, found[-1] if found else None):
            found.append(step)
    return found


def gaps(interval: Interval, steps: int = 300) -> list[int]:
    found = dates(interval, steps)
    return [b - a for a, b in pairwise(found)]


@given(st.integers(1, 12), st.integers(2, 8))
def test_intervals_grow_from_one_step_to_their_full_length(every, patience):
    found = gaps(Interval(every, patience))
    assert dates(Interval(every, patience), 1) == [0]
    assert found[0] == 1
    assert found == sorted(found)
    assert found[-1] == max(found) == every


def test_a_patience_of_one_grows_too():
    assert gaps(Interval(10, 1))[0] == 1


@given(st.integers(1, 12))
def test_without_patience_the_interval_is_fixed(every):
    assert dates(Interval(every, 0), 100) == list(range(0, 100, every))


def test_growth_by_hand():
    """Patience 2, every 3: length 1 at steps 0–1, 2 at 2–3, 3 from 4 on."""
    assert dates(Interval(3, 2), 14) == [0, 1, 3, 6, 9, 12]


def test_a_refresh_that_is_overdue_is_due():
    assert Interval(10, 0).due(25, 3)
    assert not Interval(10, 0).due(12, 3)


@pytest.mark.parametrize("every,patience", [(0, 5), (1, -1)])
def test_an_interval_out_of_range_is_refused(every, patience):
    with pytest.raises(ValueError, match=f"an interval needs every >= 1 and patience >= 0, got {every} and {patience}"):
        Interval(every, patience)
