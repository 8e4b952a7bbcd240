"""A machine as a whole: stacks, starts, work, checkpoints, and what it never looks at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from heatbath.machines import (
    ExactDynamics,
    Machine,
    MachineSpec,
    Programmed,
    Schedule,
    SettledApproximation,
    load_machine,
    with_bits,
)
from heatbath.machines.oracle import oracle
from heatbath.operators import from_plain, map_tensors, to_plain
from heatbath.work import Job
from tests.machines.truth import spd

TAU = 1e-6
EIGHT_BITS = with_bits(load_machine("tngd-2024"), matrix=8, drive=8, read=8)


@pytest.mark.parametrize("law", [ExactDynamics, SettledApproximation])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stack_equals_loop(law: type, dtype: torch.dtype) -> None:
    matrices, drives = (
        spd(7, 10.0, stack=(2, 3)).to(dtype),
        torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(0)).to(dtype),
    )
    machine, schedule = Machine(EIGHT_BITS), Schedule(400 * TAU, 0.0, 1)
    together = machine.run(machine.program(matrices, circuit=law), drives, schedule=schedule)
    for i in range(2):
        for j in range(3):
            one = machine.run(machine.program(matrices[i, j], circuit=law), drives[i, j], schedule=schedule)
            tolerance = {torch.float32: 1e-5, torch.float64: 1e-11}[dtype]
            step = float(one.scale.max()) * 2 / 127  # a reading at the edge of two codes may fall to either side
            error = (one.mean - together.mean[i, j]).abs()
            assert float(((error > tolerance) & (error < 0.9 * step)).sum()) == 0
            assert float((error > tolerance).double().mean()) < 0.05


def test_batch_shapes_are_kept() -> None:
    machine = Machine(load_machine("ideal"))
    programmed = machine.program(torch.eye(3).expand(2, 3, 3))
    for batch in ((), (1,), (4, 5)):
        reading = machine.run(programmed, torch.ones(2, *batch, 3), schedule=Schedule(1e-4, 1e-6))
        assert reading.mean.shape == reading.end.shape == (2, *batch, 3)
        assert reading.scale.shape == (2, *batch, 1)
        assert reading.late.shape == reading.read_clipped.shape == reading.undithered.shape == (2,)


def test_solution_does_not_depend_on_the_units_of_matrix_and_drive() -> None:
    machine, schedule, matrix = Machine(EIGHT_BITS), Schedule(500 * TAU, 0.0, 1), spd(6, 5.0)
    drive = torch.linspace(-1, 2, 6, dtype=torch.float64)
    generator = torch.Generator()
    base = machine.run(machine.program(matrix), drive, schedule=schedule, generator=generator.manual_seed(0)).mean
    scaled = machine.run(machine.program(1024 * matrix), 4 * drive, schedule=schedule, generator=generator.manual_seed(0)).mean
    torch.testing.assert_close(scaled, base / 256)


def test_zero_drive_returns_zero_however_loud_the_noise() -> None:
    machine = Machine(MachineSpec(name="loud", tau=TAU, noise_volts_rms=0.5))
    reading = machine.run(machine.program(torch.eye(3)), torch.zeros(2, 3), schedule=Schedule(TAU, TAU))
    assert torch.equal(reading.mean, torch.zeros(2, 3))


def test_a_start_at_the_solution_needs_no_burn_in() -> None:
    machine, matrix = Machine(load_machine("ideal")), spd(6, 50.0, stack=(2,))
    programmed = machine.program(matrix)
    drive = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    solution = torch.linalg.solve(matrix, drive.mT).mT
    short = Schedule(0.0, TAU)
    guessed = machine.run(programmed, drive, schedule=short, guess=solution)
    torch.testing.assert_close(guessed.mean, solution)
    settled = machine.run(programmed, drive, schedule=Schedule(2000 * TAU, TAU))
    warm = machine.run(programmed, drive, schedule=short, start=settled.end)
    torch.testing.assert_close(warm.mean, solution)
    cold = machine.run(programmed, drive, schedule=short)
    assert float((cold.mean - solution).norm()) > 0.5 * float(solution.norm())


def test_only_what_is_held_matters_after_programming() -> None:
    """Two matrices that round to the same levels are the same matrix to the machine."""
    machine, schedule = Machine(EIGHT_BITS), Schedule(100 * TAU, 0.0, 1)
    matrix = torch.tensor([[1.0, 0.25], [0.25, 0.75]], dtype=torch.float64)
    other = matrix.clone()
    other[1, 1] += 1e-3
    first, second = machine.program(matrix), machine.program(other)
    assert torch.equal(oracle(first).conductance, oracle(second).conductance)
    drive = torch.ones(2, dtype=torch.float64)
    generator = torch.Generator()
    readings = [machine.run(p, drive, schedule=schedule, generator=generator.manual_seed(0)).mean for p in (first, second)]
    torch.testing.assert_close(*readings, rtol=0.0, atol=0.0)
    exact = torch.linalg.solve(oracle(first).conductance * first.scale, drive)
    assert float((readings[0] - exact).abs().max()) <= float(exact.abs().max()) * 2 / 127


def test_gradients_stop_at_the_machine() -> None:
    machine = Machine(load_machine("ideal"))
    programmed = machine.program(torch.eye(2, requires_grad=True))
    reading = machine.run(programmed, torch.ones(2, requires_grad=True), schedule=Schedule(TAU, TAU))
    assert not reading.mean.requires_grad


def test_same_generator_same_reading() -> None:
    machine = Machine(MachineSpec(name="loud", tau=TAU, noise_volts_rms=0.5))
    programmed = machine.program(torch.eye(3))
    runs = [
        machine.run(programmed, torch.ones(3), schedule=Schedule(TAU, TAU), generator=torch.Generator().manual_seed(1)).mean
        for _ in range(2)
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize("law", [ExactDynamics, SettledApproximation])
def test_programmed_machines_survive_checkpoints_and_selection(law: type) -> None:
    spec = MachineSpec(name="m", tau=TAU, capacitance_mismatch=0.1, offset_mismatch=0.01, dead_cells=0.1)
    machine, schedule = Machine(spec), Schedule(500 * TAU, TAU)
    old, new = (machine.program(spd(5, 4.0, seed=i, stack=(2,)), schedule=schedule, circuit=law) for i in (1, 2))
    keep = torch.tensor([True, False])
    mixed = map_tensors(lambda a, b: torch.where(keep.reshape(2, *(1,) * (a.ndim - 1)), a, b), old, new)
    restored = from_plain(to_plain(mixed))
    assert isinstance(restored, Programmed)
    assert restored.schedule == schedule
    drive = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(2, 5)
    readings = [machine.run(p, drive, schedule=schedule).mean for p in (old, new, restored)]
    torch.testing.assert_close(readings[2], torch.where(keep[:, None], readings[0], readings[1]))


def test_work_counts_uploads_drives_conversions_and_time() -> None:
    machine = Machine(EIGHT_BITS)
    programmed = machine.program(torch.eye(10).expand(4, 10, 10))
    assert dict(programmed.work.jobs) == {Job("tngd-2024", 10, upload_bits=800.0): 4}
    reading = machine.run(programmed, torch.ones(4, 3, 10), schedule=Schedule(5e-5, 1e-5, 6), guess=torch.ones(4, 3, 10))
    job = Job(
        "tngd-2024",
        10,
        drives=3,
        drive_bits=160.0,  # a drive and a guess of 8 bits a cell
        read_bits=110.0,  # the sum of 6 reads has 3 more bits
        settle_seconds=5e-5,
        read_seconds=1e-5,
        conversions_in=20,
        conversions_out=60,
    )
    assert dict(reading.work.jobs) == {job: 4}
    single = machine.run(programmed, torch.ones(4, 10), schedule=Schedule(5e-5, 1e-5), start=torch.ones(4, 10))
    assert next(iter(single.work.jobs)).conversions_in == 10  # the voltages are there already


def test_ideal_converters_move_numbers_of_32_bits_whatever_the_dtype() -> None:
    machine = Machine(load_machine("ideal"))
    programmed = machine.program(torch.eye(10, dtype=torch.float64))
    assert programmed.upload_bits == 32 * 100
    job = next(iter(machine.run(programmed, torch.ones(10).double(), schedule=Schedule(TAU, TAU)).work.jobs))
    assert (job.drive_bits, job.read_bits) == (320.0, 320.0)


def test_covariance_work_counts_every_read() -> None:
    machine = Machine(with_bits(MachineSpec(name="m", tau=TAU, noise_volts_rms=0.1), read=8))
    reading = machine.read_covariance(machine.program(torch.eye(4)), reads=100, interval=1e-6, burn_in=1e-5)
    job = next(iter(reading.work.jobs))
    assert (job.drives, job.conversions_out, job.read_bits) == (1, 400, 3200.0)
    assert job.settle_seconds + job.read_seconds == pytest.approx(1.1e-4)


def test_end_is_left_out_on_request() -> None:
    machine = Machine(load_machine("ideal"))
    for law in (ExactDynamics, SettledApproximation):
        programmed = machine.program(torch.eye(2), circuit=law)
        reading = machine.run(programmed, torch.ones(2), schedule=Schedule(1e-4, 1e-6), keep_end=False)
        assert reading.end is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("law", [ExactDynamics, SettledApproximation])
def test_a_cuda_device_gives_what_the_cpu_gives(law: type) -> None:
    """From one generator on the CPU; eigenvectors of distinct eigenvalues agree but for signs, so noise is left out."""
    machine, schedule = Machine(replace(EIGHT_BITS, temperature=None)), Schedule(40 * TAU, 40 * TAU, 4)
    matrices, drives = spd(7, 10.0, stack=(3,)), torch.linspace(-1, 1, 84, dtype=torch.float64).reshape(3, 4, 7)
    means = []
    for device in ("cpu", "cuda"):
        programmed = machine.program(matrices.to(device), circuit=law)
        means.append(machine.run(programmed, drives.to(device), schedule=schedule).mean.cpu())
    cpu, cuda = means
    step = float(cpu.abs().max()) * 2 / 127  # a reading at the edge of two codes may fall to either side
    error = (cpu - cuda).abs()
    assert float(error.max()) < 1.1 * step
    assert float((error > 1e-10).double().mean()) < 0.05


@pytest.mark.parametrize("stack", [(), (2,)])
@pytest.mark.parametrize("law", [ExactDynamics, SettledApproximation])
def test_an_empty_batch_of_drives_gives_an_empty_reading(stack: tuple[int, ...], law: type) -> None:
    machine = Machine(load_machine("tngd-2024"))
    schedule = Schedule(40e-6, 10e-6)
    programmed = machine.program(torch.eye(3).expand(*stack, 3, 3), schedule=schedule, circuit=law)
    reading = machine.run(programmed, torch.zeros(*stack, 0, 3), schedule=schedule)
    assert reading.mean.shape == (*stack, 0, 3)
