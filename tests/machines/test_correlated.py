"""Machines under correlated noise: their stationary covariance solves the Lyapunov equation."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from torch import Tensor

from heatbath.machines import CorrelatedNoise, Machine, MachineSpec, Schedule
from heatbath.machines.dynamics import Clock
from heatbath.machines.emulator.imperfections import CAPACITANCE, NOISE_INTENSITY, mismatch_like
from heatbath.machines.oracle import oracle

TAU = 1e-6
NOISY = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.1))


def psd(n: int, seed: int) -> Tensor:
    g = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a = g @ g.T / n + 0.2 * torch.eye(n)
    return a / a.abs().max()


def stationary(machine: Machine, matrix: Tensor, noise: Tensor) -> Tensor:
    """The covariance of one late read, drawn from the law's root; over 1/β."""
    programmed = machine.program(matrix, circuit=CorrelatedNoise(noise), schedule=Schedule(1000 * TAU, 0.0, reads=1))
    assert oracle(programmed).dynamics.clock == Clock.of(Schedule(1000 * TAU, 0.0, reads=1), TAU)
    root = oracle(programmed).dynamics.root[: len(matrix)]
    modes = oracle(programmed).dynamics.modes
    return modes @ root @ root.T @ modes.T / machine.spec.noise


def test_stationary_covariance_solves_the_lyapunov_equation() -> None:
    matrix, noise = psd(4, 0), psd(4, 1)
    want = torch.from_numpy(scipy.linalg.solve_continuous_lyapunov(matrix.numpy(), 2 * noise.numpy()))
    got = stationary(NOISY, matrix, noise)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    programmed = NOISY.program(matrix, circuit=CorrelatedNoise(noise))
    torch.testing.assert_close(oracle(programmed).dynamics.spread, want.diagonal(), rtol=1e-9, atol=1e-10)


def test_white_noise_is_the_ordinary_machine_and_noise_like_the_matrix_the_white_state() -> None:
    matrix, eye = psd(4, 0), torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(stationary(NOISY, matrix, eye), torch.linalg.inv(matrix), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(stationary(NOISY, matrix, matrix), eye, rtol=1e-9, atol=1e-10)


def test_uneven_cells_and_sources_go_their_own_way() -> None:
    spec = MachineSpec(name="uneven", tau=TAU, noise_volts_rms=0.1, capacitance_mismatch=0.1, noise_mismatch=0.2)
    machine = Machine(spec, serial=2)
    matrix, noise = psd(4, 0), psd(4, 1)
    speed = torch.exp(-0.1 * mismatch_like(matrix[0], [2], CAPACITANCE, (4,)))
    loud = torch.exp(0.2 * mismatch_like(matrix[0], [2], NOISE_INTENSITY, (4,)))  # rms
    source = loud[:, None] * noise * loud
    drift = speed[:, None] * matrix
    force = speed.sqrt()[:, None] * source * speed.sqrt()
    want = torch.from_numpy(scipy.linalg.solve_continuous_lyapunov(drift.numpy(), 2 * force.numpy()))
    torch.testing.assert_close(stationary(machine, matrix, noise), want, rtol=1e-9, atol=1e-10)


def test_covariance_read_out_shows_it() -> None:
    copies, reads = 400, 100
    matrix, noise = psd(3, 0), psd(3, 1)
    want = torch.from_numpy(scipy.linalg.solve_continuous_lyapunov(matrix.numpy(), 2 * noise.numpy()))
    stack = matrix.expand(copies, 3, 3)
    programmed = NOISY.program(stack, circuit=CorrelatedNoise(noise.expand(copies, 3, 3)))
    reading = NOISY.read_covariance(
        programmed, reads=reads, interval=200 * TAU, burn_in=1000 * TAU, generator=torch.Generator().manual_seed(1)
    )
    own = want.diagonal()
    deviation = ((own[:, None] * own + want.square()) / (copies * reads)).sqrt()  # Isserlis, independent reads
    assert (((reading.inverse.mean(0) - want) / deviation).abs() < 4).all()


def test_bad_covariances_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a noise covariance must be square, \[\*stack, n, n\], got shape \(2, 3\)"):
        CorrelatedNoise(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must be within full scale 1, got 2; divide by the largest and scale the result"):
        CorrelatedNoise(2 * torch.eye(3))
    assert math.isclose(CorrelatedNoise(torch.eye(3)).covariance.sum().item(), 3)
