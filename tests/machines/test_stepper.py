"""The steppers against the exact law where both hold, and their own laws where only they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heatbath.machines import Euler, Machine, MachineSpec, ReadByRead, Schedule, Stepper
from tests.machines.truth import machine_reading, reading, spd, worst_z

TAU = 1e-6
NOISY = MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.3)
DRIVE = torch.tensor([1.0, -0.4, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("extra", [{}, {"capacitance_mismatch": 0.2}, {"noise_mismatch": 0.4}])
@pytest.mark.parametrize("schedule", [Schedule(0.8 * TAU, 4 * TAU, 8), Schedule(0.8 * TAU, 4 * TAU)])
def test_read_by_read_has_the_exact_law(extra: dict, schedule: Schedule, generator: torch.Generator) -> None:
    held, machine = spd(3, 8.0), Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.3, **extra), serial=2)
    programmed = machine.program(held, law=ReadByRead)
    assert programmed.tier == "read by read"
    start = torch.tensor([0.3, 0.2, -0.7], dtype=torch.float64)
    result = machine.run(
        programmed, DRIVE.expand(20_000, 3), schedule=schedule, start=start.expand(20_000, 3), generator=generator
    )
    cells = programmed.cells
    mean, covariance = machine_reading(
        (held / programmed.scale).numpy(),
        DRIVE.numpy(),
        noise=0.09,
        burn_in=0.8,
        duration=4.0,
        reads=schedule.reads,
        start=start.numpy(),
        speed=None if cells.speed is None else cells.speed.numpy(),
        loudness=None if cells.loudness is None else cells.loudness.numpy(),
    )
    assert worst_z(torch.cat([result.mean / result.scale, result.end], -1), mean, covariance) < 4.5


def test_read_by_read_follows_ringing_cells(generator: torch.Generator) -> None:
    spec = MachineSpec(name="ringing", resistance=1e3, capacitance=1e-9, inductance=2e-3, noise_volts_rms=0.3)
    machine, held = Machine(spec), torch.eye(1, dtype=torch.float64)
    programmed = machine.program(held, law=ReadByRead)
    drive = torch.ones(20_000, 1, dtype=torch.float64)
    result = machine.run(programmed, drive, schedule=Schedule(TAU, 3 * TAU, 5), generator=generator)
    mean, covariance = reading(
        np.array([[0.0, 1.0], [-0.5, -0.5]]),
        np.array([0.0, 0.5]),
        np.diag([0.0, 2 * 0.09 / 4]),
        start=np.zeros(2),
        burn_in=1.0,
        duration=3.0,
        reads=5,
    )
    assert worst_z(torch.cat([result.mean, result.end], -1), mean[[0, 2]], covariance[np.ix_([0, 2], [0, 2])]) < 4.5


@pytest.mark.parametrize("lattice", [False, True])
@pytest.mark.parametrize("schedule", [Schedule(0.8 * TAU, 3 * TAU, 6), Schedule(0.8 * TAU, 3 * TAU)])
def test_small_steps_approach_the_exact_law(lattice: bool, schedule: Schedule, generator: torch.Generator) -> None:
    held, machine, count = spd(3, 8.0), Machine(NOISY), 5000
    programmed = machine.program(held, law=Euler(time_step=0.02, lattice=lattice))
    result = machine.run(programmed, DRIVE.expand(count, 3), schedule=schedule, generator=generator)
    mean, covariance = machine_reading(
        (held / programmed.scale).numpy(), DRIVE.numpy(), noise=0.09, burn_in=0.8, duration=3.0, reads=schedule.reads
    )
    volts = torch.cat([result.mean / result.scale, result.end], -1)
    error = np.sqrt(np.diag(covariance) / count)
    assert (np.abs(volts.mean(0).numpy() - mean) < 4.5 * error + 0.03 * np.abs(mean)).all()
    ratio = volts.var(0).numpy() / np.diag(covariance)
    assert (np.abs(ratio - 1) < 4.5 * (2 / count) ** 0.5 + 0.03).all()


@pytest.mark.parametrize("h", [0.2, 0.6])
def test_euler_bias_law_of_the_variance(h: float, generator: torch.Generator) -> None:
    machine, repeats = Machine(NOISY), 10_000
    rates = torch.tensor([1.0, 0.5], dtype=torch.float64)
    programmed = machine.program(torch.diag(rates), law=Euler(time_step=h))
    drive = torch.ones(repeats, 2, dtype=torch.float64)
    result = machine.run(programmed, drive, schedule=Schedule(25 * TAU, 0.0, 1), generator=generator)
    predicted = 0.09 / rates * 2 / (2 - h * rates)
    z = (result.mean.var(0) / predicted - 1) / (2 / repeats) ** 0.5
    assert float(z.abs().max()) < 4.5
    mean = (result.mean.mean(0) - 1 / rates) / (predicted / repeats).sqrt()
    assert float(mean.abs().max()) < 4.5  # the stationary mean has no bias
    assert float(result.error) == pytest.approx(h / (2 - h))


def test_lattice_walk_stays_on_its_lattice_and_keeps_the_variance_of_a_cell(generator: torch.Generator) -> None:
    machine, repeats, h = Machine(NOISY), 10_000, 0.02
    programmed = machine.program(torch.eye(1, dtype=torch.float64), law=Euler(time_step=h, lattice=True))
    result = machine.run(
        programmed, torch.zeros(repeats, 1, dtype=torch.float64), schedule=Schedule(4 * TAU, 0.0, 1), generator=generator
    )
    spacing = (2 * h * 0.09) ** 0.5
    codes = result.end / spacing
    torch.testing.assert_close(codes, codes.round(), atol=1e-9, rtol=0)
    assert float(result.end.var()) == pytest.approx(0.09, rel=4.5 * (2 / repeats) ** 0.5)


def test_rails_clip_every_step_and_bend_the_answer() -> None:
    """Where an offset, which no range lowers, holds a cell at a rail, the others settle around it: a variational inequality."""
    matrix = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64).expand(50, 2, 2)
    machine = Machine(MachineSpec(name="railed", tau=TAU, rail_volts=1.0, offset_mismatch=0.4))
    programmed = machine.program(matrix, law=Stepper)
    drive = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(50, 2)
    result = machine.run(programmed, drive, schedule=Schedule(100 * TAU, 0.0, 1))
    x = result.end
    force = drive / (result.scale * programmed.scale[:, None]) + programmed.offset - (matrix @ x[..., None])[..., 0]
    free = x.abs() < 1 - 1e-9
    assert 5 < int((~free).sum()) < 95
    assert float(force[free].abs().max()) < 1e-6
    assert bool((force[~free] * x[~free] >= 0).all())  # only pushed outwards at a rail


def test_rails_hold_an_indefinite_machine(generator: torch.Generator) -> None:
    matrix = torch.diag(torch.tensor([1.0, -0.5], dtype=torch.float64))
    machine = Machine(MachineSpec(name="railed", tau=TAU, rail_volts=1.0, noise_volts_rms=1e-3))
    programmed = machine.program(matrix, law=Stepper)
    result = machine.run(
        programmed, torch.ones(5, 2, dtype=torch.float64), schedule=Schedule(60 * TAU, TAU), generator=generator
    )
    assert bool(result.diverged)
    assert float(result.end[:, 1].abs().min()) > 0.95


def test_drift_during_a_run_weakens_the_conductances() -> None:
    machine = Machine(MachineSpec(name="drifting", tau=TAU))
    programmed = machine.program(torch.eye(1, dtype=torch.float64), law=Euler(time_step=0.01, drift_rate=1e-3))
    result = machine.run(programmed, torch.ones(1, dtype=torch.float64), schedule=Schedule(100 * TAU, 0.0, 1))
    assert float(result.mean) == pytest.approx(np.exp(0.1), rel=2e-3)


def test_stepped_covariance_is_the_inverse_up_to_the_euler_bias(generator: torch.Generator) -> None:
    machine, reads = Machine(NOISY), 600
    matrix = spd(2, 2.0)
    programmed = machine.program(matrix.expand(60, 2, 2), law=Euler(time_step=0.1))
    result = machine.read_covariance(programmed, reads=reads, interval=2 * TAU, burn_in=20 * TAU, generator=generator)
    inverse = torch.linalg.inv(matrix)
    error = (result.inverse.mean(0) - inverse).norm() / inverse.norm()
    assert float(error) < 0.08  # hλ/2 at λ = 1, and three standard errors


def test_steppers_refuse_what_they_cannot_do() -> None:
    schedule, eye = Schedule(TAU, TAU), torch.eye(2)
    ringing = Machine(MachineSpec(name="ringing", resistance=1e3, capacitance=1e-9, inductance=2e-3))
    with pytest.raises(ValueError, match="the stepper takes overdamped cells; leave the inductance out, or use ReadByRead"):
        ringing.run(ringing.program(eye, law=Stepper), torch.ones(2), schedule=schedule)
    silent = Machine(MachineSpec(name="silent", tau=TAU))
    with pytest.raises(ValueError, match="the lattice random walk steps by the noise, and this machine has none"):
        silent.run(silent.program(eye, law=Euler(lattice=True)), torch.ones(2), schedule=schedule)
    with pytest.raises(ValueError, match=r"Euler needs time_step > 0 and drift_rate >= 0, got 0\.0 and 0\.0"):
        Euler(time_step=0.0)
