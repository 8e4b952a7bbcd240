"""A device of one's own: `spec`, `load` and `run` alone drive everything, and the emulator's shortcut changes nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from heatbath.machines import (
    Emulator,
    ExactDynamics,
    Fault,
    FaultInjector,
    Machine,
    MachineSpec,
    RawReads,
    Recording,
    Replay,
    Schedule,
)
from heatbath.operators import Dense
from heatbath.solvers import Outcome, ThermodynamicSolve, linalg
from tests.machines.truth import spd

TAU = 1e-6
SPEC = MachineSpec(
    name="rough",
    tau=TAU,
    noise_volts_rms=0.05,
    matrix_bits=8,
    drive_bits=8,
    read_bits=8,
    rail_volts=2.0,
    gain_mismatch=0.01,
    offset_mismatch=0.01,
    dead_cells=0.1,
)


class Wire:
    """What a wire leaves of an emulator: its data sheet, load and run."""

    def __init__(self, device: Any) -> None:
        self.device, self.loads = device, []
        self.spec = device.spec

    def load(self, codes, slots):
        self.loads.append(list(slots))
        self.device.load(codes, slots)

    def run(self, slots, drive, plan, *, initial=None, generator=None):
        return self.device.run(slots, drive, plan, initial=initial, generator=generator)


def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "own_device.py"
    spec = importlib.util.spec_from_file_location("own_device", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fresh(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_shortcut_equals_the_code_path_draw_by_draw() -> None:
    """The same generator, the same numbers: equal in distribution, and more than that."""
    matrices, drives = spd(6, 10.0, stack=(3,)), torch.randn(3, 5, 6, dtype=torch.float64, generator=fresh(1))
    short, wired = Machine(SPEC, serial=4), Machine(Wire(Emulator(SPEC, serial=4)), count=3)
    held = [m.program(matrices, **({"circuit": ExactDynamics} if m.emulated else {})) for m in (short, wired)]
    for schedule in (Schedule(30 * TAU, 5 * TAU), Schedule(30 * TAU, 20 * TAU, 4)):
        one, two = (
            m.run(p, drives, schedule=schedule, keep_end=False, generator=fresh(2))
            for m, p in zip((short, wired), held, strict=True)
        )
        assert torch.equal(one.mean, two.mean)
        assert torch.equal(one.scale, two.scale)
        assert one.work == two.work
    covariances = [
        m.read_covariance(p, reads=300, interval=TAU, burn_in=50 * TAU, generator=fresh(3))
        for m, p in zip((short, wired), held, strict=True)
    ]
    torch.testing.assert_close(covariances[0].inverse, covariances[1].inverse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wired", [False, True])
def test_one_machine_for_three_matrices_is_programmed_again_and_that_is_counted(wired: bool) -> None:
    matrices, drives = spd(4, 5.0, stack=(3,)), torch.ones(3, 4, dtype=torch.float64)
    spec = MachineSpec(name="m", tau=TAU, gain_mismatch=0.05)
    device = Wire(Emulator(spec)) if wired else Emulator(spec)
    machine, schedule = Machine(device, count=1), Schedule(400 * TAU, TAU)
    programmed = machine.program(matrices)
    assert programmed.work.programmings == 1
    reading = machine.run(programmed, drives, schedule=schedule)
    assert reading.work.programmings == 2
    assert machine.run(programmed, drives, schedule=schedule).work.programmings == 3
    for i in range(3):  # all three share what is wrong with that one machine
        alone = Machine(spec)
        one = alone.run(alone.program(matrices[i]), drives[i], schedule=schedule).mean
        torch.testing.assert_close(reading.mean[i], one, rtol=1e-9, atol=1e-9)
    if wired:
        assert device.loads == [[0]] * 6


def test_a_class_with_spec_load_and_run_solves_inverts_and_trains(capsys: pytest.CaptureFixture[str]) -> None:
    own = example()
    matrix, bench = spd(8, 10.0), own.Bench()
    rhs = torch.ones(8, dtype=torch.float64)
    solved = linalg.solve(matrix, rhs, machine=bench)
    truth = torch.linalg.solve(matrix, rhs)
    assert float((solved.value - truth).norm() / truth.norm()) < 0.3  # 8 bits at condition number 10
    inverse = linalg.inv(matrix, machine=Machine(own.Bench())).value
    exact = torch.linalg.inv(matrix)
    assert float((inverse - exact).norm() / exact.norm()) < 0.3
    own.main()
    lines = capsys.readouterr().out.splitlines()
    first, last = (float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("loss at step"))
    assert last < 0.02 * first


def test_a_time_out_is_late_and_not_believed() -> None:
    class Dead(Wire):
        def run(self, *args: Any, **options: Any) -> RawReads:
            raise TimeoutError

    solver = ThermodynamicSolve(Machine(Dead(Emulator(SPEC))))
    solution = solver.solve(solver.prepare(Dense(spd(4, 5.0)))[0], torch.ones(4, dtype=torch.float64))
    assert solution.outcome.item() == Outcome.LATE.code


def test_faults_are_injected_into_any_device() -> None:
    machine = Machine(FaultInjector(Wire(Emulator(SPEC)), Fault.LATE, every=2))
    programmed, drive = machine.program(spd(4, 5.0)), torch.ones(4, dtype=torch.float64)
    assert not machine.emulated
    late = [bool(machine.run(programmed, drive, schedule=Schedule(TAU, TAU)).late) for _ in range(4)]
    assert late == [False, True, False, True]


def test_a_recorded_run_is_replayed_bit_by_bit(tmp_path: Path) -> None:
    def answers(device: Any) -> list[torch.Tensor]:
        machine = Machine(device)
        matrices, drives = spd(4, 5.0, stack=(2,)), torch.randn(2, 3, 4, dtype=torch.float64, generator=fresh(1))
        programmed, schedule = machine.program(matrices), Schedule(30 * TAU, 5 * TAU)
        reading = machine.run(programmed, drives, schedule=schedule, generator=fresh(2))
        watched = machine.read_covariance(programmed, reads=20, interval=TAU, burn_in=TAU, generator=fresh(3))
        return [reading.mean, reading.scale, watched.inverse]

    recording = Recording(Wire(Emulator(SPEC)))
    first = answers(recording)
    recording.save(tmp_path / "run.pt")
    replay = Replay(SPEC, tmp_path / "run.pt")
    assert all(torch.equal(a, b) for a, b in zip(first, answers(replay), strict=True))
    with pytest.raises(ValueError, match="the recording ends after"):
        answers(replay)
    other = Replay(SPEC, tmp_path / "run.pt")
    machine = Machine(other)
    with pytest.raises(ValueError, match="something else was asked than was recorded"):
        machine.program(spd(4, 5.0, seed=5))


@pytest.mark.parametrize("part,shape", [("codes", (1, 1, 3)), ("unit", (1, 1)), ("late", (2,))])
def test_reads_that_do_not_fit_are_refused(part: str, shape: tuple[int, ...]) -> None:
    class Odd(Wire):
        def run(self, *args: Any, **options: Any) -> RawReads:
            raw = super().run(*args, **options)
            return RawReads(**{**vars(raw), part: torch.zeros(shape)})

    machine = Machine(Odd(Emulator(SPEC)))
    programmed = machine.program(spd(4, 5.0))
    with pytest.raises(ValueError, match=rf"Device\.run returned {part} of shape"):
        machine.run(programmed, torch.ones(4, dtype=torch.float64), schedule=Schedule(TAU, TAU))


def test_what_only_an_emulator_does_is_refused_elsewhere() -> None:
    machine = Machine(Wire(Emulator(SPEC)))
    with pytest.raises(ValueError, match="only an emulator takes a circuit, Wire is the circuit it is"):
        machine.program(spd(4, 5.0), circuit=ExactDynamics)
    with pytest.raises(TypeError, match="a Device with spec, load and run"):
        Machine(object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count is a number of machines, 1 or more, got 0"):
        Machine(SPEC, count=0)
