"""The closed loop against Kirchhoff's law, solved densely and integrated by matrix exponentials."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heatbath.machines import ClosedLoop, Machine, MachineSpec, Schedule
from heatbath.machines.emulator.imperfections import CAPACITANCE, mismatch_like
from heatbath.machines.oracle import oracle

TAU = 1e-6
IDEAL = Machine(MachineSpec(name="loop", tau=TAU))


def matrix_of(n: int = 5, seed: int = 0) -> Tensor:
    g = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a = g @ g.T / n + 0.3 * torch.eye(n)
    return a / a.abs().max()


def kirchhoff(matrix: Tensor, gain: float | None) -> tuple[Tensor, Tensor]:
    """Rates matrix F and input weights u of dx = −Fx + ub, row by row from currents into each amplifier's input."""
    n = len(matrix)
    rates, weights = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        total = 1.0 + sum(abs(float(matrix[i, j])) for j in range(n))  # all conductances at this node, the drive's included
        for j in range(n):
            rates[i, j] = matrix[i, j] / total
        rates[i, i] += 0.0 if gain is None else 1 / gain
        weights[i] = 1 / total
    return rates, weights


def answer(matrix: Tensor, drive: Tensor, seconds: float, gain: float | None, machine: Machine = IDEAL) -> Tensor:
    programmed = machine.program(matrix, circuit=ClosedLoop(gain))
    return machine.run(programmed, drive, schedule=Schedule(seconds, 0.0, reads=1)).mean


@pytest.mark.parametrize("gain", [None, 50.0, 1e4])
@pytest.mark.parametrize("taus", [0.5, 3.0, 30.0, 3000.0])
def test_settling_curve_is_the_circuits(gain: float | None, taus: float) -> None:
    matrix, drive = matrix_of(), torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rates, weights = kirchhoff(matrix, gain)
    settled = torch.linalg.solve(rates, weights * drive)
    want = settled - torch.linalg.matrix_exp(-rates * taus) @ settled
    torch.testing.assert_close(answer(matrix, drive, taus * TAU, gain), want, rtol=1e-10, atol=1e-12)


def test_slowest_rate_is_the_smallest_eigenvalue_of_the_associated_matrix() -> None:
    matrix = matrix_of()
    for gain in (None, 100.0):
        law = oracle(IDEAL.program(matrix, circuit=ClosedLoop(gain))).dynamics
        want = torch.linalg.eigvals(kirchhoff(matrix, gain)[0]).real.min()
        torch.testing.assert_close(law.slowest, want, rtol=1e-10, atol=0)


def test_gain_error_falls_as_one_over_the_gain_and_is_bounded_by_the_rows() -> None:
    matrix, drive = matrix_of(), torch.ones(5, dtype=torch.float64)
    truth = torch.linalg.solve(matrix, drive)
    errors = [((answer(matrix, drive, 1.0, gain) - truth).norm() / truth.norm()).item() for gain in (1e3, 1e4, 1e5)]
    row = (1 + matrix.abs().sum(-1)).max() / torch.linalg.eigvalsh(matrix)[0]
    assert errors[0] <= row.item() / 1e3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.005)


def test_noise_and_inertia_are_left_out() -> None:
    spec = MachineSpec(name="rlc", resistance=1e3, capacitance=1e-9, inductance=1e-3, noise_volts_rms=0.1)
    matrix, drive = matrix_of(), torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(
        answer(matrix, drive, 5 * TAU, 1e3, Machine(spec)), answer(matrix, drive, 5 * TAU, 1e3), rtol=1e-12, atol=0
    )


def test_mismatched_amplifiers_settle_at_their_own_pace_to_the_same_answer() -> None:
    uneven = Machine(MachineSpec(name="uneven", tau=TAU, capacitance_mismatch=0.2), serial=3)
    matrix, drive = matrix_of(), torch.ones(5, dtype=torch.float64)
    speed = torch.exp(-0.2 * mismatch_like(matrix[0], [3], CAPACITANCE, (5,)))
    rates, weights = kirchhoff(matrix, None)
    rates, weights = speed[:, None] * rates, speed * weights
    settled = torch.linalg.solve(matrix, drive)
    want = settled - torch.linalg.matrix_exp(-rates * 4) @ settled
    torch.testing.assert_close(answer(matrix, drive, 4 * TAU, None, uneven), want, rtol=1e-10, atol=1e-12)


def test_it_says_what_it_is_and_has_no_noise() -> None:
    machine = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.1))
    programmed = machine.program(matrix_of(), circuit=ClosedLoop())
    assert oracle(programmed).dynamics.name == "closed loop"
    reading = machine.read_covariance(programmed, reads=10, interval=TAU, burn_in=TAU)
    assert not reading.inverse.any()


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_gains_that_amplify_nothing_are_refused(gain: float) -> None:
    with pytest.raises(ValueError, match=f"positive, or None if infinite, got {gain}"):
        ClosedLoop(gain)
