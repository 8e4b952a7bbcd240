"""Covariance read-outs: law (d) by z-scores, converters in every read, and positive semidefiniteness."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import ExactDynamics, Machine, MachineSpec, SettledApproximation, with_bits
from heatbath.machines.dynamics.ornstein_uhlenbeck import covariance_variance
from heatbath.machines.oracle import oracle
from tests.machines.truth import spd

TAU = 1e-6
NOISY = MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.3)


@pytest.mark.parametrize("reads,interval", [(40, 0.5), (300, 0.05), (1, 1.0)])
def test_law_d_by_z_scores(reads: int, interval: float, generator: torch.Generator) -> None:
    repeats, held = 10_000, spd(3, 8.0)
    machine = Machine(NOISY)
    programmed = machine.program(held.expand(repeats, 3, 3), circuit=ExactDynamics)
    reading = machine.read_covariance(programmed, reads=reads, interval=interval * TAU, burn_in=200 * TAU, generator=generator)
    modes, rates = oracle(programmed).dynamics.modes[0], oracle(programmed).dynamics.rates[0]
    samples = 0.09 * modes.mT @ (reading.inverse * programmed.scale[:, None, None]) @ modes
    mean = torch.diag(0.09 / rates)
    variance = covariance_variance(rates, interval=interval, reads=reads, noise=0.09)
    assert float(((samples.mean(0) - mean) / (variance / repeats).sqrt()).abs().max()) < 4.5
    if reads > 1:  # entries are nearly Gaussian averages: Var of a sample variance is 2 σ⁴/N up to their excess kurtosis
        kurtosis = ((samples - mean) ** 4).mean(0) / variance**2
        error = ((kurtosis - 1) / repeats).sqrt()
        assert float(((samples.var(0) / variance - 1) / error).abs().max()) < 4.5


def test_cold_start_is_not_yet_stationary(generator: torch.Generator) -> None:
    rate, machine = 1.0, Machine(NOISY)
    programmed = machine.program(torch.eye(1, dtype=torch.float64).expand(20_000, 1, 1), circuit=ExactDynamics)
    reading = machine.read_covariance(programmed, reads=1, interval=TAU, burn_in=0.2 * TAU, generator=generator)
    expected = 1 - torch.exp(torch.tensor(-2 * rate * 0.2))
    assert float(reading.inverse.mean()) == pytest.approx(float(expected), abs=4.5 * float(expected) * (2 / 20_000) ** 0.5)


@pytest.mark.parametrize("law", [ExactDynamics, SettledApproximation])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("reads", [12, 40])
def test_estimates_are_symmetric_and_positive_semidefinite(law: type, bits: int | None, reads: int) -> None:
    machine = Machine(with_bits(NOISY, read=bits))
    programmed = machine.program(spd(15, 50.0, stack=(20,)), circuit=law)
    reading = machine.read_covariance(programmed, reads=reads, interval=TAU, burn_in=200 * TAU)
    torch.testing.assert_close(reading.inverse, reading.inverse.mT)
    values = torch.linalg.eigvalsh(reading.inverse)
    assert float((values[:, 0] / values[:, -1]).min()) > -1e-12


@pytest.mark.parametrize("law,reads", [(ExactDynamics, 4000), (SettledApproximation, 4000), (SettledApproximation, 10)])
def test_independent_reads_have_wishart_errors(law: type, reads: int, generator: torch.Generator) -> None:
    repeats = 800 if reads < 100 else 100
    matrix, machine = 5 * spd(20, 4.0), Machine(NOISY)
    programmed = machine.program(matrix.expand(repeats, 20, 20), circuit=law)
    reading = machine.read_covariance(programmed, reads=reads, interval=40 * TAU, burn_in=200 * TAU, generator=generator)
    inverse = torch.linalg.inv(matrix)
    error = ((inverse.square() + torch.outer(inverse.diagonal(), inverse.diagonal())) / reads).sqrt()
    z = (reading.inverse - inverse) / error
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.05)
    assert float((z.mean(0) * repeats**0.5).abs().max()) < 4.5


def test_coarse_converter_adds_its_rounding_variance_to_the_diagonal(generator: torch.Generator) -> None:
    machine = Machine(with_bits(NOISY, read=5))
    programmed = machine.program(torch.eye(2, dtype=torch.float64))
    reading = machine.read_covariance(programmed, reads=100_000, interval=20 * TAU, burn_in=20 * TAU, generator=generator)
    step = 2.0 / 15  # rms 0.3, four times that rounds up to a full scale of 2 in 15 steps a side
    expected = 1 + step**2 / 12 / 0.09
    assert float(reading.inverse.diagonal().mean()) == pytest.approx(expected, abs=4.5 * expected * 1e5**-0.5)
    assert int(reading.read_clipped) == 0


def test_read_noise_and_rails_act_on_every_read(generator: torch.Generator) -> None:
    spec = MachineSpec(name="rough", tau=TAU, noise_volts_rms=0.3, read_noise_volts_rms=0.4, rail_volts=1.0)
    machine = Machine(spec)
    programmed = machine.program(torch.eye(1, dtype=torch.float64))
    reading = machine.read_covariance(programmed, reads=100_000, interval=20 * TAU, burn_in=20 * TAU, generator=generator)
    assert float(reading.inverse) == pytest.approx(1 + 0.16 / 0.09, rel=0.02)


def test_offset_shows_in_the_uncentred_covariance(generator: torch.Generator) -> None:
    spec = MachineSpec(name="offset", tau=TAU, noise_volts_rms=0.3, offset_mismatch=0.2)
    for law in (ExactDynamics, SettledApproximation):
        machine = Machine(spec, serial=1)
        programmed = machine.program(torch.eye(2, dtype=torch.float64), circuit=law)
        reading = machine.read_covariance(programmed, reads=50_000, interval=20 * TAU, burn_in=20 * TAU, generator=generator)
        expected = torch.eye(2) + torch.outer(oracle(programmed).network.offset, oracle(programmed).network.offset) / 0.09
        torch.testing.assert_close(reading.inverse, expected, rtol=0.04, atol=0.03)


def test_machine_without_noise_is_refused() -> None:
    machine = Machine(MachineSpec(name="silent", tau=TAU))
    with pytest.raises(ValueError, match="'silent' has no noise to read; give it a temperature or noise_volts_rms"):
        machine.read_covariance(machine.program(torch.eye(2)), reads=3, interval=TAU, burn_in=TAU)


def test_temperature_does_not_change_the_relative_error() -> None:
    estimates = []
    for volts in (1e-6, 0.3):
        machine = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=volts))
        programmed = machine.program(spd(4, 4.0))
        generator = torch.Generator().manual_seed(7)
        estimates.append(
            machine.read_covariance(programmed, reads=50, interval=TAU, burn_in=100 * TAU, generator=generator).inverse
        )
    torch.testing.assert_close(*estimates, rtol=1e-9, atol=0.0)
