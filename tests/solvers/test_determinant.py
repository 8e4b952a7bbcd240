"""Log-determinants: from Cholesky, from work along a path on a machine, and from any solver's inverses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from heatbath.machines import Fault, FaultInjector, Machine, MachineSpec
from heatbath.solvers import Cholesky, ConjugateGradient, Fluctuations, NewtonSchulz, Outcome, Solver
from heatbath.solvers.determinant import graded_rule
from heatbath.solvers.linalg import logdet
from heatbath.work import Work, cholesky, elementwise, inverse, matmul
from tests.solvers.truth import entry_variance, fresh, normal, spd

TAU = 1e-6
NOISY = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=1e-3))


def units(matrix: torch.Tensor) -> torch.Tensor:
    """The same matrix in units that differ by 10⁴."""
    scale = torch.logspace(-2, 2, matrix.shape[-1], dtype=torch.float64)
    return scale[:, None] * matrix * scale


def test_without_solver_or_machine_it_is_lapacks() -> None:
    matrix = spd(3, n=6, condition=100)
    result = logdet(matrix)
    torch.testing.assert_close(result.value, torch.logdet(matrix), rtol=1e-12, atol=0)
    assert ((result.value - torch.logdet(matrix)).abs() <= result.error).all()
    assert result.work == Work.of(cholesky(6), 3)
    single = logdet(matrix.float())
    assert single.value.dtype == torch.float32
    assert ((single.value.double() - torch.logdet(matrix)).abs() <= single.error).all()


@pytest.mark.parametrize("condition", [3.0, 100.0])
def test_measured_work_scatters_as_predicted_about_the_truth(condition: float) -> None:
    copies = 300
    matrix = units(spd(n=5, condition=condition)).expand(copies, 5, 5)
    result = logdet(matrix, machine=NOISY, generator=fresh(1))
    z = (result.value - torch.logdet(matrix[0])) / result.error
    assert abs(z.mean().item()) < 4 / math.sqrt(copies)
    assert abs(z.square().mean().item() - 1) < 4 * math.sqrt(2 / copies)  # χ²; the quadrature's bound is far below
    assert (result.notes["quadrature_error"] < 1e-5 * result.error).all()


def test_integrated_moments_agree_with_jarzynskis_work_of_a_sudden_change() -> None:
    """W = ½ xᵀ(A − cI)x of equilibrium states of cI: ln det A − n ln c = −2 ln⟨e^{−βW}⟩."""
    matrix, draws = spd(n=4, condition=1.5), 200_000
    c = torch.linalg.eigvalsh(matrix)[-1]  # 2A > cI, so the exponential has a variance
    x = normal(draws, 4, seed=3) / c.sqrt()
    work = 0.5 * ((x @ (matrix - c * torch.eye(4))) * x).sum(-1)
    weight = (-work).exp()
    swept = 4 * c.log() - 2 * weight.mean().log()
    deviation = 2 * (weight.std() / weight.mean()).item() / math.sqrt(draws)
    result = logdet(matrix, machine=NOISY, generator=fresh(1))
    assert abs((swept - torch.logdet(matrix)).item()) < 4 * deviation
    assert abs((swept - result.value).item()) < 4 * math.hypot(deviation, result.error.item())


def test_time_buys_accuracy_at_one_over_the_root() -> None:
    matrix = spd(n=4)
    short, long = (
        logdet(matrix, machine=NOISY, readout=Fluctuations(k, 100 * TAU, 1000 * TAU), generator=fresh(1)) for k in (100, 10_000)
    )
    assert short.error.item() / long.error.item() == pytest.approx(10, rel=0.01)
    assert abs(long.value.item() - torch.logdet(matrix).item()) < 4 * long.error.item()


def test_errors_of_entries_are_in_the_error_bar() -> None:
    """Write noise of rms w moves every point of the path on its own, by w times the derivative by each entry: first order.

    The error bar takes entries of the diagonal to scatter by √2 w, as if E had no preferred basis, so it is at most √2 too
    wide. The second order is (w/λ_min)² = 10⁻³ of the first.
    """
    copies, points, w = 300, 6, 5e-3
    matrix = spd(n=5, condition=5)
    root = matrix.diagonal().rsqrt()
    balanced = root[:, None] * matrix * root
    values = torch.linalg.eigvalsh(balanced)
    nodes, weights = graded_rule(values[0] / values[-1], points)
    change, eye = balanced - values[-1] * torch.eye(5), torch.eye(5, dtype=torch.float64)
    want = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        held = values[-1] * eye + node * change
        slope = lambda a, weight=weight: (weight * torch.linalg.inv(a) * change).sum()  # noqa: E731
        want += entry_variance(slope, held, w * held.abs().max().item())
    readout = Fluctuations(100_000, 100 * TAU, 2000 * TAU)  # reads so far apart that the emulator takes them as independent
    stack, options = matrix.expand(copies, 5, 5), {"readout": readout, "points": points}
    spec = MachineSpec(name="rough", tau=TAU, noise_volts_rms=1e-3, write_noise=w)
    result = logdet(stack, machine=Machine(spec), generator=fresh(1), **options)
    want += logdet(matrix, machine=NOISY, generator=fresh(1), **options).error.item() ** 2
    error = result.value - torch.logdet(matrix)
    assert abs(error.mean().item()) < 4 * math.sqrt(want / copies)
    assert error.square().mean().item() == pytest.approx(want, rel=4 * math.sqrt(2 / copies))
    assert want < result.error[0].item() ** 2 < 2 * want


@pytest.mark.parametrize("solver", [Cholesky(), NewtonSchulz(tolerance=1e-8), ConjugateGradient(60, 1e-10)])
def test_any_solver_walks_the_same_path(solver: Solver[Any]) -> None:
    matrix = units(spd(2, n=6, condition=50))
    result = logdet(matrix, solver=solver, points=10)
    assert ((result.value - torch.logdet(matrix)).abs() <= result.error).all()
    assert (result.error < 1e-5).all()
    assert (result.outcome == Outcome.SOLVED.code).all()


@pytest.mark.parametrize("points", [1, 2, 4])
def test_quadrature_error_is_bounded(points: int) -> None:
    matrix = spd(n=8, condition=1e4)
    result = logdet(matrix, solver=Cholesky(), points=points)
    error = (result.value - torch.logdet(matrix)).abs()
    assert error <= result.notes["quadrature_error"]
    assert result.notes["quadrature_error"] < 8 * 10 * math.exp(-points)


@pytest.mark.parametrize("q", [0.5, 1e-2, 1e-6, 1.0])
def test_graded_rule_integrates_what_it_was_made_for(q: float) -> None:
    nodes, weights = graded_rule(torch.tensor(q, dtype=torch.float64), 3)
    assert ((nodes > 0) & (nodes < 1)).all()
    for r in (q, 1.0):  # the slowest mode exactly, the fastest trivially
        got = (weights * (r - 1) / (1 + nodes * (r - 1))).sum().item()
        assert got == pytest.approx(math.log(r), abs=1e-8)
    many, heavy = graded_rule(torch.tensor(q, dtype=torch.float64), 40)
    assert heavy.sum().item() == pytest.approx(1, rel=1e-9)
    assert np.isclose((heavy * many).sum().item(), 0.5, rtol=1e-9)


def test_identities_have_determinant_one() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    for result in (logdet(eye, solver=Cholesky()), logdet(eye, machine=NOISY, generator=fresh())):
        assert result.value.item() == pytest.approx(0, abs=1e-6)


def test_work_is_one_machine_for_each_point() -> None:
    readout = Fluctuations(50, 10 * TAU, 100 * TAU)
    result = logdet(spd(2, n=4), machine=NOISY, readout=readout, points=6, generator=fresh())
    assert result.work.programmings == 12
    assert result.work.analog_seconds == pytest.approx(12 * (100 + 500) * TAU)
    assert result.work.conversions == 12 * 4 * 50
    digital = logdet(spd(2, n=4), solver=Cholesky(), points=6).work
    once = Work.of(cholesky(4), 12) + Work.of(inverse(4), 12) + Work.of(matmul(4, 4, 4), 12)
    assert digital == once + Work.of(elementwise(16, 24), 2)


def test_failures_of_a_point_are_failures() -> None:
    late = Machine(FaultInjector(NOISY.device, Fault.LATE, every=1))
    assert logdet(spd(2, n=3), machine=late).messages == [Outcome.LATE.value] * 2
    broken = Machine(FaultInjector(NOISY.device, Fault.NONFINITE, every=1))
    assert logdet(spd(n=3), machine=broken).messages == [Outcome.NONFINITE.value]
    crude = Machine(MachineSpec(name="crude", tau=TAU, noise_volts_rms=1e-3, matrix_bits=4))
    long = Fluctuations(200, 50 * TAU, 2000 * TAU)  # time in which cells that hold an indefinite matrix run away
    indefinite = logdet(spd(n=12, condition=1e4), machine=crude, readout=long, generator=fresh())
    assert indefinite.messages[0] in (Outcome.INACCURATE.value, Outcome.NONFINITE.value)


@pytest.mark.parametrize("options", [{"points": 0}, {"readout": Fluctuations(10, TAU, TAU)}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="logdet needs points >= 1, and a machine for a read-out"):
        logdet(spd(n=3), **options)


def test_a_diagonal_that_is_not_positive_is_told_of_first() -> None:
    matrix = spd(n=3)
    matrix[0, 0] = -1.0
    with pytest.raises(ValueError, match="the diagonal of the matrix is not positive definite"):
        logdet(matrix, machine=NOISY)


def test_random_matrices_of_a_stack_are_told_apart() -> None:
    g = normal(4, 5, 5)
    matrix = g @ g.mT + 0.5 * torch.eye(5)
    result = logdet(matrix, machine=NOISY, generator=fresh(2))
    assert result.value.shape == (4,)
    assert ((result.value - torch.logdet(matrix)).abs() < 4 * result.error).all()
