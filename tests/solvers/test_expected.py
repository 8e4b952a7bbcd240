"""The closed form of a solve's error, against Van Loan's integrals and against repeated solves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heatbath.machines import ClosedLoop, ExactDynamics, Machine, MachineSpec, Schedule, SettledApproximation
from heatbath.machines.expected import expected_error
from heatbath.machines.oracle import oracle
from heatbath.operators import Dense
from heatbath.solvers import Crossbar, ThermodynamicSolve
from heatbath.solvers.held import program
from tests.machines.truth import machine_reading, spd

N = 6
MATRIX = spd(N, 15.0) + 0.1 * torch.diag(torch.arange(N, dtype=torch.float64))
RHS = torch.randn(2, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ANSWER = torch.linalg.solve(MATRIX, RHS.mT).mT


@pytest.mark.parametrize(
    "schedule", [Schedule(2e-6, 3e-6), Schedule(2e-6, 3e-6, 5), Schedule(4e-6, 0.0, 1)], ids=["integral", "reads", "one read"]
)
@pytest.mark.parametrize(
    "changes", [{}, {"capacitance_mismatch": 0.2, "offset_mismatch": 0.05, "gain_mismatch": 0.02}], ids=str
)
def test_it_is_the_second_moment_of_the_process(schedule: Schedule, changes: dict[str, float]) -> None:
    machine = Machine(MachineSpec(name="m", tau=1e-6, noise_volts_rms=0.05, **changes), serial=1)
    held, _ = program(machine, Dense(MATRIX), None, circuit=ExactDynamics)
    root, cells = held.root.numpy(), oracle(held.programmed).network.cells
    total = 0.0
    for b, exact in zip(RHS.numpy(), ANSWER.numpy(), strict=True):
        full = np.abs(b * root).max()
        drive = b * root / full
        if cells.offset is not None:
            drive = drive + cells.offset.numpy()
        mean, covariance = machine_reading(
            oracle(held.programmed).conductance.numpy(),
            drive,
            noise=0.05**2,
            burn_in=schedule.burn_in / 1e-6,
            duration=schedule.duration / 1e-6,
            reads=schedule.reads,
            speed=None if cells.mobility is None else cells.mobility.numpy(),
        )
        scale = root * full / float(held.programmed.scale)
        total += ((scale * mean[:N] - exact) ** 2).sum() + (scale**2 * np.diag(covariance)[:N]).sum()
    expected = np.sqrt(total / (ANSWER.numpy() ** 2).sum())
    assert float(expected_error(machine, held.programmed, held.root, RHS, schedule, ANSWER)) == pytest.approx(
        expected, rel=1e-9
    )


CONVERTERS = {"noise_volts_rms": 0.02, "read_bits": 8, "drive_bits": 6, "matrix_bits": 6, "read_noise_volts_rms": 0.05}


@pytest.mark.parametrize(
    "changes",
    [
        CONVERTERS,
        {**CONVERTERS, "rail_volts": 1.2, "offset_mismatch": 0.05},
        {**CONVERTERS, "dead_cells": 0.3, "dead_converters": 0.3, "stuck_cells": 0.2},
    ],
    ids=["converters", "rails", "defects"],
)
def test_measured_errors_follow_it(changes: dict[str, float], generator: torch.Generator) -> None:
    machine = Machine(MachineSpec(**{"name": "m", "tau": 1e-6, **changes}), serial=2, tolerance=0.0)
    schedule = Schedule(8e-6, 8e-6, 4)
    held, _ = program(machine, Dense(MATRIX), None, circuit=ExactDynamics, generator=generator)
    expected = float(expected_error(machine, held.programmed, held.root, RHS, schedule, ANSWER))
    repeats = 4000
    found = ThermodynamicSolve(machine, schedule).solve(held, RHS.expand(repeats, *RHS.shape), generator=generator).value
    squares = (found - ANSWER).flatten(1).square().sum(-1) / ANSWER.square().sum()
    z = float((squares.mean() - expected**2) / (squares.std() / repeats**0.5))
    assert abs(z) < 4
    assert float(squares.std() / repeats**0.5) < 0.02 * expected**2


def test_a_crossbar_has_no_noise_and_its_own_law() -> None:
    machine = Machine(MachineSpec(name="m", tau=1e-6, noise_volts_rms=0.5, amplifier_gain=200.0))
    held, _ = program(machine, Dense(MATRIX), None, circuit=ClosedLoop(200.0))
    found = Crossbar(machine, settle_seconds=9e-6).solve(held, RHS).value
    error = float((found - ANSWER).norm() / ANSWER.norm())
    assert float(expected_error(machine, held.programmed, held.root, RHS, Schedule(9e-6, 0.0, 1), ANSWER)) == pytest.approx(
        error, rel=1e-9
    )


def test_a_law_without_modes_is_refused() -> None:
    machine = Machine(MachineSpec(name="m", tau=1e-6))
    held, _ = program(machine, Dense(MATRIX), None, circuit=SettledApproximation)
    with pytest.raises(
        ValueError, match="a closed form needs the modes: program with circuit=ExactDynamics, got the settled approximation"
    ):
        expected_error(machine, held.programmed, held.root, RHS, Schedule(1e-6, 0.0, 1), ANSWER)
