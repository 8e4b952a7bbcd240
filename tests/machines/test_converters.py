"""Converters round, clip and dither as their laws say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from heatbath.machines import Emulator, Machine, MachineSpec, Reading, Schedule
from heatbath.machines.converters import encode, lsb, power_of_two, quantize
from heatbath.machines.random import normal, uniform

TAU = 1e-6


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_rounding_error_is_lsb_over_root_twelve(bits: int) -> None:
    values = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    error = quantize(values, bits)[0] - values
    assert float(error.std()) == pytest.approx(float(lsb(bits)) / 12**0.5, rel=0.01)
    assert float(error.abs().max()) <= float(lsb(bits)) / 2 * (1 + 1e-9)


@given(
    bits=st.integers(2, 16),
    values=st.lists(st.floats(-4, 4), min_size=1, max_size=20),
    full_scale=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_quantize_is_odd_idempotent_and_bounded(bits: int, values: list[float], full_scale: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    once, clipped = quantize(x, bits, full_scale)
    assert torch.equal(quantize(-x, bits, full_scale)[0], -once)
    torch.testing.assert_close(quantize(once, bits, full_scale)[0], once)
    assert float(once.abs().max()) <= full_scale * (1 + 1e-12)
    assert torch.equal(clipped, x.abs() > full_scale * (1 + 1e-6))


def test_two_bits_have_three_levels_and_none_is_ideal() -> None:
    x = torch.linspace(-2, 2, 41)
    assert quantize(x, 2)[0].unique().tolist() == [-1.0, 0.0, 1.0]
    values, clipped = quantize(x, None)
    assert torch.equal(values, x)
    assert not bool(clipped.any())


def test_stochastic_rounding_has_no_bias(generator: torch.Generator) -> None:
    x = torch.full((100_000,), 0.3337, dtype=torch.float64)
    codes, unit, _ = encode(x, 4, noise=uniform(tuple(x.shape), x, generator))
    rounded = codes * unit
    step = float(lsb(4))
    share = (0.3337 % step) / step
    assert len(rounded.unique()) == 2
    assert float(rounded.mean()) == pytest.approx(0.3337, abs=4.5 * step * (share * (1 - share) / 100_000) ** 0.5)


def test_power_of_two_is_the_next_one_up_and_one_for_nonsense() -> None:
    ratio = torch.tensor([0.3, 0.5, 1.0, 1.01, 9.0, 0.0, torch.inf, torch.nan])
    assert power_of_two(ratio).tolist() == [0.5, 0.5, 1.0, 2.0, 16.0, 1.0, 1.0, 1.0]


def test_random_numbers_follow_the_generator_and_its_dtype() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    first, second = (normal((5,), like, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.dtype == torch.float64
    assert torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(normal((5,), like, None), first)


STEP = float(lsb(6))
VOLTS = torch.tensor([0.56, 10.4 * STEP, 0.2], dtype=torch.float64)  # within a converter range of 1, noise included


def _both_ways(noise: float, reads: int, repeats: int, generator: torch.Generator) -> tuple[Reading, Reading]:
    """The white-noise rule and reads converted one by one, for cells that settle at VOLTS and reads of `noise` LSB rms."""
    coupling = (1 - 0.56 - 0.9 * float(VOLTS[1])) / 0.2  # makes the first drive full scale, so that nothing is rescaled
    matrix = torch.tensor([[1.0, 0.9, coupling], [0.9, 1.0, 0.6], [coupling, 0.6, 1.0]], dtype=torch.float64)
    spec = MachineSpec(name="dithered", tau=TAU, read_bits=6, read_noise_volts_rms=noise * STEP)
    schedule, drive = Schedule(1000 * TAU, reads * TAU, reads), (matrix @ VOLTS).expand(repeats, 3)
    readings = []
    for each in (False, True):
        machine = Machine(Emulator(spec, read_by_read=each))
        programmed = machine.program(matrix, schedule=schedule)
        readings.append(machine.run(programmed, drive, schedule=schedule, keep_end=False, generator=generator))
    return readings[0], readings[1]


@pytest.mark.parametrize("dither", [0.5, 0.7, 1.5])
def test_averaged_reads_equal_white_noise_when_dithered(dither: float, generator: torch.Generator) -> None:
    reads, repeats = 16, 4000
    rule, truth = _both_ways(dither, reads, repeats, generator)
    assert int(rule.undithered) == 0
    predicted = STEP * ((dither**2 + 1 / 12) / reads) ** 0.5
    wobble = STEP / np.pi * np.exp(-2 * np.pi**2 * dither**2)  # what dither leaves of the rounding error
    for reading in (rule, truth):
        assert float(reading.mean[:, 1].std()) == pytest.approx(predicted, rel=4.5 / (2 * repeats) ** 0.5 + 0.02)
        assert float(reading.mean[:, 1].mean() - VOLTS[1]) == pytest.approx(0, abs=4.5 * predicted / repeats**0.5 + wobble)


def test_reads_with_too_little_noise_are_counted_and_need_emulation_one_by_one(generator: torch.Generator) -> None:
    reads, repeats = 64, 2000
    rule, truth = _both_ways(0.2, reads, repeats, generator)
    assert int(rule.undithered) == 3 * repeats
    assert int(truth.undithered) == 0
    assert float(rule.mean[:, 1].mean()) / STEP == pytest.approx(10.0, abs=0.05)  # the rule rounds the average
    codes = np.arange(5, 16)
    chance = norm.cdf((codes + 0.5 - 10.4) / 0.2) - norm.cdf((codes - 0.5 - 10.4) / 0.2)
    spread = float((codes**2 @ chance - (codes @ chance) ** 2) / (reads * repeats)) ** 0.5
    assert float(truth.mean[:, 1].mean()) / STEP == pytest.approx(float(codes @ chance), abs=4.5 * spread)


def test_integrated_reading_is_floored_at_lsb_over_root_twelve(generator: torch.Generator) -> None:
    spec = MachineSpec(name="coarse", tau=TAU, read_bits=6)
    machine = Machine(spec)
    programmed = machine.program(torch.eye(40, dtype=torch.float64))
    drive = torch.rand(500, 40, dtype=torch.float64, generator=generator) * 2 - 1
    drive[:, 0] = 1.0
    reading = machine.run(programmed, drive, schedule=Schedule(60 * TAU, TAU))
    assert float((reading.mean - drive)[:, 1:].std()) == pytest.approx(float(lsb(6)) / 12**0.5, rel=0.02)
