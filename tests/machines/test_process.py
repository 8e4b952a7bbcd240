"""The closed-form laws of the Ornstein–Uhlenbeck process against Van Loan and kernel sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from heatbath.machines.dynamics import Clock, GaussianTransition, average, transition
from heatbath.machines.dynamics.ornstein_uhlenbeck import covariance_variance, omega, phi, psi, read_correlation
from heatbath.machines.dynamics.transition import psd_root, walk
from tests.machines.truth import machine_reading, reading, spd

RATES = [0.003, 0.05, 0.4, 1.0, 3.0]
NOISE, DRIVE, START, SPREAD = 0.2, 0.7, -0.4, 0.05


def _average(rates: list[float], burn_in: float, duration: float, reads: int | None) -> GaussianTransition:
    return average(torch.tensor(rates, dtype=torch.float64), Clock(burn_in, duration, reads), noise=NOISE)


def _law(moments: GaussianTransition, start: float, spread: float, drive: float) -> tuple[float, float, float, float, float]:
    """Mean and variance of the reading and of the end, and their covariance, from a start of variance `spread`."""
    carry, gain, covariance = (part[0] for part in (moments.carry, moments.gain, moments.covariance))
    mean = carry[:, 0] * start + gain * drive
    covariance = covariance + spread * torch.outer(carry[:, 0], carry[:, 0])
    return tuple(float(x) for x in (mean[1], covariance[1, 1], mean[0], covariance[0, 0], covariance[0, 1]))


def _truth(rate: float, **timing) -> tuple[float, ...]:
    mean, covariance = reading(
        np.array([[-rate]]),
        np.array([DRIVE]),
        np.array([[2 * NOISE]]),
        start=np.array([START]),
        start_covariance=np.array([[SPREAD]]),
        **timing,
    )
    return mean[0], covariance[0, 0], mean[1], covariance[1, 1], covariance[0, 1]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("burn_in,duration", [(0.0, 4.0), (0.6, 0.01), (2.0, 7.0), (5.0, 30.0)])
def test_law_a_and_c_of_continuous_averages_equal_van_loan(rate: float, burn_in: float, duration: float) -> None:
    law = _average([rate], burn_in, duration, None)
    truth = _truth(rate, burn_in=burn_in, duration=duration, reads=None)
    np.testing.assert_allclose(_law(law, START, SPREAD, DRIVE), truth, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    "burn_in,duration,reads", [(0.0, 4.0, 1), (0.6, 0.01, 3), (2.0, 7.0, 40), (5.0, 9.0, 97), (1.0, 0.0, 1)]
)
def test_law_b_and_c_of_sampled_averages_equal_van_loan(rate: float, burn_in: float, duration: float, reads: int) -> None:
    law = _average([rate], burn_in, duration, reads)
    truth = _truth(rate, burn_in=burn_in, duration=duration, reads=reads)
    np.testing.assert_allclose(_law(law, START, SPREAD, DRIVE), truth, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rate", [0.1, 0.9, 2.5])
def test_law_a_has_the_published_form(rate: float) -> None:
    burn_in, duration = 0.7, 3.0
    u = rate * duration
    f, p = (1 - math.exp(-u)) / u, 2 * (u - 1 + math.exp(-u)) / u**2
    fixed, fade = DRIVE / rate, math.exp(-rate * burn_in)
    law = _average([rate], burn_in, duration, None)
    mean, variance, _, _, covariance = _law(law, START, SPREAD, DRIVE)
    assert mean == pytest.approx(fixed + (START - fixed) * fade * f, rel=1e-12)
    assert variance == pytest.approx(NOISE / rate * (p - (1 - rate * SPREAD / NOISE) * fade**2 * f**2), rel=1e-12)
    late = math.exp(-rate * (2 * burn_in + duration))
    assert covariance == pytest.approx(f * NOISE / rate * (1 - late) + f * late * SPREAD, rel=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.9, 2.5])
def test_law_b_has_the_published_form(rate: float) -> None:
    burn_in, interval, reads = 0.7, 0.2, 12
    r = math.exp(-rate * interval)
    g = (1 - r**reads) / (1 - r)
    k = (reads * (1 - r**2) - 2 * r * (1 - r**reads)) / (1 - r) ** 2
    law = _average([rate], burn_in, reads * interval, reads)
    mean, variance, *_ = _law(law, START, 0.0, DRIVE)
    fixed, fade = DRIVE / rate, math.exp(-rate * burn_in)
    assert mean == pytest.approx(fixed + (START - fixed) * fade * g / reads, rel=1e-12)
    assert variance == pytest.approx(NOISE / (rate * reads**2) * (k - fade**2 * g**2), rel=1e-11)


def test_averages_stay_exact_as_the_rate_goes_to_zero_and_below() -> None:
    for reads in (None, 8):
        for rate in (-0.2, -1e-9, 0.0, 1e-300, 1e-13, 1e-6):
            mean, covariance = reading(
                np.array([[-rate]]),
                np.array([DRIVE]),
                np.array([[2 * NOISE]]),
                start=np.array([START]),
                burn_in=0.5,
                duration=2.0,
                reads=reads,
            )
            found = _law(_average([rate], 0.5, 2.0, reads), START, 0.0, DRIVE)
            assert found[0] == pytest.approx(mean[0], rel=1e-11)
            assert found[1] == pytest.approx(covariance[0, 0], rel=1e-10)


def test_a_runaway_mode_stays_finite() -> None:
    law = _average([-1e9], 100.0, 100.0, None)
    assert all(bool(torch.isfinite(part).all()) for part in vars(law).values())


def test_phi_psi_omega_join_their_series_smoothly() -> None:
    u = torch.tensor([1e-12, 1e-3, 0.499999, 0.500001, 2.0, 60.0], dtype=torch.float64)
    for name, function in (("phi", phi), ("psi", psi), ("omega", omega)):
        for value, got in zip(u.tolist(), function(u).tolist(), strict=True):
            assert got == pytest.approx(_by_quadrature(name, value), rel=1e-12), (name, value)


def _by_quadrature(name: str, u: float) -> float:
    x, w = np.polynomial.legendre.leggauss(80)
    x, w = (x + 1) / 2, w / 2
    average = float(w @ np.exp(-u * x))
    if name == "phi":
        return average
    lag = x[:, None] * (1 - x[None, :])  # s > s' mapped to the unit square
    if name == "psi":
        return float(2 * (w * x) @ np.exp(-u * lag) @ w)
    # variance of the average of a process that starts from a known state, over its duration, for 1/β = 1
    later, earlier = x[:, None], x[:, None] * x[None, :]
    kernel = 2 * earlier * np.exp(-u * (later - earlier)) * _average_exponential(2 * u * earlier)
    return float(2 * (w * x) @ kernel @ w)


def _average_exponential(u: np.ndarray) -> np.ndarray:
    return -np.expm1(-u) / u


def test_read_correlation_is_the_kernel_sum() -> None:
    index = np.arange(17)
    for r in (0.0, 0.3, 0.99, 1 - 1e-7, 1.0):
        truth = (r ** np.abs(index[:, None] - index)).sum()
        assert float(read_correlation(torch.tensor(r, dtype=torch.float64), 17)) == pytest.approx(truth, rel=1e-12)


def test_law_d_equals_the_kernel_sum_by_isserlis() -> None:
    rates, reads, interval = np.array([0.3, 1.0, 2.2]), 23, 0.4
    law = covariance_variance(torch.tensor(rates), interval=interval, reads=reads, noise=NOISE)
    lag = interval * np.abs(np.arange(reads)[:, None] - np.arange(reads))
    for i in range(3):
        for j in range(3):
            kernels = [NOISE / rate * np.exp(-rate * lag) for rate in (rates[i], rates[j])]
            truth = (1 + (i == j)) * (kernels[0] * kernels[1]).sum() / reads**2
            assert float(law[i, j]) == pytest.approx(truth, rel=1e-12)


def test_settled_noise_is_a_square_root_of_van_loan_to_second_order() -> None:
    """Covariance (2/βT) Â⁻² − (2/βT²) Â⁻³ of a burnt-in average, from which the settled approximation takes its noise."""
    held = spd(4, 3.0)
    _, covariance = machine_reading(held.numpy(), np.ones(4), noise=NOISE, burn_in=80.0, duration=100.0, reads=None)
    inverse = torch.linalg.inv(held)
    square = inverse @ inverse
    law = (2 * NOISE / 100.0) * (square - square @ inverse / 100.0)
    np.testing.assert_allclose(law.numpy(), covariance[:4, :4], rtol=1e-10)


def test_a_transition_repeated_is_the_transition_of_the_whole_time() -> None:
    rates, mixing = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64), spd(3, 5.0)
    for options in ({}, {"integral": True}, {"inertia": 0.7}, {"capacitive": True}, {"mixing": mixing, "integral": True}):
        whole, part = (transition(rates, t, noise=0.1, **options) for t in (1.2, 0.4))
        for name in ("carry", "gain", "covariance"):
            torch.testing.assert_close(getattr(part.repeated(3), name), getattr(whole, name), rtol=1e-10, atol=1e-12)


def test_steps_of_modes_that_share_noise_have_their_covariance(generator: torch.Generator) -> None:
    rates, mixing, count = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64), spd(3, 5.0), 50_000
    step = transition(rates, 0.8, noise=0.1, mixing=mixing).of_state()
    zero = torch.zeros(count, 3, dtype=torch.float64)
    first, *_ = walk(step, step, zero[:1], zero, 1, generator)
    total = rates[:, None] + rates
    expected = 0.2 * mixing * (1 - torch.exp(-total * 0.8)) / total
    error = ((expected**2 + torch.outer(expected.diagonal(), expected.diagonal())) / count).sqrt()
    assert float(((first[:, 0].mT @ first[:, 0] / count - expected) / error).abs().max()) < 4.5


def test_psd_root_takes_singular_matrices() -> None:
    singular = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    root = psd_root(singular)
    torch.testing.assert_close(root @ root.mT, singular)
