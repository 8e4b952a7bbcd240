"""The law of the critical batch size, found again in numbers made by it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heatbath.experiments.studies.critical import CONFIDENCE, Estimate, fit_critical

SIZES = [16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]


def law(batch: float, smallest: float, critical: float) -> float:
    return smallest * (1 + critical / batch)


@pytest.mark.parametrize(("smallest", "critical"), [(10.0, 30.0), (25.0, 200.0), (400.0, 1500.0)])
def test_the_fit_finds_the_constants_of_exact_numbers(smallest: float, critical: float) -> None:
    fit = fit_critical(SIZES, [law(b, smallest, critical) for b in SIZES])
    assert fit is not None
    assert fit.smallest.value == pytest.approx(smallest, rel=1e-5)
    assert fit.critical.value == pytest.approx(critical, rel=1e-5)
    assert fit.steps(300.0) == pytest.approx(law(300.0, smallest, critical), rel=1e-5)


def test_the_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """300 sets of seven sizes and three seeds with 10 % of scatter: the share of hits is binomial."""
    random, trials = np.random.default_rng(5), 300
    sizes = [b for b in SIZES for _ in range(3)]
    hits = {"smallest": 0, "critical": 0}
    for _ in range(trials):
        fit = fit_critical(sizes, [law(b, 20.0, 150.0) * math.exp(0.1 * random.standard_normal()) for b in sizes])
        assert fit is not None
        for name, truth in (("smallest", 20.0), ("critical", 150.0)):
            low, high = getattr(fit, name).interval
            hits[name] += low <= truth <= high
    error = (CONFIDENCE * (1 - CONFIDENCE) / trials) ** 0.5
    for count in hits.values():
        assert abs(count / trials - CONFIDENCE) < 4.5 * error


def test_where_every_batch_halves_the_steps_the_critical_size_is_not_determined() -> None:
    random = np.random.default_rng(1)
    fit = fit_critical(SIZES, [1e5 / b * math.exp(0.05 * random.standard_normal()) for b in SIZES])
    assert fit is not None
    assert fit.critical.interval[1] > 100 * SIZES[-1]


def test_a_ratio_adds_relative_errors_in_square_and_takes_the_fewer_degrees_of_freedom() -> None:
    ratio = Estimate(6.0, 0.3, 19).over(Estimate(2.0, 0.4, 7))
    assert ratio == Estimate(3.0, pytest.approx(0.5), 7)  # type: ignore[arg-type]
    low, high = ratio.interval
    assert low * high == pytest.approx(9.0)
    assert math.log(high / 3.0) == pytest.approx(2.3646 * 0.5, rel=1e-4)  # t of 7 degrees of freedom, from a printed table


def test_of_what_is_not_known_everything_is_possible() -> None:
    assert Estimate(2.0, math.inf, 3).interval == (0.0, math.inf)


def test_too_few_batch_sizes_make_no_fit() -> None:
    assert fit_critical([16.0, 16.0, 32.0], [9.0, 8.0, 5.0]) is None


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="a batch size is needed for each number of steps, got 1 and 2"):
        fit_critical([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="must be positive and finite: leave out runs that did not reach"):
        fit_critical([1.0, 2.0], [1.0, math.inf])
