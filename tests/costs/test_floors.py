"""Floors from first principles."""

from __future__ import annotations

import math

import pytest
from scipy import constants

from heatbath.costs import analog_floor, landauer


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
