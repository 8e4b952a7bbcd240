"""Kernel times: measured points are met, the roofline holds elsewhere, stacks are never dearer than loops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatbath.costs import Digital, Timing, h100, probe_cpu
from heatbath.work import Kernel, Work, cholesky, eigh, elementwise, inverse, matmul, triangular_solve

ROOFLINE = Digital("roofline", "an example", flops_per_second=1e12, bytes_per_second=1e11, launch_seconds=1e-9)


def test_h100_meets_the_measured_table():
    gpu = h100()
    for timing in gpu.timings:
        n = timing.size
        kernel = {"matmul": matmul(n, n, n), "cholesky": cholesky(n), "inverse": inverse(n), "eigh": eigh(n)}[timing.kernel]
        seconds = gpu.kernel_seconds(kernel, timing.stack)
        # a stack that was measured slower than one by one is taken one by one
        assert seconds <= timing.seconds * (1 + 1e-12)
        assert seconds == pytest.approx(timing.seconds, rel=0.1)


def test_h100_predicts_the_newton_schulz_times_that_were_measured_apart():
    """20 steps of two products each; measured in TF32 with the same build, in milliseconds, and not used by the preset."""
    gpu = h100()
    for n, stack, milliseconds in [(768, 12, 2.8), (1024, 1, 1.7), (2048, 1, 2.6), (3072, 12, 95), (4096, 1, 15)]:
        predicted = 40 * gpu.kernel_seconds(matmul(n, n, n), stack) * 1e3
        assert 1 / 1.7 < predicted / milliseconds < 1.7


def test_an_unmeasured_kernel_takes_the_roofline_time():
    solve = triangular_solve(1000, 10_000)
    assert ROOFLINE.kernel_seconds(solve) == solve.flops / 1e12
    add = elementwise(10**6)
    assert ROOFLINE.kernel_seconds(add, 5) == 5 * add.bytes / 1e11
    assert ROOFLINE.kernel_seconds(elementwise(1)) == 1e-9


def test_no_work_takes_no_time():
    assert ROOFLINE.seconds(Work()) == 0.0
    assert ROOFLINE.kernel_seconds(matmul(2, 2, 2), 0) == 0.0


@pytest.mark.parametrize("hardware", [ROOFLINE, h100()])
@pytest.mark.parametrize("kernel", [elementwise(1), cholesky(16), cholesky(1024), triangular_solve(10, 1)])
def test_a_kernel_of_every_tenth_step_costs_a_tenth_of_its_launch_too(hardware: Digital, kernel: Kernel) -> None:
    ten_steps = hardware.kernel_seconds(kernel)  # in one of them it runs
    assert 10 * hardware.kernel_seconds(kernel, 0.1) == pytest.approx(ten_steps)
    assert 10 * hardware.seconds(Work.of(kernel) * 0.1) == pytest.approx(ten_steps)


def test_work_is_the_sum_of_its_kernels():
    work = Work.of(cholesky(768), 12) + Work.of(inverse(768), 12)
    assert h100().seconds(work) == pytest.approx(1.3e-3 + 4.6e-3)


def test_interpolation_recovers_a_power_law():
    hardware = Digital(
        "cubic", "an example", 1e30, 1e30, 1e-30, timings=tuple(Timing("eigh", n, 1e-9 * n**2.5) for n in (10, 40, 90))
    )
    for n in (5, 10, 23, 40, 77, 90):
        assert hardware.kernel_seconds(Kernel("eigh", (n,), 1.0, 1.0)) == pytest.approx(1e-9 * n**2.5)
    assert hardware.kernel_seconds(Kernel("eigh", (900,), 1.0, 1.0)) == pytest.approx(1e-9 * 90**2.5 * 1000)  # the rate is kept


def test_a_flat_product_is_held_to_the_memory_bandwidth():
    gpu = h100()
    flat = matmul(10**7, 1, 10)
    assert gpu.kernel_seconds(flat) == pytest.approx(flat.bytes / gpu.bytes_per_second)


def test_small_sizes_never_take_longer_than_the_smallest_measured():
    noisy = Digital("noisy", "an example", 1e30, 1e30, 1e-9, timings=(Timing("eigh", 10, 2e-3), Timing("eigh", 20, 1e-3)))
    assert noisy.kernel_seconds(eigh(1)) == 2e-3


@given(st.integers(16, 10_000), st.integers(1, 200), st.sampled_from([cholesky, inverse, eigh]))
def test_a_stack_costs_no_more_than_a_loop_and_no_less_than_a_smaller_stack(n, count, kernel):
    gpu = h100()
    stack = gpu.kernel_seconds(kernel(n), count)
    assert stack <= count * gpu.kernel_seconds(kernel(n)) * (1 + 1e-9)
    assert stack >= gpu.kernel_seconds(kernel(n), max(count / 2, 1)) * (1 - 1e-9)


def test_the_probe_measures_this_cpu():
    cpu = probe_cpu((16, 48), repeats=1)
    assert {(t.kernel, t.size) for t in cpu.timings} == {
        (k, n) for k in ("matmul", "cholesky", "inverse", "eigh") for n in (16, 48)
    }
    assert cpu.watts is None
    assert 1e7 < cpu.flops_per_second < 1e13  # between a microcontroller and any CPU
    assert 1e8 < cpu.bytes_per_second < 1e13
    assert math.isfinite(cpu.kernel_seconds(eigh(100)))


def test_impossible_figures_are_refused():
    with pytest.raises(ValueError, match=r"flops_per_second of 'x' must be positive and finite, got 0"):
        Digital("x", "none", 0, 1, 1)
    with pytest.raises(ValueError, match=r"watts of 'x' .*, got -1; leave it None if it is not stated"):
        Digital("x", "none", 1, 1, 1, watts=-1)
    with pytest.raises(ValueError, match="a timing needs a positive size, stack and time"):
        Timing("eigh", 3, 0.0)
    with pytest.raises(ValueError, match=r"'x' has two timings of .*'eigh', 3, 1.*; keep one"):
        Digital("x", "none", 1, 1, 1, timings=(Timing("eigh", 3, 1.0), Timing("eigh", 3, 2.0)))
