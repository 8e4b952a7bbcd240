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


@given(COSTS, st.integers(1, 12), st.integers(0, 6), st.sampled_from([1, 3]))
def test_staggered_no_inverse_is_of_a_capture_more_than_one_interval_ago(costs, every, patience, times):
    """Nor made longer ago. Without staggering both ages stay below the interval, if captures are as frequent as refreshes; if
    they are not, and both intervals still grow, they fall out of step, and a refresh may find a capture of some steps ago."""
    factors, refresh = Interval(every, patience), Interval(times * every, patience)
    for stagger in (False, True) if times == 1 else (True,):
        table = Timetable.of(costs, factors, refresh, stagger=stagger)
        made, of = [0] * len(costs), [0] * len(costs)
        for step in range(120):
            seen = table.captures(step)
            assert seen == [True] * len(costs) or step
            if any(seen):
                table.captured(step, seen)
            due = table.refreshes(step)
            table.refreshed(step, due)
            for i in range(len(costs)):
                if due[i]:
                    made[i], of[i] = step, table.last_factors[i]
                late = stagger if times == 1 or patience == 0 else factors.length(step, of[i])
                assert step - made[i] < refresh.length(step, made[i]) + stagger
                assert step - made[i] <= step - of[i] < refresh.length(step, made[i]) + late


@given(COSTS, st.integers(1, 12))
def test_staggered_each_stack_comes_once_an_interval_in_the_long_run(costs, every):
    interval = Interval(every, 0)
    for dates in history(Timetable.of(costs, interval, interval, stagger=True), 8 * every):
        late = [d for d in dates if d >= 2 * every]
        assert all(b - a == every for a, b in pairwise(late))


@given(COSTS, st.integers(2, 12))
def test_staggered_no_step_takes_more_than_three_times_the_mean_and_one_stack(costs, every):
    """Of the longest-first rule. With W placed, the mean over phases of 2C + R where a stack captures, plus 2R + C where it is
    refreshed, is 6W/every, and the least no more; so C + R was no more where the last stack of the fullest step came."""
    interval = Interval(every, 0)
    table = Timetable.of(costs, interval, interval, stagger=True)
    work = [0.0] * every
    for cost, phase in zip(costs, table.capture_phases, strict=True):
        work[phase] += cost
        work[(phase + 1) % every] += cost
    assert max(work) <= 3 * sum(work) / every + max(costs) + 1e-9


@pytest.mark.parametrize("count", range(1, 11))
def test_staggered_equal_stacks_are_spread_as_evenly_as_they_can_be(count):
    """Up to half as many as steps, no step has two things to do; up to as many, none captures or refreshes two."""
    interval = Interval(10, 0)
    table = Timetable.of([1.0] * count, interval, interval, stagger=True)
    captures, refreshes = [0] * 10, [0] * 10
    for step in range(40):
        seen = table.captures(step)
        table.captured(step, seen)
        due = table.refreshes(step)
        table.refreshed(step, due)
        if step >= 20:
            captures[step % 10] += sum(seen)
            refreshes[step % 10] += sum(due)
    assert sum(captures) == sum(refreshes) == 2 * count
    assert max(captures) == max(refreshes) == 2
    assert max(c + r for c, r in zip(captures, refreshes, strict=True)) == (2 if count <= 5 else 4)


@pytest.mark.parametrize("factor_every,refresh_every", [(5, 10), (1, 10), (10, 5)])
def test_staggered_a_refresh_follows_a_capture_by_one_step(factor_every, refresh_every):
    table = Timetable.of([3.0, 2.0, 1.0, 1.0], Interval(factor_every, 0), Interval(refresh_every, 0), stagger=True)
    found: list[list[int]] = [[], [], [], []]
    before = table.captures(0)
    for step in range(60):
        captures = table.captures(step)
        table.captured(step, captures)
        due = table.refreshes(step)
        table.refreshed(step, due)
        for i in range(4):
            assert before[i] or not due[i]
            found[i] += [step] * due[i]
        before = captures
    every = max(factor_every, refresh_every)
    assert all(b - a == every for dates in found for a, b in pairwise([d for d in dates if d >= 2 * every]))
    assert len({dates[-1] % every for dates in found}) == 4


def test_staggered_nothing_is_late_while_the_interval_is_one_step():
    table = Timetable.of([1.0] * 3, Interval(4, 2), Interval(4, 2), stagger=True)
    assert [dates[:2] for dates in history(table, 2)] == [[0, 1]] * 3


def test_a_stack_that_is_hastened_is_refreshed_at_once():
    table = Timetable.of([1.0] * 3, Interval(4, 0), Interval(4, 0), stagger=True)
    history(table, 9)
    table.captured(9, [False, True, True])
    table.hasten([False, True, False])
    assert table.refreshes(9)[1]
    table.refreshed(9, table.refreshes(9))
    assert not table.refreshes(10)[1]


def test_a_stack_that_missed_its_turn_comes_as_soon_as_it_can():
    interval = Interval(4, 0)
    table = Timetable.of([1.0] * 4, interval, interval, stagger=True)
    late = table.capture_phases.index(3)
    dates = history(table, 24, {(7, late), (8, late), (9, late)})[late]
    assert dates == [0, 4, 10, 12, 16, 20]  # rows that are long overdue do not wait


def test_captures_together_are_refreshed_by_turns():
    table = Timetable.of([1.0] * 4, Interval(4, 0), Interval(4, 0), stagger=True, together=True)
    assert table.captures(0) == [True] * 4
    assert history(table, 20) == [[0, *range(4 + phase, 20, 4)] for phase in table.refresh_phases]
    assert table.last_factors == [16] * 4


def test_a_timetable_of_a_checkpoint_before_staggering_is_read():
    table = Timetable.of([1.0, 2.0], Interval(4, 0), Interval(4, 0))
    table.load_state_dict({"last_factors": 8, "last_refresh": None})
    assert table.last_factors == [8, 8]
    assert table.last_refresh == [None, None]


def test_an_interval_that_starts_at_three_by_hand():
    """Patience 4: length 3 at steps 0–3, 4 at 4–7, 5 from 8 on."""
    assert dates(Interval(5, 4, first=3), 20) == [0, 3, 7, 12, 17]
    assert dates(Interval(2, 4, first=3), 6) == [0, 2, 4]
    with pytest.raises(ValueError, match="starts at 1 step or more, got 0"):
        Interval(5, 4, first=0)
