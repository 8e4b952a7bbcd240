"""The exact law: readings have the mean and covariance that Van Loan's method predicts for the matrix held."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from heatbath.machines import ExactDynamics, Machine, MachineSpec, Schedule, load_machine
from heatbath.machines.oracle import oracle
from tests.machines.truth import machine_reading, spd, worst_z

READINGS = 20_000
TAU = 1e-6
NOISY = MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.3)
SCHEDULES = {
    "a: integrator, cold": Schedule(0.0, 3 * TAU),
    "a: integrator, half settled": Schedule(0.8 * TAU, 5 * TAU),
    "b: eight reads": Schedule(0.8 * TAU, 4 * TAU, 8),
    "b: one read": Schedule(1.5 * TAU, 0.0, 1),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("warm", [False, True])
def test_laws_a_b_c_by_z_scores_over_readings(schedule: Schedule, warm: bool, generator: torch.Generator) -> None:
    held = spd(3, 8.0)
    machine = Machine(NOISY)
    programmed = machine.program(held, circuit=ExactDynamics)
    drive = torch.tensor([1.0, -0.4, 0.25], dtype=torch.float64)
    start = torch.tensor([0.3, 0.2, -0.7], dtype=torch.float64)
    reading = machine.run(
        programmed,
        drive.expand(READINGS, 3),
        schedule=schedule,
        start=start.expand(READINGS, 3) if warm else None,
        generator=generator,
    )
    mean, covariance = machine_reading(
        (held / programmed.scale).numpy(),
        drive.numpy(),
        noise=0.09,
        burn_in=schedule.burn_in / TAU,
        duration=schedule.duration / TAU,
        reads=schedule.reads,
        start=start.numpy() if warm else None,
    )
    volts = torch.cat([reading.mean / reading.scale, reading.end], -1)
    if schedule.duration == 0:  # the reading is the end state
        assert torch.allclose(volts[:, :3], volts[:, 3:])
        volts, mean, covariance = volts[:, :3], mean[:3], covariance[:3, :3]
    assert worst_z(volts, mean, covariance) < 4.5


def test_whitened_readings_pass_kolmogorov_smirnov_and_chi_square(generator: torch.Generator) -> None:
    held, schedule = spd(4, 8.0), Schedule(0.5 * TAU, 3 * TAU)
    machine = Machine(NOISY)
    programmed = machine.program(held)
    drive = torch.tensor([0.1, 1.0, -0.4, 0.25], dtype=torch.float64)
    reading = machine.run(programmed, drive.expand(READINGS, 4), schedule=schedule, generator=generator)
    mean, covariance = machine_reading(
        (held / programmed.scale).numpy(), drive.numpy(), noise=0.09, burn_in=0.5, duration=3.0, reads=None
    )
    white = np.linalg.solve(np.linalg.cholesky(covariance[:4, :4]), ((reading.mean / reading.scale).numpy() - mean[:4]).T).T
    assert scipy.stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    assert scipy.stats.kstest((white**2).sum(1), "chi2", args=(4,)).pvalue > 1e-3


def test_noise_of_a_mean_falls_as_one_over_root_duration(generator: torch.Generator) -> None:
    machine, held = Machine(NOISY), spd(3, 2.0)
    programmed = machine.program(held)
    zero_drive = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(4000, 3)
    spreads = []
    durations = [30.0, 300.0, 3000.0]
    for duration in durations:
        schedule = Schedule(30 * TAU, duration * TAU)
        spreads.append(float(machine.run(programmed, zero_drive, schedule=schedule, generator=generator).mean.std(0).mean()))
    slope = np.polyfit(np.log(durations), np.log(spreads), 1)[0]
    assert slope == pytest.approx(-0.5, abs=4 / np.sqrt(2 * 4000) / np.log(10))


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_ideal_machine_with_long_time_solves_to_rounding(dtype: torch.dtype, tolerance: float) -> None:
    matrix = (37.0 * spd(30, 100.0, stack=(2, 3))).to(dtype)
    rhs = torch.randn(2, 3, 5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    machine = Machine(load_machine("ideal"))
    reading = machine.run(machine.program(matrix), rhs, schedule=Schedule(10_000 * TAU, TAU))
    exact = torch.linalg.solve(matrix.double(), rhs.double().mT).mT
    assert float((reading.mean.double() - exact).norm() / exact.norm()) < tolerance


def test_reading_is_the_end_of_a_short_relaxation_without_noise() -> None:
    held = spd(5, 20.0)
    machine = Machine(load_machine("ideal"))
    programmed = machine.program(held)
    drive = torch.linspace(-1, 1, 5, dtype=torch.float64)
    reading = machine.run(programmed, drive, schedule=Schedule(2 * TAU, 0.0, 1))
    unit = held / programmed.scale
    truth = torch.linalg.solve(unit, (torch.eye(5, dtype=torch.float64) - torch.matrix_exp(-2 * unit)) @ drive)
    torch.testing.assert_close(reading.end, truth, rtol=1e-12, atol=1e-13)


def test_indefinite_matrix_runs_away_and_says_so() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.5, -0.2], dtype=torch.float64))
    machine = Machine(load_machine("ideal"))
    programmed = machine.program(torch.stack([matrix, torch.eye(3, dtype=torch.float64)]))
    reading = machine.run(programmed, torch.ones(2, 3, dtype=torch.float64), schedule=Schedule(50 * TAU, TAU))
    assert oracle(programmed).definite.tolist() == [False, True]
    assert float(reading.end[0, 2]) > 1e3
    torch.testing.assert_close(reading.mean[1], torch.ones(3, dtype=torch.float64))


def test_unchecked_nan_matrix_is_data_and_spares_its_neighbours() -> None:
    matrix = torch.stack([torch.full((3, 3), torch.nan), torch.eye(3)]).double()
    machine = Machine(load_machine("ideal"))
    programmed = machine.program(matrix, check=False)
    reading = machine.run(programmed, torch.ones(2, 3, dtype=torch.float64), schedule=Schedule(50 * TAU, TAU))
    assert oracle(programmed).definite.tolist() == [False, True]
    assert bool(reading.mean[0].isnan().all())
    torch.testing.assert_close(reading.mean[1], torch.ones(3, dtype=torch.float64))
