"""The closed-form laws of the Ornstein–Uhlenbeck process against Van Loan and kernel sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from heatbath.machines.process import (
    burnt_in_covariance,
    continuous_average,
    covariance_variance,
    omega,
    phi,
    psi,
    read_correlation,
    relative_error,
    sampled_average,
)
from tests.machines.truth import machine_reading, reading, spd

RATES = [0.003, 0.05, 0.4, 1.0, 3.0]
NOISE, DRIVE, START, SPREAD = 0.2, 0.7, -0.4, 0.05


def _law(moments, start: float, drive: float) -> tuple[float, float, float, float, float]:
    return tuple(
        float(x)
        for x in (
            moments.carry * start + moments.gain * drive,
            moments.variance,
            moments.end_carry * start + moments.end_gain * drive,
            moments.end_variance,
            moments.covariance,
        )
    )


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
    law = continuous_average(
        torch.tensor([rate], dtype=torch.float64), burn_in=burn_in, duration=duration, noise=NOISE, start_variance=SPREAD
    )
    truth = _truth(rate, burn_in=burn_in, duration=duration, reads=None)
    np.testing.assert_allclose(_law(law, START, DRIVE), truth, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    "burn_in,duration,reads", [(0.0, 4.0, 1), (0.6, 0.01, 3), (2.0, 7.0, 40), (5.0, 9.0, 97), (1.0, 0.0, 1)]
)
def test_law_b_and_c_of_sampled_averages_equal_van_loan(rate: float, burn_in: float, duration: float, reads: int) -> None:
    law = sampled_average(
        torch.tensor([rate], dtype=torch.float64),
        burn_in=burn_in,
        duration=duration,
        reads=reads,
        noise=NOISE,
        start_variance=SPREAD,
    )
    truth = _truth(rate, burn_in=burn_in, duration=duration, reads=reads)
    np.testing.assert_allclose(_law(law, START, DRIVE), truth, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rate", [0.1, 0.9, 2.5])
def test_law_a_has_the_published_form(rate: float) -> None:
    burn_in, duration = 0.7, 3.0
    u = rate * duration
    f, p = (1 - math.exp(-u)) / u, 2 * (u - 1 + math.exp(-u)) / u**2
    fixed, fade = DRIVE / rate, math.exp(-rate * burn_in)
    law = continuous_average(
        torch.tensor([rate], dtype=torch.float64), burn_in=burn_in, duration=duration, noise=NOISE, start_variance=SPREAD
    )
    mean, variance, _, _, covariance = _law(law, START, DRIVE)
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
    law = sampled_average(
        torch.tensor([rate], dtype=torch.float64), burn_in=burn_in, duration=reads * interval, reads=reads, noise=NOISE
    )
    mean, variance, *_ = _law(law, START, DRIVE)
    fixed, fade = DRIVE / rate, math.exp(-rate * burn_in)
    assert mean == pytest.approx(fixed + (START - fixed) * fade * g / reads, rel=1e-12)
    assert variance == pytest.approx(NOISE / (rate * reads**2) * (k - fade**2 * g**2), rel=1e-11)


def test_averages_stay_exact_as_the_rate_goes_to_zero_and_below() -> None:
    rates = torch.tensor([-0.2, -1e-9, 0.0, 1e-300, 1e-13, 1e-6], dtype=torch.float64)
    for law, reads in (
        (continuous_average(rates, burn_in=0.5, duration=2.0, noise=NOISE), None),
        (sampled_average(rates, burn_in=0.5, duration=2.0, reads=8, noise=NOISE), 8),
    ):
        for i, rate in enumerate(rates.tolist()):
            mean, covariance = reading(
                np.array([[-rate]]),
                np.array([DRIVE]),
                np.array([[2 * NOISE]]),
                start=np.array([START]),
                burn_in=0.5,
                duration=2.0,
                reads=reads,
            )
            assert float(law.carry[i] * START + law.gain[i] * DRIVE) == pytest.approx(mean[0], rel=1e-11)
            assert float(law.variance[i]) == pytest.approx(covariance[0, 0], rel=1e-10)


def test_a_runaway_mode_stays_finite() -> None:
    law = continuous_average(torch.tensor([-1e9], dtype=torch.float64), burn_in=100.0, duration=100.0, noise=NOISE)
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


def test_law_e_equals_van_loan_for_a_burnt_in_average() -> None:
    held = spd(4, 3.0)
    _, covariance = machine_reading(held.numpy(), np.ones(4), noise=NOISE, burn_in=80.0, duration=100.0, reads=None)
    law = burnt_in_covariance(torch.linalg.inv(held), duration=100.0, noise=NOISE)
    np.testing.assert_allclose(law.numpy(), covariance[:4, :4], rtol=1e-10)


def test_relative_error_is_law_e_to_first_order() -> None:
    held = spd(4, 3.0)
    inverse, solution = torch.linalg.inv(held), torch.ones(4, dtype=torch.float64)
    spread = burnt_in_covariance(inverse, duration=1e6, noise=NOISE).trace()
    predicted = relative_error(inverse, solution, duration=1e6, noise=NOISE)
    assert float(predicted) == pytest.approx(float((spread / 4).sqrt()), rel=1e-5)
