from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatbath.optim import Interval
from heatbath.optim.schedule import Timetable


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


# --- staggered ------------------------------------------------------------------------------------------------------------


def history(timetable: Timetable, steps: int, misses: set[tuple[int, int]] = frozenset()) -> list[list[int]]:
    """Steps at which each stack is refreshed; `misses` are steps and stacks whose rows do not come."""
    found: list[list[int]] = [[] for _ in timetable.last_factors]
    for step in range(steps):
        seen = [due and (step, i) not in misses for i, due in enumerate(timetable.captures(step))]
        if any(seen):
            timetable.captured(step, seen)
        due = timetable.refreshes(step)
        timetable.refreshed(step, due)
        for i in range(len(due)):
            found[i] += [step] * due[i]
    return found


def loads(found: list[list[int]], costs: list[float], steps: range) -> list[float]:
    return [sum(cost for cost, dates in zip(costs, found, strict=True) if step in dates) for step in steps]


COSTS = st.lists(st.floats(0.1, 100.0), min_size=1, max_size=12)


@given(COSTS, st.integers(1, 12), st.integers(0, 6))
def test_staggered_no_stack_is_ever_staler_than_its_interval(costs, every, patience):
    interval = Interval(every, patience)
    for dates in history(Timetable.of(costs, interval, interval, stagger=True), 120):
        assert dates[0] == 0
        for a, b in pairwise([*dates, 120]):
            ages = [s for s in range(a + 1, b) if s - a >= interval.length(s, a)]
            assert not ages


@given(COSTS, st.integers(1, 12))
def test_staggered_each_stack_comes_once_an_interval_in_the_long_run(costs, every):
    interval = Interval(every, 0)
    for dates in history(Timetable.of(costs, interval, interval, stagger=True), 8 * every):
        late = [d for d in dates if d >= 2 * every]
        assert all(b - a == every for a, b in pairwise(late))


@given(COSTS, st.integers(1, 12))
def test_staggered_no_step_takes_more_than_the_mean_and_one_stack(costs, every):
    """Of the longest-first rule: the last stack put into the fullest step found no emptier one."""
    interval = Interval(every, 0)
    found = history(Timetable.of(costs, interval, interval, stagger=True), 4 * every)
    assert max(loads(found, costs, range(2 * every, 4 * every))) <= sum(costs) / every + max(costs) + 1e-9


def test_staggered_a_refresh_follows_a_capture_of_the_same_step():
    table = Timetable.of([3.0, 2.0, 1.0, 1.0], Interval(5, 0), Interval(10, 0), stagger=True)
    seen: list[bool] = []
    for step in range(60):
        captures = table.captures(step)
        table.captured(step, captures)
        due = table.refreshes(step)
        table.refreshed(step, due)
        seen += [c for c, d in zip(captures, due, strict=True) if d]
    assert all(seen)
    assert len(seen) >= 4 * 5
    assert len({phase % 5 for phase in table.refresh_phases}) == 4


def test_a_stack_that_missed_its_turn_comes_as_soon_as_it_can():
    interval = Interval(4, 0)
    table = Timetable.of([1.0] * 4, interval, interval, stagger=True)
    late = table.capture_phases.index(3)
    dates = history(table, 24, {(7, late), (8, late), (9, late)})[late]
    assert dates == [0, 3, 10, 11, 15, 19, 23]


def test_captures_together_are_refreshed_by_turns():
    table = Timetable.of([1.0] * 4, Interval(4, 0), Interval(4, 0), stagger=True, together=True)
    assert table.captures(0) == [True] * 4
    assert history(table, 20) == [[0, *range(4 + phase, 20, 4)] for phase in table.refresh_phases]
    assert table.last_factors == [16] * 4


def test_a_timetable_of_a_checkpoint_before_staggering_is_read():
    table = Timetable.of([1.0, 2.0], Interval(4, 0), Interval(4, 0))
    table.load_plain({"last_factors": 8, "last_refresh": None})
    assert table.last_factors == [8, 8]
    assert table.last_refresh == [None, None]
