"""Cells with inertia against Van Loan, their overdamped limit, and the machine that was built."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.machines.dynamics import Clock, average
from heatbath.machines.dynamics.ringing import advance, resonator
from heatbath.machines.oracle import oracle
from tests.machines.truth import LinearProcess, reading, spd, worst_z

NOISE, DRIVE, START = 0.2, 0.7, -0.4
TIMINGS = [(0.0, 2.0, None), (0.7, 6.0, None), (0.7, 4.0, 9), (1.5, 0.0, 1), (30.0, 25.0, None)]


@pytest.mark.parametrize("burn_in,duration,reads", TIMINGS)
@pytest.mark.parametrize("rate,inertia", [(1.0, 2.0), (0.1, 0.3), (3.0, 0.02), (0.01, 5.0)])
def test_moments_equal_van_loan(rate: float, inertia: float, burn_in: float, duration: float, reads: int | None) -> None:
    law = average(torch.tensor([rate], dtype=torch.float64), Clock(burn_in, duration, reads), noise=NOISE, inertia=inertia)
    mean, covariance = reading(
        np.array([[0.0, 1.0], [-rate / inertia, -1 / inertia]]),
        np.array([0.0, DRIVE / inertia]),
        np.diag([0.0, 2 * NOISE / inertia**2]),
        start=np.array([START, 0.0]),
        burn_in=burn_in,
        duration=duration,
        reads=reads,
    )
    carry, gain, spread = law.carry[0, :, 0], law.gain[0], law.covariance[0]
    means = carry * START + gain * DRIVE
    got = [means[-1], spread[-1, -1], means[0], spread[0, 0], spread[-1, 0]]
    truth = [mean[0], covariance[0, 0], mean[2], covariance[2, 2], covariance[0, 2]]
    np.testing.assert_allclose([float(x) for x in got], truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reads", [None, 7])
def test_inertia_vanishing_gives_the_overdamped_law(reads: int | None) -> None:
    rates, clock = torch.tensor([0.3, 1.0], dtype=torch.float64), Clock(1.0, 3.0, reads)
    heavy, light = average(rates, clock, noise=NOISE, inertia=1e-7), average(rates, clock, noise=NOISE)
    of_start = [heavy.carry[..., [0, -1], 0], light.carry[..., 0]]
    of_drive = [heavy.gain[..., [0, -1]], light.gain]
    spread = [heavy.covariance[..., [0, -1], :][..., [0, -1]], light.covariance]
    for pair in (of_start, of_drive, spread):
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-7)


def test_doubling_is_accurate_where_plain_van_loan_fails() -> None:
    drift = np.array([[0.0, 1.0], [-4.0, -1.0]])
    push, diffusion, time = np.array([0.0, 1.0]), np.diag([0.0, 2.0]), 200.0
    step = advance(*(torch.tensor(x) for x in (drift, push[:, None], diffusion)), time)
    stationary = scipy.linalg.solve_continuous_lyapunov(drift, -diffusion)
    np.testing.assert_allclose(step.covariance.numpy(), stationary, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(step.gain.squeeze().numpy(), -np.linalg.solve(drift, push), rtol=1e-12, atol=1e-12)


def test_ringing_machine_by_z_scores(generator: torch.Generator) -> None:
    spec = MachineSpec(
        name="ringing", resistance=1e3, capacitance=1e-9, inductance=2e-3, noise_volts_rms=0.3, capacitance_mismatch=0.1
    )
    assert spec.inertia == pytest.approx(2.0)
    tau, held, machine = 1e-6, spd(2, 4.0), Machine(spec)
    programmed = machine.program(held)
    drive = torch.tensor([1.0, -0.4], dtype=torch.float64)
    result = machine.run(programmed, drive.expand(20_000, 2), schedule=Schedule(tau, 3 * tau), generator=generator)
    unit, c = (held / programmed.scale).numpy(), 1 / oracle(programmed).network.cells.mobility.numpy()
    zero, eye, p = np.zeros((2, 2)), np.eye(2), np.diag(1 / c)
    mean, covariance = reading(
        np.block([[zero, eye], [-p @ unit / 2.0, -eye / 2.0]]),
        np.concatenate([np.zeros(2), p @ drive.numpy() / 2.0]),
        np.block([[zero, zero], [zero, 2 * 0.09 * p / 4.0]]),
        start=np.zeros(4),
        burn_in=1.0,
        duration=3.0,
        reads=None,
    )
    keep = [0, 1, 4, 5]
    volts = torch.cat([result.mean / result.scale, result.end], -1)
    assert worst_z(volts, mean[keep], covariance[np.ix_(keep, keep)]) < 4.5


@pytest.mark.parametrize("inertia", [None, 0.5])
def test_resonators_relax_to_the_inverse_of_their_capacitances(inertia: float | None) -> None:
    rates = torch.tensor([0.2, 1.0], dtype=torch.float64)
    late = resonator(rates, inertia, 400.0)
    torch.testing.assert_close(late.covariance[..., 0, 0], 1 / rates, rtol=1e-10, atol=0.0)
    early = resonator(rates, inertia, 0.7)
    for i, rate in enumerate(rates.tolist()):
        if inertia is None:
            drift, diffusion = np.array([[-1 / rate]]), np.array([[2 / rate**2]])
        else:
            drift, diffusion = np.array([[-1 / rate, -1 / (inertia * rate)], [1.0, 0.0]]), np.diag([2 / rate**2, 0.0])
        truth = LinearProcess(np.zeros(len(drift)))
        truth.advance(drift, np.zeros(len(drift)), diffusion, 0.7)
        np.testing.assert_allclose(early.of_state().covariance[i].numpy(), truth.covariance, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("inductance", [None, 1e-3])
def test_capacitive_machine_inverts_by_covariance_and_refuses_to_solve(
    inductance: float | None, generator: torch.Generator
) -> None:
    spec = MachineSpec(
        name="built", coupling="capacitive", resistance=1e3, capacitance=1e-9, inductance=inductance, noise_volts_rms=0.1
    )
    matrix, machine, tau, reads = 3 * spd(3, 4.0), Machine(spec), 1e-6, 20_000
    programmed = machine.program(matrix)
    result = machine.read_covariance(programmed, reads=reads, interval=40 * tau, burn_in=200 * tau, generator=generator)
    inverse = torch.linalg.inv(matrix)
    error = ((inverse.square() + torch.outer(inverse.diagonal(), inverse.diagonal())) / reads).sqrt()
    assert float(((result.inverse - inverse) / error).abs().max()) < 4.5
    with pytest.raises(ValueError, match="holds the matrix in capacitances, so its mean is no solution; use read_covariance"):
        machine.run(programmed, torch.ones(3, dtype=torch.float64), schedule=Schedule(tau, tau))
