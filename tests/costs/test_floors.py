"""Floors from first principles."""

from __future__ import annotations

import math

import pytest
from scipy import constants

from heatbath.costs import analog_floor, floors, landauer
from heatbath.work import Job, Kernel, Work, cholesky, eigh, elementwise, inverse, matmul, triangular_solve


def test_landauer_at_room_temperature():
    assert landauer(1) == pytest.approx(2.87e-21, rel=1e-3)
    assert landauer(10, temperature=150) == pytest.approx(10 * constants.k * 150 * math.log(2))


def test_the_analog_floor_is_a_capacitor_whose_thermal_noise_equals_rounding():
    bits, volts, temperature = 9, 0.7, 310.0
    rounding = (volts / 2**bits) ** 2 / 12
    capacitance = constants.k * temperature / rounding
    assert analog_floor(bits, nodes=5, temperature=temperature) == pytest.approx(5 * capacitance * volts**2)


@pytest.mark.parametrize("floor", [landauer, analog_floor])
def test_impossible_arguments_are_refused(floor):
    with pytest.raises(ValueError, match="bits must be 0 or more, got -1"):
        floor(-1)
    with pytest.raises(ValueError, match=r"temperature must be positive, in kelvin, got 0; room temperature is 300"):
        floor(1, temperature=0)


def test_an_irreversible_machine_erases_every_result_a_reversible_one_what_is_left():
    least = floors(Work.of(matmul(3, 4, 5), count=2), word_bits=16)
    assert least.irreversible == pytest.approx(landauer(2 * (2 * 3 * 4 * 5) * 16))
    assert least.reversible == pytest.approx(landauer(2 * (3 * 5) * 16))
    assert least.analog == 0


@pytest.mark.parametrize(
    ("kernel", "numbers"),
    [
        (cholesky(4), 10),  # a triangle
        (inverse(4), 16),
        (triangular_solve(4, 7), 28),
        (eigh(4), 20),  # vectors and values
        (elementwise(9, 3.0), 9),
    ],
)
def test_what_a_kernel_leaves_behind(kernel, numbers):
    assert floors(Work.of(kernel), word_bits=1).reversible == pytest.approx(landauer(numbers))


def test_numbers_that_cross_to_a_machine_are_overwritten_and_its_cells_charged():
    job = Job("m", 4, upload_bits=160.0, drives=3, drive_bits=32.0, read_bits=40.0)  # converters of 8 and 10 bits
    least = floors(Work.of(job, count=2))
    assert least.irreversible == least.reversible == pytest.approx(landauer(2 * (160 + 3 * 72)))
    assert least.analog == pytest.approx(2 * 3 * analog_floor(10, nodes=4))


def test_floors_rise_with_temperature_and_refuse_what_is_impossible():
    work = Work.of(matmul(2, 2, 2))
    assert floors(work, temperature=600).reversible == pytest.approx(2 * floors(work).reversible)
    with pytest.raises(ValueError, match="word_bits must be 1 or more, got 0"):
        floors(work, word_bits=0)
    with pytest.raises(ValueError, match="leaves behind is not known"):
        floors(Work.of(Kernel("fft", (8,), 1.0, 1.0)))
