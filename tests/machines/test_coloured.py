"""Law (f): cells whose noise differs, against Van Loan and by z-scores."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.machines.dynamics import Clock, average
from heatbath.machines.oracle import oracle
from tests.machines.truth import machine_reading, spd, worst_z

TAU = 1e-6
TIMINGS = [(0.0, 2.0, None), (0.7, 6.0, None), (0.7, 4.0, 9), (1.5, 0.0, 1), (0.3, 1e-3, None), (0.0, 40.0, None)]


@pytest.mark.parametrize("burn_in,duration,reads", TIMINGS)
@pytest.mark.parametrize("condition", [4.0, 1e4])
def test_law_f_equals_van_loan(burn_in: float, duration: float, reads: int | None, condition: float) -> None:
    held, loudness = spd(4, condition).numpy(), np.array([1.0, 10.0, 0.3, 2.0])
    rates, modes = np.linalg.eigh(held)
    colour = modes.T @ np.diag(loudness) @ modes
    noise = 0.2
    _, truth = machine_reading(
        held, np.zeros(4), noise=noise, burn_in=burn_in, duration=duration, reads=reads, loudness=loudness
    )
    joint = average(torch.tensor(rates), Clock(burn_in, duration, reads), noise=noise, mixing=torch.tensor(colour)).covariance
    for i, j, block in ((1, 1, truth[:4, :4]), (1, 0, truth[:4, 4:]), (0, 0, truth[4:, 4:])):
        law = modes @ joint[..., i, j].numpy() @ modes.T
        np.testing.assert_allclose(law, block, rtol=1e-10, atol=1e-10 * np.abs(block).max())


def test_law_f_is_the_isotropic_law_for_equal_noise() -> None:
    rates = torch.tensor([0.2, 1.0], dtype=torch.float64)
    burn_in, duration = 0.5, 3.0
    whole = average(rates, Clock(burn_in, duration, None), noise=0.5, mixing=torch.eye(2, dtype=torch.float64))
    u, s = (rates * duration).numpy(), 2 * rates.numpy()
    f = (1 - np.exp(-u)) / u
    double = (1 - np.exp(-s * duration)) / (s * duration)
    published = (1 - 2 * f + double) / (rates.numpy() ** 2 * duration) + f**2 * (1 - np.exp(-s * burn_in)) / s
    np.testing.assert_allclose(whole.covariance[..., 1, 1].diagonal().numpy(), published, rtol=1e-12)


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("schedule", [Schedule(0.7 * TAU, 4 * TAU), Schedule(0.7 * TAU, 4 * TAU, 9)])
def test_readings_of_uneven_cells_by_z_scores(schedule: Schedule, prepared: bool, generator: torch.Generator) -> None:
    spec = MachineSpec(name="uneven", tau=TAU, noise_volts_rms=0.3, noise_mismatch=0.4, capacitance_mismatch=0.2)
    held, machine = spd(3, 8.0), Machine(spec, serial=3)
    programmed = machine.program(held, schedule=schedule if prepared else None)
    assert oracle(programmed).dynamics.mixing is not None
    drive = torch.tensor([1.0, -0.4, 0.25], dtype=torch.float64)
    reading = machine.run(programmed, drive.expand(20_000, 3), schedule=schedule, generator=generator)
    mean, covariance = machine_reading(
        (held / programmed.scale).numpy(),
        drive.numpy(),
        noise=0.09,
        burn_in=schedule.burn_in / TAU,
        duration=schedule.duration / TAU,
        reads=schedule.reads,
        speed=oracle(programmed).network.cells.mobility.numpy(),
        loudness=oracle(programmed).network.cells.noise_intensity.numpy(),
    )
    assert worst_z(torch.cat([reading.mean / reading.scale, reading.end], -1), mean, covariance) < 4.5


def test_stationary_covariance_solves_the_lyapunov_equation(generator: torch.Generator) -> None:
    spec = MachineSpec(name="uneven", tau=TAU, noise_volts_rms=0.3, noise_mismatch=0.4)
    held, machine = spd(3, 4.0), Machine(spec, serial=3)
    programmed = machine.program(held)
    unit = (held / programmed.scale).numpy()
    loud = np.diag(oracle(programmed).network.cells.noise_intensity.numpy())
    stationary = scipy.linalg.solve_continuous_lyapunov(unit, 2 * loud)
    np.testing.assert_allclose(oracle(programmed).dynamics.spread.numpy(), np.diag(stationary), rtol=1e-12)
    reads, interval = 20_000, 60.0
    reading = machine.read_covariance(programmed, reads=reads, interval=interval * TAU, burn_in=100 * TAU, generator=generator)
    estimate = (reading.inverse * programmed.scale).numpy()
    error = np.sqrt((stationary**2 + np.outer(np.diag(stationary), np.diag(stationary))) / reads)
    assert np.abs((estimate - stationary) / error).max() < 4.5
