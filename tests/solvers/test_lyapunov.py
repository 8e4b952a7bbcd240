"""Lyapunov equations against SciPy's Bartels–Stewart solver, with error bars that hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor

from heatbath.machines import Fault, FaultInjector, Machine, MachineSpec
from heatbath.operators import Dense
from heatbath.solvers import ConjugateGradient, Fluctuations, Outcome, Refined
from heatbath.solvers.linalg import lyapunov
from heatbath.solvers.lyapunov import KroneckerSum
from heatbath.work import Work, eigh, elementwise, matmul
from tests.solvers.truth import entry_variance, fresh, normal, rounding, spd

TAU = 1e-6
NOISY = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=1e-3))


def scipys(matrix: Tensor, source: Tensor) -> Tensor:
    pairs = zip(matrix.reshape(-1, *matrix.shape[-2:]), source.reshape(-1, *source.shape[-2:]), strict=True)
    each = [torch.from_numpy(scipy.linalg.solve_continuous_lyapunov(a.numpy(), q.numpy())) for a, q in pairs]
    return torch.stack(each).reshape(matrix.shape)


def symmetric(*stack: int, n: int) -> Tensor:
    g = normal(*stack, n, n, seed=4)
    return g + g.mT


def test_kronecker_sum_is_its_dense_form() -> None:
    operator = KroneckerSum(Dense(spd(2, n=3)))
    x = normal(2, 4, 3, 3)
    dense = operator.dense()
    torch.testing.assert_close((operator @ x).flatten(-2), x.flatten(-2) @ dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(
        operator.shift(0.3).dense(), dense + 0.3 * torch.eye(9, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    assert (operator.domain, operator.stack) == ((3, 3), (2,))


@pytest.mark.parametrize("solver", [None, ConjugateGradient(200, 1e-12), Refined(ConjugateGradient(30, 1e-3))])
def test_solution_is_scipys_within_its_bound(solver: Any) -> None:
    matrix, source = spd(2, n=5, condition=30), symmetric(2, n=5)
    result = lyapunov(matrix, source, solver=solver)
    error = (result.value - scipys(matrix, source)).flatten(1).norm(dim=1)
    assert (error <= result.error + 1e-13).all()
    assert (result.relative_error < 1e-4).all()
    assert torch.equal(result.value, result.value.mT)
    assert result.solved


@pytest.mark.parametrize("interval", [2.0, 50.0])
def test_noise_of_the_right_covariance_shows_the_solution(interval: float) -> None:
    copies = 200
    matrix, source = 3 * spd(n=4), 5 * spd(n=4, seed=2)
    truth = scipys(matrix, source)
    readout = Fluctuations(300, interval * TAU, 200 * TAU)
    stack = [x.expand(copies, 4, 4) for x in (matrix, source)]
    result = lyapunov(*stack, machine=NOISY, readout=readout, generator=fresh(1))
    error = result.value - truth
    size = result.error[0].item()
    mean = error.mean(0).norm().item()
    assert mean < 3 * size / math.sqrt(copies)  # unbiased: ‖mean‖² has expectation size²/copies
    assert error.flatten(1).square().sum(-1).mean().item() == pytest.approx(
        size**2, rel=4 * math.sqrt(2 / copies)
    )  # χ² of one mode at least
    assert result.solved


def test_default_read_out_is_settled() -> None:
    matrix, source = spd(3, n=4), spd(3, n=4, seed=2)
    result = lyapunov(matrix, source, machine=NOISY, generator=fresh(1))
    error = (result.value - scipys(matrix, source)).flatten(1).norm(dim=1)
    assert (error < 3 * result.error).all()
    assert (result.relative_error < 0.3).all()


def test_errors_of_entries_are_in_the_error_bar() -> None:
    """Write noise of rms w moves X by w times its derivative by each entry, to first order, as SciPy's solver has it.

    The error bar takes entries of the diagonal to scatter by √2 w, so it is at most √2 too wide.
    The second order is (w/λ_min)² = 10⁻² of the first.
    """
    copies, w = 300, 1e-2
    matrix, source = spd(n=4), spd(n=4, seed=2)
    readout = Fluctuations(5_000, 100 * TAU, 2000 * TAU)
    stack = [x.expand(copies, 4, 4) for x in (matrix, source)]
    spec = MachineSpec(name="rough", tau=TAU, noise_volts_rms=1e-3, write_noise=w)
    result = lyapunov(*stack, machine=Machine(spec), readout=readout, generator=fresh(1))
    want = entry_variance(lambda a: scipys(a, source), matrix, w * matrix.abs().max().item())
    want += lyapunov(matrix, source, machine=NOISY, readout=readout, generator=fresh(1)).error.item() ** 2
    squares = (result.value - scipys(matrix, source)).square().sum((-2, -1))
    assert squares.mean().item() == pytest.approx(want, rel=4 * math.sqrt(2 / copies))  # χ² of one mode at least
    assert want < result.error[0].item() ** 2 < 2 * want


def test_rounding_moves_the_solution_within_the_perturbation_bound() -> None:
    """(A + E) X' + X' (A + E) = Q: ‖X' − X‖ ≤ ‖E X' + X' E‖/2λ_min(A) ≤ ‖E‖ ‖X'‖/λ_min(A), in the Frobenius norm."""
    spec = MachineSpec(name="rounded", tau=TAU, noise_volts_rms=1e-3, matrix_bits=6)
    matrix, source = spd(50, n=4, condition=10), spd(50, n=4, seed=2)
    readout = Fluctuations(5_000, 100 * TAU, 2000 * TAU)
    result = lyapunov(matrix, source, machine=Machine(spec), readout=readout, generator=fresh(1))
    noise = lyapunov(matrix, source, machine=NOISY, readout=readout, generator=fresh(1)).error
    rounded = torch.linalg.matrix_norm(rounding(matrix, 6), 2) / torch.linalg.eigvalsh(matrix)[:, 0]
    moved, size = ((x).flatten(1).norm(dim=1) for x in (result.value - scipys(matrix, source), result.value))
    assert (moved <= rounded * (size + 4 * noise) + 4 * noise).all()
    assert (moved / noise).square().mean() > 1 + 4 * math.sqrt(2 / 50)  # more than noise moved it


def test_identity_noise_gives_half_the_inverse() -> None:
    matrix = spd(n=4)
    result = lyapunov(matrix, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(result.value, torch.linalg.inv(matrix) / 2, rtol=1e-10, atol=1e-12)


def test_work_counts_products_or_both_programmings() -> None:
    digital = lyapunov(spd(2, n=4), spd(2, n=4)).work
    assert digital == Work.of(eigh(4), 2) + Work.of(matmul(4, 4, 4), 12) + Work.of(elementwise(16, 2), 2)
    readout = Fluctuations(50, 10 * TAU, 100 * TAU)
    analog = lyapunov(spd(2, n=4), spd(2, n=4), machine=NOISY, readout=readout, generator=fresh()).work
    assert analog.programmings == 4  # the matrix and the noise of two machines
    assert analog.analog_seconds == pytest.approx(2 * 600 * TAU)


def test_failures_are_outcomes() -> None:
    late = Machine(FaultInjector(NOISY.device, Fault.LATE, every=1))
    assert lyapunov(spd(n=3), spd(n=3), machine=late).messages == [Outcome.LATE.value]
    short = lyapunov(spd(n=3, condition=100), spd(n=3), solver=ConjugateGradient(1, 1e-10))
    assert short.messages == [Outcome.INACCURATE.value]


def test_bad_sources_and_machines_are_refused() -> None:
    good = spd(n=3)
    with pytest.raises(ValueError, match=r"the source is not symmetric"):
        lyapunov(good, torch.triu(torch.ones(3, 3, dtype=torch.float64)))
    with pytest.raises(
        ValueError, match=r"must agree in shape and dtype, got \(3, 3\) torch.float64 and \(2, 2\) torch.float64"
    ):
        lyapunov(good, spd(n=2))
    with pytest.raises(ValueError, match=r"needs a machine for a read-out"):
        lyapunov(good, good, readout=Fluctuations(10, TAU, TAU))
    with pytest.raises(ValueError, match=r"noise has a positive semidefinite covariance, the source reaches -1 of its largest"):
        lyapunov(good, -torch.eye(3, dtype=torch.float64), machine=NOISY)
    rlc = MachineSpec(name="rlc", resistance=1e3, capacitance=1e-9, inductance=1e-3, noise_volts_rms=1e-3)
    with pytest.raises(ValueError, match=r"machine 'rlc' has cells that ring or couple through capacitances"):
        lyapunov(good, good, machine=Machine(rlc))
    quiet = Machine(MachineSpec(name="quiet", tau=TAU))
    with pytest.raises(ValueError, match=r"machine 'quiet' has no noise to read"):
        lyapunov(good, good, machine=quiet)
