"""Machine files: round trips and errors that name the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from heatbath.machines import MachineSpec, load_machine, machine_toml, presets


@pytest.mark.parametrize("name", list(presets()))
def test_presets_survive_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(machine_toml(load_machine(name)), encoding="utf-8")
    assert load_machine(path) == load_machine(name)
    assert load_machine(str(path)) == load_machine(name)


def test_every_field_survives_a_file(tmp_path: Path) -> None:
    values = {}
    for f in dataclasses.fields(MachineSpec):
        kind = f.metadata.get("kind", str)
        values[f.name] = {str: 'with "quotes" and µ', int: 7, bool: True, float: 0.25}[kind]
    values |= {
        "tau": None, "resistance": 1e3, "capacitance": 1e-9, "rail_volts": 3.3, "coupling": None,
        "inductance": None, "matrix_percentile": 99.5, "read_gain_max": 128.0,
    }  # fmt: skip
    spec = MachineSpec(**values)
    path = tmp_path / "machine.toml"
    path.write_text(machine_toml(spec), encoding="utf-8")
    assert load_machine(path) == spec


def test_file_carries_units_as_comments() -> None:
    assert "resistance = 1000.0  # ohm" in machine_toml(load_machine("tngd-2024"))


@pytest.mark.parametrize(
    "text,error,message",
    [
        ('name = "m"\ntau = "1us"', TypeError, r"machine.toml: tau must be a number in s, got '1us'"),
        ('name = "m"\ntau = 1e-6\nbits = 8', ValueError, r"machine.toml: unknown field 'bits'.*did you mean .*_bits"),
        ('name = "m"\ntau = -1.0', ValueError, r"machine.toml: tau = -1.0 is out of range"),
        ("name = m", ValueError, r"machine.toml is not valid TOML"),
    ],
)
def test_bad_files_are_refused(text: str, error: type, message: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        load_machine(path)


def test_unknown_machines_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match="no machine is called 'tngd2024'; did you mean 'tngd-2024'"):
        load_machine("tngd2024")
    with pytest.raises(FileNotFoundError, match=r"machine file 'nowhere.toml' does not exist"):
        load_machine("nowhere.toml")


@pytest.mark.parametrize(
    "content, message",
    [
        (b".".join([b"a"] * 100_000) + b" = 1", r"m\.toml has 200003 bytes; a machine is one flat table of at most 16384"),
        (b"a = " + b"[" * 16_000, r"m\.toml (is nested too deeply|is not valid TOML)"),
        (b"x" + b".a" * 1000 + b" = 1", r"m\.toml(: unknown field 'x'| is nested too deeply)"),
        (b'name = "m"\ntau = 1' + b"0" * 400, r"m\.toml: tau is a whole number of more than 308 digits"),
        (b'name = "m"\ntau = 1' + b"0" * 5000, r"m\.toml: .*4300 digits"),
        (b'name = "caf\xe9"', r"m\.toml is not valid TOML in UTF-8"),
    ],
)
def test_files_that_break_readers_are_refused_by_name_at_once(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_machine(path)
