"""A specification is data in SI units whose errors name the field, the value and what is allowed."""

from __future__ import annotations

import dataclasses
import math

import pytest

from heatbath.machines import MachineSpec, describe, spec_from, with_bits

TAU = {"name": "m", "tau": 1e-6}


def test_time_constant_is_tau_or_resistance_times_capacitance() -> None:
    assert MachineSpec(**TAU).time_constant == 1e-6
    assert MachineSpec(name="m", resistance=2e3, capacitance=1e-9).time_constant == pytest.approx(2e-6)


def test_noise_is_thermal_and_added_variance_over_full_scale() -> None:
    spec = MachineSpec(
        name="m", resistance=1e3, capacitance=1e-12, temperature=300.0, noise_volts_rms=1e-4, full_scale_volts=0.5
    )
    assert spec.noise == pytest.approx((1.380649e-23 * 300 / 1e-12 + 1e-8) / 0.25)
    assert MachineSpec(**TAU).noise == 0.0
    assert MachineSpec(**TAU, read_noise_volts_rms=0.1, full_scale_volts=2.0).read_noise == pytest.approx(0.0025)


def test_inertia_is_inductive_over_resistive_time() -> None:
    spec = MachineSpec(name="m", resistance=1e3, capacitance=1e-9, inductance=3e-3)
    assert spec.inertia == pytest.approx(3.0)
    assert MachineSpec(**TAU).inertia is None


def test_rail_is_relative_to_full_scale() -> None:
    assert MachineSpec(**TAU, full_scale_volts=0.5, rail_volts=1.0).rail == 2.0
    assert MachineSpec(**TAU).rail is None


def test_with_bits_replaces_what_is_given() -> None:
    spec = with_bits(MachineSpec(**TAU, matrix_bits=4, read_bits=6), matrix=8, drive=10)
    assert (spec.matrix_bits, spec.drive_bits, spec.read_bits) == (8, 10, 6)


def test_whole_numbers_are_taken_for_real_fields() -> None:
    spec = spec_from({"name": "m", "resistance": 1000, "capacitance": 1e-9})
    assert isinstance(spec.resistance, float)


def test_every_field_is_described() -> None:
    rows = describe()
    assert [name for name, *_ in rows] == [f.name for f in dataclasses.fields(MachineSpec)]
    assert all(text for *_, text in rows)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"tau": "1us"}, r"tau must be a number in s, got '1us'; leave it out if it is ideal or not stated"),
        ({"matrix_bits": 8.0}, r"matrix_bits must be a whole number, got 8.0"),
        ({"matrix_bits": True}, r"matrix_bits must be a whole number, got True"),
        ({"temperature": True}, r"temperature must be a number in K, got True"),
        ({"source": 3}, r"source must be a text, got 3"),
        ({"stochastic_rounding": 1}, r"stochastic_rounding must be true or false, got 1"),
        ({"name": 3}, r"a machine needs a name, got 3"),
        ({"name": ""}, r"a machine needs a name, got ''"),
    ],
)
def test_wrong_types_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        spec_from({**TAU, **fields})


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"tau": 0.0}, r"tau = 0.0 is out of range; allowed: \(0, inf\) s; leave it out"),
        ({"tau": float("nan")}, r"tau = nan is out of range"),
        ({"matrix_bits": 1}, r"matrix_bits = 1 is out of range; allowed: \[2, 32\]"),
        ({"gain_mismatch": 0.0}, r"gain_mismatch = 0.0 is out of range; allowed: \(0, 0.5\)"),
        ({"cells": 0}, r"cells = 0 is out of range"),
        ({"matrix_percentile": 101.0}, r"matrix_percentile = 101.0 is out of range; allowed: \[50, 100\] %"),
        (
            {"resistance": 1e3, "capacitance": 1e-9, "tau": 2e-6},
            r"tau = 2e-06 s contradicts resistance × capacitance = 1e-06 s",
        ),
        ({"temperature": 300.0}, r"thermal noise at temperature = 300 K needs the capacitance"),
        ({"rail_volts": 0.5}, r"rail_volts = 0.5 V is below the full scale of 1 V"),
        ({"inductance": 1e-3}, r"inductance = 0.001 H needs resistance \(ohm\) and capacitance"),
        ({"coupling": "magnetic"}, r"coupling = 'magnetic' is not known; allowed: 'capacitive'"),
        ({"coupling": "capacitive", "noise_mismatch": 0.1}, r"noise_mismatch is not emulated with capacitive coupling"),
        ({"coupling": "capacitive", "capacitance_mismatch": 0.1}, r"capacitance_mismatch is not emulated with capacitive"),
        ({"drift_spread": 0.1}, r"drift_spread needs a drift_exponent"),
        ({"hold_seconds": 1.0}, r"hold_seconds needs a drift_exponent"),
        (
            {"tau": None, "resistance": 1e3, "capacitance": 1e-9, "inductance": 1e-3, "noise_mismatch": 0.1},
            r"inductance together with noise_mismatch is not emulated",
        ),
        ({"tau": None}, r"machine 'm': tau is missing; give tau in seconds, or resistance \(ohm\) and capacitance"),
        ({"matrix_bit": 8}, r"unknown field 'matrix_bit' = 8 in a machine specification; did you mean matrix_bits"),
        ({"qqq": 8}, r"unknown field 'qqq' = 8 in a machine specification; known: name, source"),
    ],
)
def test_impossible_values_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_from({**TAU, **fields})


