"""The fast law agrees with the exact one up to the error it states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heatbath.machines import ExactDynamics, Machine, MachineSpec, Schedule, SettledApproximation
from heatbath.machines.dynamics import Cells, Clock
from heatbath.machines.oracle import oracle
from tests.machines.truth import machine_reading, spd, worst_z

TAU = 1e-6
READINGS = 20_000


def _error(u: float, *, burn_in: float, reads: int | None = None) -> tuple[float, float]:
    """Stated errors for one mode of rate 1, averaged over u."""
    one = torch.eye(1, dtype=torch.float64)
    variance, mean = SettledApproximation.of(one, Cells.alike(one, noise=0.1), None).error(Clock(burn_in, u, reads))
    return float(variance), float(mean)


@pytest.mark.parametrize("u,published", [(10.0, 0.0028), (30.0, 0.0003)])
def test_stated_error_of_the_variance_is_the_published_one(u: float, published: float) -> None:
    assert _error(u, burn_in=100.0)[0] == pytest.approx(published, abs=0.5e-4)


@pytest.mark.parametrize("burn_in,reads", [(25.0, None), (0.0, None), (25.0, 4), (25.0, 1)])
def test_stated_error_is_the_distance_to_van_loan(burn_in: float, reads: int | None) -> None:
    u = 12.0
    stated, _ = _error(u, burn_in=burn_in, reads=reads)
    _, truth = machine_reading(np.eye(1), np.ones(1), noise=0.1, burn_in=burn_in, duration=u, reads=reads)
    weight = 1 - (0.75 if burn_in == 0 else 0.5) / u
    fast = 2 * 0.1 / u * weight**2 if reads is None else 0.1 / reads
    assert stated == pytest.approx(abs(fast / truth[0, 0] - 1), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(300 * TAU, 300 * TAU),
        Schedule(0.0, 300 * TAU),
        Schedule(300 * TAU, 0.0, 1),
        Schedule(300 * TAU, 2000 * TAU, 20),
    ],
)
@pytest.mark.parametrize("mismatch,begin", [(None, None), (0.1, None), (None, "start"), (0.1, "start"), (0.1, "guess")])
def test_fast_law_by_z_scores(
    schedule: Schedule, mismatch: float | None, begin: str | None, generator: torch.Generator
) -> None:
    spec = MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.3, capacitance_mismatch=mismatch)
    held, machine = spd(3, 8.0), Machine(spec, serial=5)
    programmed = machine.program(held, schedule=schedule)
    assert oracle(programmed).dynamics.name == "settled approximation"
    drive = torch.tensor([1.0, -0.4, 0.25], dtype=torch.float64)
    start = torch.tensor([5.0, -3.0, 8.0], dtype=torch.float64)  # far off, so that what is left of it shows
    units = 1.0 if begin != "guess" else 1 / programmed.scale
    reading = machine.run(
        programmed,
        drive.expand(READINGS, 3),
        schedule=schedule,
        generator=generator,
        **({} if begin is None else {begin: (units * start).expand(READINGS, 3)}),
    )
    speed = oracle(programmed).network.cells.mobility
    mean, covariance = machine_reading(
        (held / programmed.scale).numpy(),
        drive.numpy(),
        noise=0.09,
        burn_in=schedule.burn_in / TAU,
        duration=schedule.duration / TAU,
        reads=schedule.reads,
        start=None if begin is None else start.numpy(),
        speed=speed.numpy(),
    )
    volts = torch.cat([reading.mean / reading.scale, reading.end], -1)
    if schedule.duration == 0:
        volts, mean, covariance = volts[:, :3], mean[:3], covariance[:3, :3]
    assert worst_z(volts, mean, covariance) < 4.5


def test_slowest_rate_is_estimated_within_five_per_cent() -> None:
    matrices = torch.cat([spd(20, kappa, seed=i)[None] for i, kappa in enumerate((1.01, 2.0, 30.0, 1000.0))])
    estimate = SettledApproximation.of(matrices, Cells.alike(matrices), None).slowest
    truth = torch.linalg.eigvalsh(matrices)[:, 0]
    torch.testing.assert_close(estimate, truth, rtol=0.05, atol=0.0)


def test_automatic_choice_follows_the_tolerance() -> None:
    held = spd(6, 10.0)
    quick, long = Schedule(5 * TAU, 5 * TAU), Schedule(500 * TAU, 500 * TAU)
    machine = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.1))
    assert oracle(machine.program(held, schedule=quick)).dynamics.name == "exact dynamics"
    assert oracle(machine.program(held, schedule=long)).dynamics.name == "settled approximation"
    assert oracle(machine.program(held)).dynamics.name == "exact dynamics"
    assert oracle(Machine(machine.spec, tolerance=0.0).program(held, schedule=long)).dynamics.name == "exact dynamics"
    assert isinstance(oracle(machine.program(held, schedule=long, circuit=ExactDynamics)).dynamics, ExactDynamics)


def test_indefinite_member_keeps_the_stack_on_the_exact_law() -> None:
    good, bad = torch.eye(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    schedule = Schedule(500 * TAU, 500 * TAU)
    machine = Machine(MachineSpec(name="quiet", tau=TAU))
    assert oracle(machine.program(torch.stack([good, bad]), schedule=schedule)).dynamics.name == "exact dynamics"
    forced = machine.program(torch.stack([good, bad]), circuit=SettledApproximation)
    assert oracle(forced).definite.tolist() == [True, False]
    reading = machine.run(forced, torch.ones(2, 2, dtype=torch.float64), schedule=schedule)
    torch.testing.assert_close(reading.mean[0], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "other",
    [
        Schedule(400 * TAU, 500 * TAU),
        Schedule(500 * TAU, 400 * TAU),
        Schedule(500 * TAU, 500 * TAU, 5),
        Schedule(0.0, 500 * TAU),
    ],
)
def test_schedule_below_the_programmed_one_is_refused(other: Schedule) -> None:
    schedule = Schedule(500 * TAU, 500 * TAU)
    machine = Machine(MachineSpec(name="quiet", tau=TAU))
    programmed = machine.program(torch.eye(2, dtype=torch.float64), schedule=schedule)
    with pytest.raises(
        ValueError, match=r"settled approximation was chosen for .* program again with the schedule you will run"
    ):
        machine.run(programmed, torch.ones(2, dtype=torch.float64), schedule=other)
    longer = Schedule(600 * TAU, 700 * TAU)
    assert torch.isfinite(machine.run(programmed, torch.ones(2, dtype=torch.float64), schedule=longer).mean).all()
