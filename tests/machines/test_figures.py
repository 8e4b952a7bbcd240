"""Derived figures hold on the emulated machine."""

from __future__ import annotations

import math

import pytest
import torch

from heatbath.machines import Machine, MachineSpec, Schedule, figures, load_machine, settle_seconds, with_bits
from tests.machines.truth import hold, spd


def settled(spec: MachineSpec, condition: float, error: float | None = None) -> Schedule:
    return Schedule(settle_seconds(spec, condition=condition, error=error), 0.0, reads=1)


def test_upload_and_serial_drives_of_the_published_machine() -> None:
    spec = load_machine("tngd-2024")
    got = figures(spec, cells=1536, condition=10.0)
    assert got.upload_seconds == pytest.approx(0.76e-3, rel=0.01)
    assert got.drive_seconds == pytest.approx(got.settle_seconds)
    assert got.solve_seconds == pytest.approx(got.upload_seconds + got.drive_seconds)


def test_unstated_bandwidth_leaves_times_unstated() -> None:
    got = figures(MachineSpec(name="m", tau=1e-6), cells=4, condition=3.0)
    assert (got.upload_seconds, got.drive_seconds, got.solve_seconds, got.largest_condition) == (None, None, None, None)
    assert (got.rounding_error, got.noise_error) == (0.0, 0.0)


@pytest.mark.parametrize("inductance", [None, 1e-4, 5e-3])
def test_settling_time_suffices_for_the_stated_error(inductance: float | None) -> None:
    spec = MachineSpec(name="m", resistance=1e3, capacitance=1e-9, inductance=inductance)
    condition, error = 20.0, 1e-3
    matrix = spd(12, condition, stack=(20,))
    machine = Machine(spec)
    drive = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = machine.run(machine.program(matrix), drive, schedule=settled(spec, condition, error)).mean
    exact = torch.linalg.solve(matrix, drive)
    worst = ((mean - exact).norm(dim=-1) / exact.norm(dim=-1)).max()
    assert float(worst) < (1 if inductance is None else 10) * error


def test_settling_time_is_half_a_step_of_the_converter() -> None:
    spec = MachineSpec(name="m", tau=2e-6, read_bits=8)
    assert settle_seconds(spec, condition=5.0) == pytest.approx(2e-6 * 5 * math.log(2 * 127))


@pytest.mark.parametrize("bits", [6, 8, 10])
def test_largest_condition_is_on_the_safe_side_of_indefiniteness(bits: int) -> None:
    spec = with_bits(MachineSpec(name="m", tau=1e-6), matrix=bits)
    limit = figures(spec, cells=64, condition=2.0).largest_condition
    matrices = spd(64, limit, stack=(20,))
    held, scale, _ = hold(matrices, spec, 0, None)
    held = held * scale[:, None, None]
    assert bool((torch.linalg.eigvalsh(held)[:, 0] > 0).all())
    exact = torch.linalg.inv(matrices)
    error = (torch.linalg.inv(held) - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))
    assert float(error.max()) < 0.5


def test_noise_error_of_a_unit_vector_is_seen(generator: torch.Generator) -> None:
    spec = MachineSpec(name="m", tau=1e-6, noise_volts_rms=0.01)
    predicted = figures(spec, cells=16, condition=1.0).noise_error
    machine = Machine(spec)
    drive = torch.eye(16, dtype=torch.float64)[0].expand(500, 16)
    mean = machine.run(
        machine.program(torch.eye(16, dtype=torch.float64)),
        drive,
        schedule=settled(spec, 1.0),
        generator=generator,
    ).mean
    assert float((mean - drive).norm(dim=-1).square().mean().sqrt()) == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize(
    "cells,condition,message",
    [
        (0, 2.0, "cells must be 1 to 8 on machine 'spu-2023', got 0"),
        (9, 2.0, "cells must be 1 to 8 on machine 'spu-2023', got 9"),
        (4, 0.5, "a condition number is finite and 1 or more, got 0.5"),
        (4, float("nan"), "a condition number is finite and 1 or more, got nan"),
    ],
)
def test_bad_questions_are_refused(cells: int, condition: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures(load_machine("spu-2023"), cells=cells, condition=condition)
