"""Exponents of known power laws, and measured times against the closed forms of the machine's laws."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress

from heatbath.costs import h100
from heatbath.experiments.studies import Complexity, Growth, Runtime, complexity_page
from heatbath.experiments.studies.complexity import (
    ERROR,
    MEASURES,
    NOISY,
    gradient_steps,
    newton_schulz_steps,
    settling_time,
    spread_matrix,
    worst_noise_time,
)
from heatbath.experiments.studies.complexity_page import verdict
from heatbath.experiments.studies.power_law import fit_power_law
from heatbath.machines import load_machine


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@given(st.floats(-4, 4), st.floats(1e-3, 1e3), st.lists(st.integers(1, 1000), min_size=2, max_size=9, unique=True))
def test_the_exponent_of_a_power_law_is_recovered(exponent: float, factor: float, x: list[int]) -> None:
    fit = fit_power_law(x, [factor * n**exponent for n in x])
    assert fit.exponent == pytest.approx(exponent, abs=1e-6)
    assert fit.factor == pytest.approx(factor, rel=1e-4)
    assert fit.error == pytest.approx(0, abs=1e-6)


def test_the_error_of_an_exponent_is_that_of_a_slope() -> None:
    """Against the textbook's estimate on many noisy fits: the spread of slopes is what one fit says of itself."""
    noise = torch.randn(4000, 12, generator=generator(), dtype=torch.float64) * 0.1
    x = [float(2**k) for k in range(12)]
    fits = [fit_power_law(x, [float(n**1.5 * math.exp(e)) for n, e in zip(x, row, strict=True)]) for row in noise]
    slopes = torch.tensor([fit.exponent for fit in fits])
    predicted = torch.tensor([fit.error for fit in fits]).square().mean().sqrt()
    assert float(slopes.std() / predicted) == pytest.approx(1, abs=4 / math.sqrt(2 * 4000) * math.sqrt(2))


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two different x and as many y, got 2 and 1"):
        fit_power_law([1, 2], [1])
    with pytest.raises(ValueError, match="at least two different x"):
        fit_power_law([3, 3], [1, 2])
    with pytest.raises(ValueError, match=r"positive values, got x from 1 and y from 0"):
        fit_power_law([1, 2], [0, 1])


def test_matrices_have_the_asked_condition_number() -> None:
    values = torch.linalg.eigvalsh(spread_matrix(9, 50.0, generator()))
    assert (float(values[0]), float(values[-1])) == pytest.approx((1 / 50, 1))
    assert torch.allclose(values.log().diff(), values.log().diff()[:1])


def test_settling_takes_the_time_at_which_the_slow_modes_are_done() -> None:
    """The error of a mean at t is Σ (c e^{−λt}/λ)² over Σ (c/λ)², in the scale in which the largest entry is 1."""
    found = settling_time(10, 30.0, generator())
    random = generator()
    matrix = spread_matrix(10, 30.0, random)
    drives = torch.randn(8, 10, generator=random, dtype=torch.float64)
    values, basis = torch.linalg.eigh(matrix)
    parts = (drives @ basis) / values
    rates = values / matrix.abs().max()

    def error(time: float) -> float:
        return float((parts * (-rates * time).exp()).norm() / parts.norm())

    assert error(found) == pytest.approx(ERROR, rel=1e-4)


def test_noise_of_the_worst_drive_takes_the_time_of_the_law() -> None:
    """rel² = 2 tr(Â⁻²)/(βT‖x̂‖²) of a settled average, where the drive fills full scale and rails are far."""
    size, condition = 12, 4.0
    found = worst_noise_time(size, condition, generator())
    matrix = spread_matrix(size, condition, generator())
    values, basis = torch.linalg.eigh(matrix)
    held = values / matrix.abs().max()
    drive = basis[:, -1] / basis[:, -1].abs().max()
    answer = float((drive / held[-1]).norm())
    law = 2 * float(held.pow(-2).sum()) * NOISY.noise / (ERROR * answer) ** 2
    # the squared error of 32 drives is a sum of weighted χ²: its relative variance is 2 Σ λ⁻⁸ / (32 (Σ λ⁻⁴)²), variances ∝ λ⁻²
    spread = math.sqrt(2 * float(held.pow(-4).sum()) / (32 * float(held.pow(-2).sum()) ** 2))
    short = 2 / (float(held[0]) * 200 * condition)  # what the law leaves out: an average is not infinitely long
    assert found / law == pytest.approx(1, abs=4 * spread + short)


