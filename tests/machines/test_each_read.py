"""Reads that are drawn and converted one by one: the exact law again, and small steps approach it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heatbath.machines import Emulator, Machine, MachineSpec, Schedule
from heatbath.machines.oracle import oracle
from tests.machines import euler
from tests.machines.truth import machine_reading, reading, spd, worst_z

TAU = 1e-6
NOISY = MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.3)
DRIVE = torch.tensor([1.0, -0.4, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("extra", [{}, {"capacitance_mismatch": 0.2}, {"noise_mismatch": 0.4}])
@pytest.mark.parametrize("schedule", [Schedule(0.8 * TAU, 4 * TAU, 8), Schedule(1.5 * TAU, 0.0, 1)])
def test_read_by_read_has_the_exact_law(extra: dict, schedule: Schedule, generator: torch.Generator) -> None:
    spec = MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.3, **extra)
    held, machine = spd(3, 8.0), Machine(Emulator(spec, serial=2, read_by_read=True))
    programmed = machine.program(held)
    start = torch.tensor([0.3, 0.2, -0.7], dtype=torch.float64)
    result = machine.run(
        programmed, DRIVE.expand(20_000, 3), schedule=schedule, start=start.expand(20_000, 3), generator=generator
    )
    cells = oracle(programmed).network.cells
    mean, covariance = machine_reading(
        (held / programmed.scale).numpy(),
        DRIVE.numpy(),
        noise=0.09,
        burn_in=schedule.burn_in / TAU,
        duration=schedule.duration / TAU,
        reads=schedule.reads,
        start=start.numpy(),
        speed=cells.mobility.numpy(),
        loudness=cells.noise_intensity.numpy(),
    )
    assert worst_z(result.mean / result.scale, mean[:3], covariance[:3, :3]) < 4.5


def test_read_by_read_follows_ringing_cells(generator: torch.Generator) -> None:
    spec = MachineSpec(name="ringing", resistance=1e3, capacitance=1e-9, inductance=2e-3, noise_volts_rms=0.3)
    machine, held = Machine(Emulator(spec, read_by_read=True)), torch.eye(1, dtype=torch.float64)
    drive = torch.ones(20_000, 1, dtype=torch.float64)
    result = machine.run(machine.program(held), drive, schedule=Schedule(TAU, 3 * TAU, 5), generator=generator)
    mean, covariance = reading(
        np.array([[0.0, 1.0], [-0.5, -0.5]]),
        np.array([0.0, 0.5]),
        np.diag([0.0, 2 * 0.09 / 4]),
        start=np.zeros(2),
        burn_in=1.0,
        duration=3.0,
        reads=5,
    )
    assert worst_z(result.mean, mean[:1], covariance[:1, :1]) < 4.5


def test_small_steps_approach_the_exact_law(generator: torch.Generator) -> None:
    held, count, machine = spd(3, 8.0), 5000, Machine(NOISY)
    programmed = machine.program(held)
    result = machine.run(programmed, DRIVE.expand(count, 3), schedule=Schedule(0.8 * TAU, 3 * TAU, 6), generator=generator)
    unit = euler.averaged(
        held / programmed.scale,
        DRIVE.expand(count, 3),
        noise=0.09,
        burn_in=0.8,
        duration=3.0,
        reads=6,
        step=0.02,
        generator=generator,
    )
    volts = result.mean / result.scale
    error = ((volts.var(0) + unit.var(0)) / count).sqrt()
    assert bool(((volts.mean(0) - unit.mean(0)).abs() < 4.5 * error + 0.03 * unit.mean(0).abs()).all())
    ratio = volts.var(0) / unit.var(0)
    assert bool(((ratio - 1).abs() < 4.5 * (4 / count) ** 0.5 + 0.03).all())


@pytest.mark.parametrize("h", [0.2, 0.6])
def test_euler_bias_law_of_the_variance(h: float, generator: torch.Generator) -> None:
    """Of the reference, so that what it is a reference for is known."""
    repeats = 10_000
    rates = torch.tensor([1.0, 0.5], dtype=torch.float64)
    drive = torch.ones(repeats, 2, dtype=torch.float64)
    x = euler.settle(torch.diag(rates), drive, torch.zeros_like(drive), noise=0.09, time=25.0, step=h, generator=generator)
    steps = int(-(-25.0 // h))
    predicted = 0.09 / rates * 2 / (2 - 25.0 / steps * rates)
    assert float(((x.var(0) / predicted - 1) / (2 / repeats) ** 0.5).abs().max()) < 4.5
    assert float(((x.mean(0) - 1 / rates) / (predicted / repeats).sqrt()).abs().max()) < 4.5  # the mean has no bias
