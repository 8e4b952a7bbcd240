"""Faults spoil whole members of a stack, at the stated rate, in the stated way, and nothing else."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import Fault, FaultInjector, Machine, MachineSpec, Schedule
from heatbath.machines.oracle import oracle
from tests.machines.truth import spd

TAU = 1e-6
SCHEDULE = Schedule(400 * TAU, TAU)
MACHINE = Machine(MachineSpec(name="m", tau=TAU))


def _run(faulty: Machine, stack: int = 1, generator: torch.Generator | None = None):
    programmed = faulty.program(spd(4, 4.0, stack=(stack,)), schedule=SCHEDULE)
    drive = torch.linspace(-1, 1, stack * 12, dtype=torch.float64).reshape(stack, 3, 4)
    drive = drive / drive.abs().amax(-1, keepdim=True)
    return faulty.run(programmed, drive, schedule=SCHEDULE, generator=generator), MACHINE.run(
        programmed, drive, schedule=SCHEDULE
    )


def test_every_third_call_fails() -> None:
    faulty = Machine(FaultInjector(MACHINE.device, Fault.NONFINITE, every=3))
    assert [bool(_run(faulty)[0].mean.isnan().all()) for _ in range(6)] == [False, False, True, False, False, True]


def test_members_fail_at_the_stated_rate(generator: torch.Generator) -> None:
    reading, truth = _run(Machine(FaultInjector(MACHINE.device, Fault.NONFINITE, rate=0.1)), 4000, generator)
    failed = reading.mean.isnan().flatten(1).all(-1)
    assert float(failed.double().mean()) == pytest.approx(0.1, abs=4.5 * (0.09 / 4000) ** 0.5)
    assert torch.equal(reading.mean[~failed], truth.mean[~failed])


def test_garbage_has_the_right_size_and_nothing_else(generator: torch.Generator) -> None:
    reading, truth = _run(Machine(FaultInjector(MACHINE.device, Fault.GARBAGE, every=1)), 200, generator)
    assert float(reading.mean.norm() / truth.mean.norm()) == pytest.approx(1.0, abs=0.1)
    assert abs(float(torch.corrcoef(torch.stack([reading.mean.ravel(), truth.mean.ravel()]))[0, 1])) < 4.5 / 2400**0.5


def test_stale_readings_are_those_of_the_drive_before() -> None:
    reading, truth = _run(Machine(FaultInjector(MACHINE.device, Fault.STALE, every=1)), 2)
    torch.testing.assert_close(reading.mean[:, 1:], truth.mean[:, :-1])
    assert not bool(reading.mean[:, 0].any())


def test_late_machines_say_so() -> None:
    reading, _ = _run(Machine(FaultInjector(MACHINE.device, Fault.LATE, every=1)), 2)
    assert reading.late.tolist() == [True, True]
    assert bool(reading.mean.isnan().all())
    assert _run(Machine(FaultInjector(MACHINE.device, Fault.LATE, rate=0.0)), 2)[0].late.tolist() == [False, False]


def test_covariance_readings_fail_too(generator: torch.Generator) -> None:
    machine = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.1))
    faulty = Machine(FaultInjector(machine.device, Fault.GARBAGE, every=1))
    programmed = faulty.program(torch.eye(3))
    reading = faulty.read_covariance(programmed, reads=50, interval=TAU, burn_in=10 * TAU, generator=generator)
    assert torch.equal(reading.inverse, reading.inverse.mT)
    assert faulty.spec is machine.spec
    late = Machine(FaultInjector(machine.device, Fault.LATE, every=1)).read_covariance(
        programmed, reads=50, interval=TAU, burn_in=TAU
    )
    assert bool(late.late)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({}, "give either rate or every, got rate=None and every=None"),
        ({"rate": 0.1, "every": 2}, "give either rate or every, got rate=0.1 and every=2"),
        ({"rate": 1.5}, r"rate is a probability in \[0, 1\], got 1.5"),
        ({"every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_bad_faults_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Machine(FaultInjector(MACHINE.device, Fault.GARBAGE, **arguments))


def test_loading_does_not_fail_and_the_data_sheet_is_the_devices() -> None:
    faulty = Machine(FaultInjector(MACHINE.device, Fault.LATE, every=1))
    programmed, truth = (m.program(spd(4, 4.0), schedule=SCHEDULE) for m in (faulty, MACHINE))
    assert torch.equal(oracle(programmed).conductance, oracle(truth).conductance)
    assert faulty.spec is MACHINE.spec
