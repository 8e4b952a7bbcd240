"""Longest job first keeps Graham's bound against the best plan, found by trying all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatbath.costs import assign, makespan


def best_plan(jobs: list[float], machines: int) -> float:
    plans = itertools.product(range(machines), repeat=len(jobs))
    return min(max(sum(t for t, m in zip(jobs, plan, strict=True) if m == k) for k in range(machines)) for plan in plans)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 3))
def test_the_makespan_is_within_grahams_bound_of_the_best_plan(jobs, machines):
    best = best_plan(jobs, machines)
    found = makespan([(t, 1) for t in jobs], machines=machines)
    assert best <= found <= best * (4 - 1 / machines) / 3 + 1e-9


def test_grahams_worst_case_is_reached():
    assert best_plan([5, 5, 4, 4, 3, 3, 3], 3) == 9  # 5+4, 5+4, 3+3+3
    assert makespan([(5.0, 2), (4.0, 2), (3.0, 3)], machines=3) == 11  # (4 − 1/3)/3 · 9: 5+3+3, 5+3, 4+4


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 5)), max_size=5), st.integers(1, 6))
def test_no_job_is_lost(jobs, machines):
    loads = assign(jobs, machines=machines)
    assert len(loads) <= machines
    for kind, (_, count) in enumerate(jobs):
        assert sum(load[kind] for load in loads) == pytest.approx(count)


def test_one_machine_does_everything_and_enough_machines_take_the_longest_job():
    jobs = [(3.0, 2), (2.0, 2.5), (7.0, 1)]
    assert makespan(jobs, machines=1) == 18.0
    assert makespan(jobs, machines=6) == 7.0
    assert makespan([], machines=2) == 0.0


def test_no_machines_are_refused():
    with pytest.raises(ValueError, match="at least one machine, got 0"):
        assign([(1.0, 1)], machines=0)