def test_a_missing_name_is_asked_for() -> None:
    with pytest.raises(ValueError, match="a machine specification needs 'name'; got tau"):
        spec_from({"tau": 1e-6})


def test_a_machine_that_states_no_time_to_converge_takes_fifty_time_constants() -> None:
    assert MachineSpec(name="silent", tau=2e-6).default_settle_seconds == pytest.approx(1e-4)
    assert MachineSpec(name="stated", tau=2e-6, settle_taus=7.0).default_settle_seconds == pytest.approx(1.4e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"tau": 10**400},
        {"tau": 1e-6, "cells": 10**5000},
        {"tau": 1e-6, "noise_volts_rms": 1e200},
        {"tau": 1e-6, "noise_volts_rms": 1e-200},
        {"tau": 1e-6, "noise_volts_rms": 1e-3, "full_scale_volts": 5e-324},
        {"tau": 1e-6, "rail_volts": 1.0, "full_scale_volts": 5e-324},
        {"tau": 1e-6, "read_noise_volts_rms": 1e-3, "full_scale_volts": 5e-324},
        {"resistance": 1e-200, "capacitance": 1e-200},
        {"resistance": 1e200, "capacitance": 1e200},
        {"tau": 1e300, "settle_taus": 1e300},
        {"tau": 1e-6, "settle_taus": 1e200},
        {"resistance": 1e-170, "capacitance": 1e170, "inductance": 1.0},
        {"resistance": 1.0, "capacitance": 1e-320, "temperature": 1e300},
        *({name: value, "tau": 1e-6} for name in ("noise_volts_rms", "bandwidth") for value in (math.nan, math.inf)),
    ],
)
def test_numbers_whose_consequences_are_no_numbers_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"too large|out of range"):
        MachineSpec(name="extreme", **fields)


@pytest.mark.parametrize(
    "name", ["x/../../OUT", "a\\b", "[/x]", "a\nb", "a\x7fb", "\x1b[31mred", "a\u2028b", "\ud800", "x" * 101, "c:d"]
)
def test_a_name_is_one_printable_line_that_files_and_tables_can_bear(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a machine is one line of at most 100 printable characters"):
        MachineSpec(name=name, tau=1e-6)


@pytest.mark.parametrize("field", ["source", "notes"])
def test_texts_hold_no_control_characters(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be printable text without control characters"):
        MachineSpec(**TAU, **{field: "see \x1b]0;title\x07"})
    assert getattr(MachineSpec(**TAU, **{field: "two\nlines"}), field) == "two\nlines"


def test_a_tiny_full_scale_alone_is_no_division_by_zero() -> None:
    assert MachineSpec(name="tiny", tau=1e-6, full_scale_volts=1e-200).noise == 0
