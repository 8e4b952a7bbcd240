"""Exponentials e^{−tA}: how cells forget.

With noise of covariance Â the machine is stationary at I/β, and its covariance with a moment u later is e^{−Âu/τ}/β (Duffield
et al. 2023, arXiv 2311.12759); for A = s Â the lag is u = s t τ. With r_i = e^{−λ_i t} and k pairs of reads one lag apart, each
entry of the symmetrized sample covariance errs in the eigenbasis by

    Var_ii = [2K(r_i²) − k + k r_i²]/k²,       Var_ij = [K(r_i r_j) + k r_i r_j + H(r_i r_j)(r_i² + r_j²)]/2k²,

K(r) = k + 2r H(r) as in law (d). (Isserlis' theorem for unit variances and correlations r_i^|Δ|.)

Without a machine: in the eigenbasis, or with any solver through the resolvent S = (I + γtA)⁻¹, whose spectrum lies in (0, 1]:
e^{−z} = f(1/(1 + γz)) with f(s) = exp((1 − 1/s)/γ), interpolated by a Chebyshev polynomial in S. Its error, uniform over all
A, is 3·10⁻⁶ with 12 solves and 6·10⁻¹¹ with 24 (real-pole approximation, after van den Eshof & Hochbruck 2006).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from heatbath.machines import CorrelatedNoise, Device, Machine, MachineSpec
from heatbath.machines.dynamics.ornstein_uhlenbeck import phi, read_correlation
from heatbath.operators import Dense, check_symmetric
from heatbath.solvers.base import Outcome, Solver, worse
from heatbath.solvers.determinant import READS, RELAXATIONS, RUNAWAY_SHARE
from heatbath.solvers.door import check_cells, check_definite, one_of
from heatbath.solvers.eigen import Eigen
from heatbath.solvers.lyapunov import check_overdamped
from heatbath.solvers.prediction import entry_error
from heatbath.solvers.products import members
from heatbath.solvers.result import Result
from heatbath.work import Job, Work, elementwise, matmul


def expm_neg(
    matrix: Tensor,
    time: float = 1.0,
    *,
    solver: Solver[Any] | None = None,  # Any: any state
    machine: Machine | Device | MachineSpec | None = None,
    pairs: int | None = None,
    degree: int = 16,
    generator: torch.Generator | None = None,
) -> Result:
    """e^{−tA}.

    Args:
        matrix: A, `[*stack, n, n]`, symmetric positive definite, float32 or float64.
        time: t > 0.
        solver: of I + γtA, applied `degree` times; None and no machine: in the eigenbasis of A.
        machine: watch this machine, or one after the other of a fleet for a stack, as each member has its own lag.
        pairs: k, pairs of reads; None: 1000.
        degree: of the polynomial in the resolvent.
        generator: source of randomness.

    Returns:
        e^{−tA}, symmetric. `error` is with a machine the predicted standard error, else a bound of approximation (with a
        solver, whose own errors are not in it) and rounding.

    Raises:
        TypeError: what is no tensor, of another dtype, or no machine.
        ValueError: a matrix that is not square, finite, symmetric and definite, or larger than the machine; a time, degree or
            number of pairs that is not positive; both `solver` and `machine`, or pairs without a machine.
    """
    machine = one_of(solver, machine)
    check_symmetric(matrix)
    check_cells(matrix, machine)
    if not time > 0 or not math.isfinite(time) or degree < 1 or (pairs is not None and pairs < 1):
        raise ValueError(f"expm_neg needs positive time, degree and pairs, got time={time}, degree={degree}, pairs={pairs}")
    if pairs is not None and machine is None:
        raise ValueError("expm_neg needs a machine to read pairs from; give machine=, or leave pairs away")
    values = torch.linalg.eigvalsh(matrix.double())
    check_definite(values)
    if machine is not None:
        flat, spectra = matrix.reshape(-1, *matrix.shape[-2:]), values.reshape(-1, values.shape[-1])
        each = [
            _watched(flat[k], time, spectra[k], machine, k % (machine.count or len(flat)), pairs or READS, generator)
            for k in range(len(flat))
        ]
        return _stacked(each, matrix.shape[:-2])
    n, count = matrix.shape[-1], members(Dense(matrix))
    rounding = 4 * n * torch.finfo(matrix.dtype).eps * (1 + time * values[..., -1] * torch.exp(-time * values[..., 0]))
    if solver is None:
        spectrum, work = Eigen().prepare(Dense(matrix))
        assert spectrum.right is not None
        value = (spectrum.right * torch.exp(-time * spectrum.values).unsqueeze(-2)) @ spectrum.right.mT
        work = work + (Work.of(matmul(n, n, n)) + Work.of(elementwise(n * n))) * count
        return Result(value, rounding.to(value), work, spectrum.outcome)
    value, bound, work, codes = _resolved(matrix, time, solver, degree, generator)
    return Result(0.5 * (value + value.mT), bound * math.sqrt(n) + rounding.to(value), work, codes)


def _watched(
    matrix: Tensor, time: float, values: Tensor, machine: Machine, slot: int, pairs: int, generator: torch.Generator | None
) -> Result:
    """One machine's covariance with itself a lag later."""
    check_overdamped(machine)
    n, spec = matrix.shape[-1], machine.spec
    tau, scale = spec.time_constant, float(matrix.abs().max())
    programmed = machine.program(
        matrix, circuit=CorrelatedNoise(matrix / scale), slots=[slot], check=False, generator=generator
    )
    burn_in = RELAXATIONS * tau * scale / float(values[0])
    lag = time * tau * float(programmed.scale)
    reading = machine.read_autocovariance(programmed, pairs=pairs, lag=lag, burn_in=burn_in, generator=generator)
    variance = autocovariance_variance(torch.exp(-time * values), pairs)
    fade, total = torch.exp(-time * values), values.unsqueeze(-1) + values.unsqueeze(-2)
    gap = time * (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()  # (r_i − r_j)/(λ_j − λ_i) = t max(r_i, r_j) φ(gap)
    slope = time * torch.maximum(fade.unsqueeze(-1), fade.unsqueeze(-2)) * phi(gap)
    entries = entry_error(spec) * scale * (slope + (fade.unsqueeze(-1) + fade.unsqueeze(-2)) / total)
    share = reading.covariance.diagonal().abs().mean()  # below 1 for voltages of unit variance
    codes = torch.where(share >= RUNAWAY_SHARE, Outcome.INACCURATE.code, Outcome.SOLVED.code).to(torch.int8)
    noise_upload = Work.of(Job(spec.name, n, upload_bits=programmed.upload_bits))
    return Result(
        0.5 * (reading.covariance + reading.covariance.mT),
        (variance + entries.square() + torch.diag_embed(entries.diagonal().square())).sum((-2, -1)).sqrt().to(matrix),
        programmed.work + noise_upload + reading.work + Work.of(elementwise(n * n, 3)),
        codes,
        {"read_clipped": reading.read_clipped},
    )


def autocovariance_variance(decay: Tensor, pairs: int) -> Tensor:
    """Variances of the symmetrized lagged covariance in the eigenbasis, `[n, n]`, for stationary modes of unit variance.

    Args:
        decay: r, correlation of each mode over one lag, `[n]`.
        pairs: k.
    """
    product = decay.unsqueeze(-1) * decay.unsqueeze(-2)
    spread = read_correlation(product, pairs)
    small = product < 1e-8
    lagged = torch.where(small, float(pairs - 1), (spread - pairs) / (2 * torch.where(small, 1.0, product)))  # H
    squares = decay.square().unsqueeze(-1) + decay.square().unsqueeze(-2)
    both = (spread + pairs * product + lagged * squares) / 2
    alone = 2 * spread + pairs * (product - 1)
    return torch.where(torch.eye(len(decay), dtype=torch.bool, device=decay.device), alone, both) / pairs**2


def _stacked(results: list[Result], stack: torch.Size) -> Result:
    """Results of single members as one of a stack."""
    return Result(
        torch.stack([r.value for r in results]).reshape(*stack, *results[0].value.shape),
        torch.stack([r.error for r in results]).reshape(stack),
        sum((r.work for r in results), Work()),
        torch.stack([r.outcome for r in results]).reshape(stack),
        {
            "read_clipped": torch.stack([r.notes["read_clipped"] for r in results]).reshape(stack),
        },
    )


def _resolved(
    matrix: Tensor, time: float, solver: Solver[Any], degree: int, generator: torch.Generator | None
) -> tuple[Tensor, float, Work, Tensor]:
    """A Chebyshev polynomial in the resolvent, by Clenshaw's recurrence; with the bound of its error in the 2-norm."""
    gamma, coefficients, bound = resolvent_polynomial(degree)
    operator = Dense(matrix).shift(1 / (gamma * time))
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    state, work = solver.prepare(operator, generator=generator)
    codes, later, last = solver.outcome(state), torch.zeros_like(identity), torch.zeros_like(identity)
    for k in range(degree, -1, -1):
        turned = torch.zeros_like(last)
        if k < degree:
            solution = solver.solve(state, last, generator=generator)
            turned = 2 * solution.value / (gamma * time) - last
            state, work, codes = solution.state or state, work + solution.work, worse(codes, solution.outcome)
            work = work + Work.of(elementwise(matrix.numel(), 6))
        last, later = float(coefficients[k]) * identity + (2 if k else 1) * turned - later, last
    return last, bound, work, codes


def resolvent_polynomial(degree: int) -> tuple[float, np.ndarray, float]:
    """γ, Chebyshev coefficients on s in [0, 1], and the largest error of the interpolant of e^{−z} in s = 1/(1 + γz)."""
    grid = (1 - np.cos(np.linspace(0, np.pi, 64 * degree + 1))) / 2
    best = None
    for gamma in np.geomspace(0.02, 1.0, 40):

        def decay(y: np.ndarray, gamma: float = gamma) -> np.ndarray:
            s = (y + 1) / 2
            return np.exp((1 - 1 / np.maximum(s, 1e-300)) / gamma)

        coefficients = np.asarray(chebyshev.chebinterpolate(decay, degree))  # type: ignore[type-var]  # numpy's stub is too narrow
        error = float(np.abs(chebyshev.chebval(2 * grid - 1, coefficients) - decay(2 * grid - 1)).max())
        if best is None or error < best[2]:
            best = float(gamma), coefficients, error
    assert best is not None
    return best
