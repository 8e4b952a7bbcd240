"""Ranges follow what is read, keep voltages within the rails, and are counted."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import Emulator, Machine, MachineSpec, Schedule
from heatbath.machines.emulator.front_end import attenuation, read_range, within_rails

TAU = 1e-6


def _spec(**fields) -> MachineSpec:
    return MachineSpec(name="m", tau=TAU, **fields)


def test_drives_are_converted_at_full_scale() -> None:
    rows = torch.tensor([[1000.0, 500.0], [0.002, -0.001], [0.0, 0.0]], dtype=torch.float64)
    codes = []

    class Listening(Emulator):
        def respond(self, emulated, drive, plan, **options):
            codes.append(drive)
            return super().respond(emulated, drive, plan, **options)

    machine = Machine(Listening(_spec(drive_bits=8)))
    reading = machine.run(machine.program(torch.eye(2, dtype=torch.float64)), rows, schedule=Schedule(100 * TAU, TAU))
    assert codes[0].tolist() == [[127.0, 64.0], [127.0, -64.0], [0.0, 0.0]]
    assert reading.scale.squeeze().tolist() == [1000.0, 0.002, 0.0]
    assert int(reading.drive_clipped) == 0


def test_read_range_is_the_next_power_of_two_as_far_as_the_amplifier_goes() -> None:
    peak = torch.tensor([0.6, 0.01, 3.0])
    assert read_range(peak, _spec()).tolist() == [1.0, 2**-6, 4.0]
    assert read_range(peak, _spec(read_gain_max=8.0)).tolist() == [1.0, 0.125, 4.0]


def test_small_answers_keep_their_bits_by_amplification() -> None:
    matrix = torch.full((16, 16), 0.9, dtype=torch.float64) + 0.1 * torch.eye(16, dtype=torch.float64)
    drive = torch.ones(16, dtype=torch.float64) + torch.linspace(0, 1e-2, 16, dtype=torch.float64)
    schedule, errors = Schedule(2000 * TAU, 0.0, 1), []
    for gain in (None, 1.0):
        machine = Machine(_spec(read_bits=8, read_gain_max=gain))
        mean = machine.run(machine.program(matrix), drive, schedule=schedule).mean
        errors.append(float((mean - torch.linalg.solve(matrix, drive)).abs().max()))
    peak = float(torch.linalg.solve(matrix, drive).abs().max())
    assert errors[0] <= peak / 127 * 1.001
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize("each", [False, True])
def test_drives_are_lowered_to_fit_the_rails_and_counted(each: bool) -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.07], dtype=torch.float64))
    machine = Machine(Emulator(_spec(rail_volts=1.5), read_by_read=each))
    programmed = machine.program(matrix)
    drives = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    reading = machine.run(programmed, drives, schedule=Schedule(300 * TAU, 0.0, 1))
    torch.testing.assert_close(reading.mean, drives / matrix.diagonal(), rtol=1e-7, atol=1e-7)
    assert int(reading.attenuated) == 1
    assert each or float(reading.end.abs().max()) <= 1.5
    assert reading.scale.squeeze().tolist() == [1.0, 16.0]


def test_ranging_pass_is_billed_where_there_are_rails() -> None:
    schedule, drive = Schedule(30 * TAU, TAU), torch.ones(5, 2)
    jobs = []
    for rail in (None, 2.0):
        machine = Machine(_spec(rail_volts=rail))
        jobs.append(next(iter(machine.run(machine.program(torch.eye(2)), drive, schedule=schedule).work.jobs)))
    assert jobs[1].settle_seconds == pytest.approx(2 * jobs[0].settle_seconds)
    assert (jobs[0].conversions_out, jobs[1].conversions_out) == (2, 4)


def test_division_is_one_without_rails() -> None:
    peak = torch.tensor([[0.5], [40.0]])
    assert attenuation(peak, _spec()).squeeze().tolist() == [1.0, 1.0]
    assert attenuation(peak, _spec(rail_volts=1.0)).squeeze().tolist() == [1.0, 64.0]
    assert torch.equal(within_rails(peak, _spec()), peak)
    assert within_rails(peak, _spec(rail_volts=2.0)).squeeze().tolist() == [0.5, 2.0]


def test_readings_never_clip_while_ranges_are_free(generator: torch.Generator) -> None:
    machine = Machine(_spec(read_bits=6, noise_volts_rms=0.5))
    reading = machine.run(
        machine.program(torch.eye(3)), torch.ones(200, 3), schedule=Schedule(TAU, 0.0, 1), generator=generator
    )
    assert int(reading.read_clipped) == 0
