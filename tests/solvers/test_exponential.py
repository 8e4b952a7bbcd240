"""Matrix exponentials against SciPy: digital, by resolvents, and from how a machine forgets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from heatbath.machines import Machine, MachineSpec
from heatbath.solvers import Cholesky, ConjugateGradient, NewtonSchulz, Outcome
from heatbath.solvers.exponential import autocovariance_variance, resolvent_polynomial
from heatbath.solvers.linalg import expm_neg
from heatbath.work import Work, eigh, elementwise, matmul
from tests.solvers.truth import entry_variance, fresh, spd

TAU = 1e-6
NOISY = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=1e-3))


def scipys(matrix: Tensor, time: float) -> Tensor:
    each = [torch.from_numpy(scipy.linalg.expm(-time * a.numpy())) for a in matrix.reshape(-1, *matrix.shape[-2:])]
    return torch.stack(each).reshape(matrix.shape)


@pytest.mark.parametrize("time", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("options", [{}, {"solver": Cholesky(), "degree": 24}, {"solver": NewtonSchulz(30, tolerance=1e-9)}])
def test_exponential_is_scipys_within_its_bound(time: float, options: dict[str, Any]) -> None:
    matrix = 4 * spd(2, n=5, condition=100)
    result = expm_neg(matrix, time, **options)
    error = (result.value - scipys(matrix, time)).flatten(1).norm(dim=1)
    assert (error <= result.error).all()
    assert (result.error < 1e-6).all()
    assert result.solved


@pytest.mark.parametrize("degree", [2, 6, 12])
def test_polynomials_in_the_resolvent_are_as_good_as_stated(degree: int) -> None:
    gamma, coefficients, bound = resolvent_polynomial(degree)
    z = np.concatenate([[0.0], np.geomspace(1e-6, 1e9, 20_001)])
    s = 1 / (1 + gamma * z)
    error = np.abs(np.polynomial.chebyshev.chebval(2 * s - 1, coefficients) - np.exp(-z)).max()
    assert error <= bound * (1 + 1e-3)
    assert error >= 0.9 * bound
    assert bound < {2: 0.07, 6: 1e-3, 12: 4e-6}[degree]


@pytest.mark.parametrize("time", [0.3, 2.0])
def test_a_machine_forgets_as_the_exponential(time: float) -> None:
    copies, pairs = 100, 400
    matrix = 3 * spd(n=4).expand(copies, 4, 4)
    result = expm_neg(matrix, time, machine=NOISY, pairs=pairs, generator=fresh(1))
    error = result.value - scipys(matrix[:1], time)
    size = result.error[0].item()
    assert error.mean(0).norm().item() < 3 * size / math.sqrt(copies)
    assert error.flatten(1).square().sum(-1).mean().item() == pytest.approx(size**2, rel=4 * math.sqrt(2 / copies))
    assert result.notes["read_clipped"].shape == (copies,)
    assert result.solved


def test_members_of_different_size_have_lags_of_their_own() -> None:
    matrix = torch.stack([spd(n=3), 7 * spd(n=3, seed=1)])
    result = expm_neg(matrix, 0.5, machine=NOISY, pairs=4000, generator=fresh(1))
    error = (result.value - scipys(matrix, 0.5)).flatten(1).norm(dim=1)
    assert (error < 3 * result.error).all()
    assert (result.relative_error < 0.2).all()


def test_variance_of_a_lagged_covariance_is_isserlis_sum() -> None:
    decay, pairs = torch.tensor([0.9, 0.5, 1e-7, 0.0], dtype=torch.float64), 7
    n = len(decay)
    want = torch.zeros(n, n, dtype=torch.float64)
    r = lambda i, lag: float(decay[i]) ** abs(lag) if lag else 1.0  # noqa: E731
    for i in range(n):
        for j in range(n):
            total = 0.0
            for a in range(pairs):
                for b in range(pairs):
                    same = r(i, a - b) * r(j, a - b)  # C_ij with itself, and with C_ji through E[y_i(a) y_i(b+1)]
                    crossed = r(i, b + 1 - a) * r(j, a + 1 - b)
                    total += same + crossed if i == j else (same + crossed) / 2
            want[i, j] = total / pairs**2
    torch.testing.assert_close(autocovariance_variance(decay, pairs), want, rtol=1e-7, atol=1e-12)


def test_errors_of_entries_are_in_the_error_bar() -> None:
    """Write noise of rms w moves C = Σ e^{−tA'}, Σ the stationary covariance of A' under noise meant for A: first order.

    The error bar takes entries of the diagonal to scatter by √2 w and adds both causes up, so it is on the safe side: by at
    most √2 · √2, as (a + b)² ≤ 2 (a² + b²) where they oppose one another.
    """
    copies, w, pairs = 100, 0.05, 250
    matrix, spec = spd(n=4, condition=3), MachineSpec(name="rough", tau=TAU, noise_volts_rms=1e-3, write_noise=0.05)

    def shown(held: Tensor) -> Tensor:
        stationary = scipy.linalg.solve_continuous_lyapunov(held.numpy(), 2 * matrix.numpy())
        lagged = torch.from_numpy(stationary) @ scipys(held, 1.0)
        return 0.5 * (lagged + lagged.mT)

    want = entry_variance(shown, matrix, w * matrix.abs().max().item())
    want += expm_neg(matrix, 1.0, machine=NOISY, pairs=pairs, generator=fresh(1)).error.item() ** 2
    result = expm_neg(matrix.expand(copies, 4, 4), 1.0, machine=Machine(spec), pairs=pairs, generator=fresh(1))
    squares = (result.value - scipys(matrix, 1.0)).square().sum((-2, -1))
    assert squares.mean().item() == pytest.approx(want, rel=4 * math.sqrt(2 / copies))
    assert (squares.mean() < result.error.square() * (1 + 4 * math.sqrt(2 / copies))).all()


def test_work_counts_resolvents_or_one_watch() -> None:
    digital = expm_neg(spd(2, n=4)).work
    assert digital == Work.of(eigh(4), 2) + Work.of(matmul(4, 4, 4), 2) + Work.of(elementwise(16), 2)
    solver = Cholesky()
    resolved = expm_neg(spd(2, n=4), solver=solver, degree=5).work
    assert resolved.kernels[matmul(4, 4, 4)] == 5 * 2
    analog = expm_neg(spd(2, n=4), 0.5, machine=NOISY, pairs=20, generator=fresh()).work
    assert analog.programmings == 4
    assert analog.conversions == 2 * 4 * 21


def test_an_iteration_that_stops_short_says_so() -> None:
    assert expm_neg(spd(n=4), solver=ConjugateGradient(1, 1e-12), degree=3).messages == [Outcome.INACCURATE.value]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"time": 0.0}, r"positive time, degree and pairs, got time=0.0, degree=16, pairs=None"),
        ({"time": math.inf}, r"got time=inf"),
        ({"degree": 0}, r"degree=0"),
        ({"pairs": 0, "machine": NOISY}, r"pairs=0"),
        ({"pairs": 5}, r"needs a machine to read pairs from; give machine=, or leave pairs away"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expm_neg(spd(n=3), **options)


def test_ringing_machines_are_refused() -> None:
    rlc = MachineSpec(name="rlc", resistance=1e3, capacitance=1e-9, inductance=1e-3, noise_volts_rms=1e-3)
    with pytest.raises(ValueError, match=r"machine 'rlc' has cells that ring"):
        expm_neg(spd(n=3), machine=Machine(rlc))
