"""Mismatch belongs to a machine: a pure function of serial number and place, Gaussian, and independent between places."""

from __future__ import annotations

import pytest
import scipy.stats
import torch

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.machines.dynamics import Cells
from heatbath.machines.emulator.imperfections import CAPACITANCE, GAIN, cells_of, defects, mismatch
from heatbath.machines.oracle import oracle
from tests.machines.truth import spd

TAU = 1e-6


def test_mismatch_is_standard_normal_and_uncorrelated() -> None:
    field = mismatch(0, 60, CAPACITANCE, (500,))
    assert scipy.stats.kstest(field.numpy().ravel(), "norm").pvalue > 1e-3
    for shift, dimension in ((1, 0), (1, 1), (7, 1)):
        product = (field * field.roll(shift, dimension)).mean()
        assert abs(float(product)) < 4.5 / field.numel() ** 0.5
    squares = (field.square() - 1) * (field.roll(1, 1).square() - 1)
    assert abs(float(squares.mean())) < 4.5 * 2 / field.numel() ** 0.5


def test_streams_and_machines_are_independent() -> None:
    a, b = mismatch(0, 200, GAIN, (100,)), mismatch(0, 200, CAPACITANCE, (100,))
    assert abs(float((a * b).mean())) < 4.5 / 20_000**0.5
    assert torch.equal(mismatch(7, 1, GAIN, (100,))[0], a[7])


def test_mismatch_of_a_place_does_not_depend_on_the_size_in_use() -> None:
    large, small = mismatch(3, 2, GAIN, (20, 20)), mismatch(3, 2, GAIN, (8, 8))
    assert torch.equal(large[:, :8, :8], small)
    assert torch.equal(large, large.mT)


def test_stack_is_a_fleet_with_consecutive_serial_numbers() -> None:
    spec = MachineSpec(
        name="m", tau=TAU, gain_mismatch=0.02, offset_mismatch=0.01, capacitance_mismatch=0.1, matrix_bits=10, drive_bits=8
    )
    matrices, drives = spd(6, 10.0, stack=(2, 3)), torch.linspace(-1, 1, 2 * 3 * 4 * 6, dtype=torch.float64).reshape(2, 3, 4, 6)
    schedule = Schedule(2 * TAU, TAU)
    machine = Machine(spec, serial=10)
    together = machine.run(machine.program(matrices), drives, schedule=schedule)
    for i in range(6):
        one = Machine(spec, serial=10 + i)
        reading = one.run(one.program(matrices[i // 3, i % 3]), drives[i // 3, i % 3], schedule=schedule)
        torch.testing.assert_close(reading.mean, together.mean[i // 3, i % 3], rtol=1e-9, atol=1e-12)


def test_defects_come_in_the_stated_share() -> None:
    mask = defects(torch.zeros(100, 100), range(100), 8, (100,), 0.03)
    assert float(mask.double().mean()) == pytest.approx(0.03, abs=4.5 * (0.03 * 0.97 / 10_000) ** 0.5)
    assert not defects(torch.zeros(100), [0], 8, (100,), None).any()


def test_ideal_cells_are_all_alike() -> None:
    cells, alike = cells_of(MachineSpec(name="m", tau=TAU), [0], torch.eye(3)), Cells.alike(torch.eye(3))
    for one, other in zip(vars(cells).values(), vars(alike).values(), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_mismatch_goes_by_serial_number_in_any_order() -> None:
    spec = MachineSpec(name="m", tau=TAU, offset_mismatch=0.1)
    in_order = cells_of(spec, [4, 5, 6], torch.zeros(3, 4, 4)).offset
    assert torch.equal(cells_of(spec, [6, 4, 6], torch.zeros(3, 4, 4)).offset, in_order[[2, 0, 2]])


def test_offset_shifts_the_solution_by_the_response_to_it() -> None:
    machine = Machine(MachineSpec(name="m", tau=TAU, offset_mismatch=0.05), serial=4)
    matrix = spd(5, 4.0)
    programmed = machine.program(matrix)
    drive = torch.linspace(-2, 1, 5, dtype=torch.float64)
    reading = machine.run(programmed, drive, schedule=Schedule(400 * TAU, TAU))
    torch.testing.assert_close(reading.mean, torch.linalg.solve(matrix, drive + 2 * oracle(programmed).network.cells.offset))


def _defective(field: str) -> tuple[Machine, torch.Tensor]:
    return Machine(MachineSpec(name="m", tau=TAU, **{field: 0.2}), serial=1), spd(12, 4.0)


def test_dead_cells_read_zero_and_the_others_solve_the_rest() -> None:
    machine, matrix = _defective("dead_cells")
    programmed = machine.program(matrix)
    alive = oracle(programmed).network.cells.working
    assert 0 < int((~alive).sum()) < 12
    drive = torch.linspace(-1, 1, 12, dtype=torch.float64)
    mean = machine.run(programmed, drive, schedule=Schedule(400 * TAU, TAU)).mean
    assert torch.equal(mean[~alive], torch.zeros_like(mean[~alive]))
    torch.testing.assert_close(mean[alive], torch.linalg.solve(matrix[alive][:, alive], drive[alive]))


def test_stuck_cells_pull_on_their_neighbours() -> None:
    machine, matrix = _defective("stuck_cells")
    programmed = machine.program(matrix)
    alive, fixed = oracle(programmed).network.cells.working, oracle(programmed).network.cells.stuck_voltage
    assert set(fixed[~alive].abs().tolist()) == {1.0}
    drive = torch.linspace(-1, 1, 12, dtype=torch.float64)
    reading = machine.run(programmed, drive, schedule=Schedule(400 * TAU, TAU))
    volts = fixed * reading.scale
    torch.testing.assert_close(reading.mean[~alive], volts[~alive])
    rest = torch.linalg.solve(matrix[alive][:, alive], drive[alive] - matrix[alive][:, ~alive] @ volts[~alive])
    torch.testing.assert_close(reading.mean[alive], rest)


def test_dead_converters_return_zero_and_change_nothing_else() -> None:
    machine, matrix = _defective("dead_converters")
    programmed = machine.program(matrix)
    mute = oracle(programmed).network.cells.dead_adc
    assert 0 < int(mute.sum()) < 12
    drive = torch.linspace(-1, 1, 12, dtype=torch.float64)
    mean = machine.run(programmed, drive, schedule=Schedule(400 * TAU, TAU)).mean
    torch.testing.assert_close(mean, torch.linalg.solve(matrix, drive).masked_fill(mute, 0.0))


@pytest.mark.parametrize("field", ["dead_cells", "stuck_cells", "dead_converters"])
def test_covariance_shows_defects_as_what_they_read(field: str, generator: torch.Generator) -> None:
    spec = MachineSpec(name="m", tau=TAU, noise_volts_rms=0.2, **{field: 0.2})
    machine = Machine(spec, serial=1)
    programmed = machine.program(torch.eye(12, dtype=torch.float64))
    reading = machine.read_covariance(programmed, reads=20, interval=TAU, burn_in=TAU, generator=generator)
    cells = oracle(programmed).network.cells
    bad = cells.dead_adc if field == "dead_converters" else ~cells.working
    expected = 1 / 0.04 if field == "stuck_cells" else 0.0
    torch.testing.assert_close(reading.inverse.diagonal()[bad], torch.full_like(reading.inverse[0][bad], expected))
    assert bool((reading.inverse.diagonal()[~bad] > 0).all())
    assert field == "stuck_cells" or not bool(reading.inverse[~bad][:, bad].any())
