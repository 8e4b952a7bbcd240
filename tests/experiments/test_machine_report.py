"""A machine, checked: derived figures in tables, what is not stated stays so."""

from __future__ import annotations

import io
from dataclasses import fields, replace

import pytest
from rich.console import Console
from rich.table import Table

from heatbath.experiments.machine_report import (
    LARGEST,
    PRICED,
    bills_table,
    check_machine,
    fields_table,
    figures_table,
    left_out,
    limits,
)
from heatbath.machines import MachineSpec, load_machine, presets


def text(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(table)
    return stream.getvalue()


def cells(table: Table, row: str) -> list[str]:
    line = next(line for line in text(table).splitlines() if line.startswith(f"│ {row} "))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_the_published_machine_is_too_slow_for_ill_conditioned_matrices() -> None:
    check = check_machine(load_machine("tngd-2024"), cells=64, conditions=[10.0, 1000.0])
    table = figures_table(check)
    # to half a step of 16 bits: κ ln(2·(2¹⁵ − 1)) τ
    assert cells(table, "settling time")[:2] == ["111 µs", "11.1 ms"]
    ten, thousand = (float(value) for value in cells(table, "error of a solve")[:2])
    assert ten < 1e-3
    assert thousand > 0.5


def test_times_and_energies_of_a_machine_that_states_everything() -> None:
    spec = MachineSpec(
        name="m", tau=1e-6, settle_taus=10.0, matrix_bits=8, drive_bits=8, read_bits=8, bandwidth=1e9, sample_rate=1e6,
        cell_power=1e-3, drive_conversion_energy=1e-12, read_conversion_energy=3e-12, transfer_energy=1e-12,
    )  # fmt: skip
    table = bills_table(check_machine(spec, cells=8, conditions=[5.0]))
    assert cells(table, "upload of one matrix") == ["512 ns", "512 pJ"]  # 8·8·8 bits at 1 Gb/s and 1 pJ
    # 10 µs of settling and reading, one conversion of 1 µs in front, one that reading hides; 8 mW, 128 bits, 8·(1 + 3) pJ
    assert cells(table, "one drive") == ["11 µs", "80.2 nJ"]
    assert cells(table, "one solve: both") == ["11.5 µs", "80.7 nJ"]
    assert cells(table, "one inverse: upload and 8 drives") == ["88.5 µs", "642 nJ"]
    assert not [line for line in left_out(spec) if "not stated" in line and "cell_area" not in line]


def test_what_is_not_stated_is_listed_and_not_priced() -> None:
    spec = load_machine("spu-2023")
    check = check_machine(spec, cells=8, conditions=[10.0])
    assert cells(bills_table(check), "upload of one matrix") == ["not stated", "not stated"]
    unpriced, ideal = left_out(spec)
    assert "bandwidth (time of transfers)" in unpriced
    assert "rail_volts" in ideal
    assert "resistance" not in ideal  # tau says it


@pytest.mark.parametrize("name", list(presets()))
def test_every_field_is_set_or_listed(name: str) -> None:
    spec = load_machine(name)
    said = text(fields_table(spec)) + " ".join(left_out(spec))
    for f in fields(spec):
        if f.name not in ("name", "source", "notes", "cells", "coupling", "inductance", "tau", "resistance", "capacitance"):
            assert f.name in said
    assert set(PRICED) <= {f.name for f in fields(spec)}


def test_limits_say_rule_simulation_and_noise() -> None:
    spec = replace(load_machine("tngd-2024"), matrix_bits=8, read_bits=8)
    rows = dict(limits(check_machine(spec, cells=16, conditions=[10.0])))
    assert rows["largest usable condition number, by rule"].startswith("27.5 ")  # 1/(4 √(16/12)/127) of the module's docstring
    assert rows["noise of a cell of conductance 1"] == "2.04 µV rms"  # √(kT/C) at 300 K and 1 nF
    assert rows["step of the read converter"] == "7.87 mV"
    ideal = dict(limits(check_machine(load_machine("ideal"), cells=4, conditions=[10.0])))
    assert ideal["noise of a cell of conductance 1"] == "none"
    assert ideal["  simulated"].startswith("beyond 10¹²")
    assert "step of the read converter" not in ideal


def test_a_machine_of_coupled_capacitances_has_no_drive_to_price() -> None:
    spec = MachineSpec(name="m", resistance=1e3, capacitance=1e-9, inductance=1e-3, coupling="capacitive", temperature=300.0)
    check = check_machine(spec, cells=8, conditions=[10.0])
    assert check.drive is None
    assert check.predictions == ()
    assert "drive" not in text(bills_table(check))
    assert "error of a solve" not in text(figures_table(check))


def test_one_cell_is_a_machine_too() -> None:
    assert check_machine(MachineSpec(name="m", tau=1e-6, matrix_bits=4, cells=1), cells=1, conditions=[1.0]).simulated is None


@pytest.mark.parametrize(
    "cells,condition,message",
    [
        (LARGEST + 1, 10.0, "a machine is checked for matrices of at most 4096 cells, got 4097"),
        (9, 10.0, "cells must be 1 to 8 on machine 'spu-2023', got 9"),
        (8, 0.5, "a condition number is finite and 1 or more, got 0.5"),
    ],
)
def test_impossible_questions_are_refused(cells: int, condition: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_machine(load_machine("spu-2023"), cells=cells, conditions=[condition])