def test_the_error_of_an_exponent_is_what_paper_and_scipy_say() -> None:
    """Logarithms 0, 1, 3 at 0, 1, 2: slope 3/2, residuals 1/6, −1/3, 1/6, so √((1/6)/(3 − 2)/2) = √(1/12)."""
    fit = fit_power_law([1.0, math.e, math.e**2], [1.0, math.e, math.e**3])
    assert (fit.exponent, fit.error) == (pytest.approx(1.5), pytest.approx(math.sqrt(1 / 12)))
    assert fit.factor == pytest.approx(math.exp(-1 / 6))
    assert fit.text() == "1.50 ± 0.29"
    x = [2.0, 3.0, 5.0, 9.0, 17.0]
    y = [1.0, 2.5, 3.0, 11.0, 12.0]
    other = linregress([math.log(value) for value in x], [math.log(value) for value in y])
    fit = fit_power_law(x, y)
    assert (fit.exponent, fit.error) == (pytest.approx(other.slope), pytest.approx(other.stderr))


def test_conjugate_gradients_take_as_many_steps_as_there_are_eigenvalues_and_newton_schulz_a_logarithm() -> None:
    assert gradient_steps(3, 10.0, generator()) <= 3
    steps = [newton_schulz_steps(12, k, generator()) for k in (10.0, 100.0, 1000.0)]
    assert all(2 <= b - a <= 5 for a, b in itertools.pairwise(steps))  # log₂ 10 = 3.3 more for each decade


def test_verdicts_compare_with_the_claim() -> None:
    x = (1.0, 2.0, 4.0)
    for power, claimed, expected in ((2, 2, "as claimed"), (3, 2, "grows faster"), (1, 2, "grows more slowly"), (1, None, "–")):
        assert verdict(Growth("q", "n", x, tuple(n**power for n in x), claimed)) == expected


STUDY = Complexity(
    Runtime([], load_machine("tngd-2024"), h100()), layers=(8, 16), sizes=(4, 8), conditions=(2.0, 4.0), seeds=1
)  # fmt: skip


@pytest.mark.slow
def test_measurements_are_made_once_and_end_on_the_page(tmp_path: Path) -> None:
    fresh: list[str] = []

    def watch(name: str, new: bool) -> None:
        fresh.extend([name] if new else [])

    found = STUDY.run(tmp_path, watch=watch)
    assert len([name for name in fresh if "kappa" in name]) == 4 * len(MEASURES)
    fresh.clear()
    assert STUDY.run(tmp_path, watch=watch) == found
    assert fresh == []
    kept = json.loads((tmp_path / "measured.json").read_text())
    del kept["noise-n4-kappa16-seeds1"]
    (tmp_path / "measured.json").write_text(json.dumps(kept))
    assert STUDY.run(tmp_path, watch=watch) == found
    assert fresh == ["noise-n4-kappa16-seeds1"]
    by_name = {g.quantity: g for g in found}
    assert by_name["operations to refresh by Cholesky"].law.exponent == pytest.approx(3, abs=0.01)
    assert by_name["bits to program a matrix"].law.exponent == pytest.approx(2)
    assert by_name["machine time of m drives"].law.exponent == pytest.approx(1)
    page = complexity_page(STUDY, found).write(tmp_path / "page")
    assert all(g.law.text() in page.read_text() for g in found)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two layers, sizes and conditions, and one seed"):
        Complexity(STUDY.runtime, sizes=(8,))
