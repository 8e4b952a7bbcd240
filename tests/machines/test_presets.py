"""Presets say what was published and where."""

from __future__ import annotations

import pytest

from heatbath.machines import load_machine, presets


def test_every_preset_names_its_source() -> None:
    assert {"tngd-2024", "spu-2023", "ideal"} <= set(presets())
    for name, spec in presets().items():
        assert spec.name == name
        assert spec.source
        assert "arXiv" in spec.source or name in ("ideal",) or name.startswith("illustrative")


def test_tngd_2024_has_the_published_figures_and_no_others() -> None:
    spec = load_machine("tngd-2024")
    assert spec.time_constant == pytest.approx(1e-6)
    assert (spec.matrix_bits, spec.bandwidth, spec.settle_taus) == (16, 50e9, 50.0)
    for unstated in ("sample_rate", "cell_power", "read_conversion_energy", "transfer_energy", "cell_area", "rail_volts"):
        assert getattr(spec, unstated) is None


def test_ideal_machine_has_no_noise_and_no_converters() -> None:
    spec = load_machine("ideal")
    assert (spec.noise, spec.matrix_bits, spec.drive_bits, spec.read_bits) == (0.0, None, None, None)


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        presets()["mine"] = load_machine("ideal")  # type: ignore[index]
