from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatbath.work import Job, Kernel, Work, cholesky, eigh, elementwise, inverse, matmul, triangular_solve

counts = st.integers(1, 9)
sizes = st.integers(1, 40)
kernels = st.one_of(
    st.builds(matmul, sizes, sizes, sizes),
    *(st.builds(make, sizes) for make in (cholesky, inverse, eigh)),
    st.builds(triangular_solve, sizes, sizes),
    st.builds(elementwise, sizes, st.floats(0.5, 4)),
)
jobs = st.builds(
    Job,
    st.sampled_from(["a", "b"]),
    sizes,
    st.sampled_from([0.0, 64.0]),
    st.integers(0, 3),
    settle_seconds=st.floats(0, 1),
    read_seconds=st.floats(0, 1),
    conversions_in=sizes,
    conversions_out=sizes,
)
works = st.builds(Work, st.dictionaries(kernels, counts, max_size=4), st.dictionaries(jobs, counts, max_size=4))


@given(works, works, works)
def test_work_adds_up_in_any_order(a, b, c):
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Work() == a
    assert a + a == a * 2 == 2 * a


@given(works, works)
def test_every_total_is_additive(a, b):
    for total in ("flops", "programmings", "conversions", "analog_seconds"):
        assert getattr(a + b, total) == pytest.approx(getattr(a, total) + getattr(b, total))


@given(works)
def test_json_and_back_is_the_same_work(work):
    assert Work.from_json(json.loads(json.dumps(work.to_json()))) == work


def test_totals_of_a_job_by_hand():
    job = Job("m", 4, 128.0, 3, 8.0, 8.0, settle_seconds=2.0, read_seconds=0.5, conversions_in=4, conversions_out=5)
    work = Work.of(job, 2) + Work.of(Job("m", 4, drives=1))
    assert work.programmings == 2
    assert work.conversions == 2 * 3 * (4 + 5)
    assert work.analog_seconds == 2 * 3 * 2.5
    assert work.flops == 0


def test_equal_kernels_are_counted_together():
    work = Work.of(cholesky(3)) + Work.of(cholesky(3), 4)
    assert dict(work.kernels) == {cholesky(3): 5}


def test_work_is_a_value():
    kernels = {cholesky(2): 1.0}
    work = Work(kernels)
    kernels[cholesky(3)] = 1.0
    assert dict(work.kernels) == {cholesky(2): 1.0}
    with pytest.raises(TypeError, match="does not support item assignment"):
        work.kernels[cholesky(3)] = 1.0


@pytest.mark.parametrize(
    "kernel,flops",
    [
        (matmul(2, 3, 4), 2 * 4 * (3 + 3)),  # per entry of the result 3 products and 3 additions
        (cholesky(6), 6**3 / 3),
        (inverse(6), 2 * 6**3 / 3),
        (triangular_solve(6, 2), 6 * 6 * 2),
        (eigh(6), 9 * 6**3),
        (elementwise(6, 2), 12),
    ],
    ids=lambda value: value.name if isinstance(value, Kernel) else "",
)
def test_flops_of_kernels_are_the_textbook_counts(kernel, flops):
    """Golub & Van Loan, Matrix Computations, 4th ed."""
    assert kernel.flops == flops
    assert kernel.bytes > 0
