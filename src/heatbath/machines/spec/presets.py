"""Machines that were published, and one that is perfect. Each function names its source.

What a publication does not state stays `None`. Figures that nobody published carry `illustrative` in their name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from heatbath.machines.spec.machine_spec import MachineSpec


def tngd_2024() -> MachineSpec:
    """The machine assumed in Thermodynamic Natural Gradient Descent (arXiv 2405.13817)."""
    return MachineSpec(
        name="tngd-2024",
        source="Donatella et al. 2024, Thermodynamic Natural Gradient Descent, arXiv 2405.13817",
        notes="A timing model, not a built machine: read-out, voltages, energy and area are not stated. Full scale: 1 V.",
        resistance=1e3,
        capacitance=1e-9,
        settle_taus=50.0,
        temperature=300.0,
        matrix_bits=16,
        drive_bits=16,
        read_bits=16,
        bandwidth=50e9,
    )


def spu_2023() -> MachineSpec:
    """The 8-cell stochastic processing unit that was built (arXiv 2312.04836), as an overdamped idealisation.

    For its own physics, resonators coupled by capacitances, set `coupling="capacitive"`, resistance, capacitance and
    inductance.
    """
    return MachineSpec(
        name="spu-2023",
        source="Aifer et al. 2023, Thermodynamic Computing System for AI Applications, arXiv 2312.04836",
        notes="Built as capacitively coupled RLC cells with noise sources; here overdamped, with illustrative tau and noise.",
        cells=8,
        tau=1e-6,
        noise_volts_rms=0.1,
        sample_rate=12e6,
    )


def ideal() -> MachineSpec:
    """No noise, no converters, no defects: what remains is time."""
    return MachineSpec(name="ideal", source="none: a limit, not a machine", tau=1e-6)


PRESETS = (tngd_2024, spu_2023, ideal)


def presets() -> Mapping[str, MachineSpec]:
    """All presets by name."""
    return MappingProxyType({spec.name: spec for spec in (preset() for preset in PRESETS)})
