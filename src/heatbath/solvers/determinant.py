"""Log-determinants from work: the free energy of coupled cells.

Cells with the potential V = ½ xᵀA x at temperature 1/β have the free energy F = (1/2β) ln det A + const, so the reversible work
from A₀ to A₁ is W = (1/2β) ln(det A₁/det A₀) (Aifer et al. 2023, arXiv 2308.05660). From uncoupled cells of one conductance c,

    ln det A = n ln c + 2βW,    2βW = ∫₀¹ tr[ S(u) (A − cI) ] du,    S(u) = β⟨x xᵀ⟩ = A(u)⁻¹,   A(u) = (1−u) cI + u A.

The estimator is the second moment: S(u) is read at K equilibria, one by one, and integrated (thermodynamic integration,
Kirkwood 1935); nothing is swept, so no work is dissipated. Not used here: the work of a sweep, of which ln(det A₁/det A₀) =
−2 ln⟨e^{−βW}⟩ at any speed (Jarzynski 1997), an exponential average whose variance grows with the dissipation and is infinite
where 2A₁ > A₀ fails for a sudden change. The published protocol measures work, as recalled; its section was not at hand, so
only F is taken from it. Deviations, therefore:
1. the estimator;
2. c = λ_max and u = (1 − qᵗ)/(1 − q), q = λ_min/λ_max, with Gauss–Legendre points in t: the integrand is then nearly
   constant in t for every mode, and 8 points err by 7·10⁻⁸ per mode at κ = 100, by 2·10⁻⁴ at κ = 10⁴.
3. A is equilibrated to a unit diagonal first, and what that changes is added digitally.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heatbath.machines import Device, Machine, MachineSpec, Schedule
from heatbath.machines.dynamics.ornstein_uhlenbeck import read_correlation
from heatbath.operators import Dense, check_symmetric
from heatbath.solvers.base import Outcome, Solver, worse
from heatbath.solvers.door import check_cells, check_definite, one_of
from heatbath.solvers.held import outcome_of
from heatbath.solvers.inverse import Inverse
from heatbath.solvers.prediction import entry_error
from heatbath.solvers.products import mark_nonfinite, members
from heatbath.solvers.result import Result
from heatbath.solvers.thermodynamic import Fluctuations
from heatbath.work import Work, cholesky, elementwise, matmul

RUNAWAY_SHARE = 2.0  # energy of a cell, in units of that at equilibrium, from which a machine counts as running away
RELAXATIONS, READS = 10.0, 1000  # without a read-out: burn-in in slowest relaxation times, and reads one such time apart


def logdet(
    matrix: Tensor,
    *,
    solver: Solver[Any] | None = None,  # Any: any state
    machine: Machine | Device | MachineSpec | None = None,
    readout: Fluctuations | None = None,
    points: int = 8,
    generator: torch.Generator | None = None,
) -> Result:
    """The logarithm of the determinant, ln det M.

    Args:
        matrix: M, `[*stack, n, n]`, symmetric positive definite, float32 or float64.
        solver: integrate along the path with this solver's inverses; None and no machine: Cholesky's diagonal.
        machine: measure the work on this machine, each point of the path on one of a fleet.
        readout: how the machine is watched; None: `READS` reads a slowest relaxation time apart.
        points: K, equilibria along the path.
        generator: source of randomness.

    Returns:
        ln det M `[*stack]`. `error` is with a machine the predicted standard error (law (d), rounding of entries, and a bound
        of the quadrature's error), with a solver a bound from measured residuals, else a bound of rounding.

    Raises:
        TypeError: what is no tensor, of another dtype, or no machine.
        ValueError: a matrix that is not square, finite, symmetric and definite, or larger than the machine; no points;
            both `solver` and `machine`, or a read-out without a machine.
    """
    machine = one_of(solver, machine)
    check_symmetric(matrix)
    check_cells(matrix, machine)
    if points < 1 or (readout is not None and machine is None):
        raise ValueError(f"logdet needs points >= 1, and a machine for a read-out, got points={points}, readout={readout}")
    n, operator = matrix.shape[-1], Dense(matrix)
    if solver is None and machine is None:
        factor, info = torch.linalg.cholesky_ex(matrix)
        values = torch.linalg.eigvalsh(matrix.double())
        check_definite(values)
        value = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        rounding = n * torch.finfo(matrix.dtype).eps * values[..., -1] / values[..., 0]
        codes = torch.where(info == 0, Outcome.SOLVED.code, Outcome.INDEFINITE.code).to(torch.int8)
        return Result(value, rounding.to(value), Work.of(cholesky(n), members(operator)), codes)
    path = _path(matrix, points)
    if machine is not None:
        slope, variance, work, codes, notes = _watched(path, machine, readout, generator)
    else:
        assert solver is not None
        slope, variance, work, codes, notes = _solved(path, solver, generator)
    digital = Work.of(elementwise(n * n, 4 * points), members(operator))
    total = (path.weights * slope).sum(-1)
    value = n * path.top.log() + total + path.offset
    error = ((path.weights.square() * variance).sum(-1) + path.quadrature_error.square()).sqrt()
    notes = {**notes, "quadrature_error": path.quadrature_error}
    return Result(value.to(matrix), error.to(matrix), work + digital, codes, notes)


@dataclass(frozen=True, eq=False)
class _Path:
    """Equilibria from cI to the equilibrated matrix Ã; float64.

    Args:
        matrices: A(u_k), `[*stack, K, n, n]`.
        change: Ã − cI, `[*stack, 1, n, n]`.
        values: eigenvalues of A(u_k), `[*stack, K, n]`.
        change_values: those of Ã − cI, `[*stack, 1, n]`.
        weights: of the quadrature in u, `[*stack, K]`.
        top: c, `[*stack]`.
        offset: ln det M − ln det Ã, `[*stack]`.
        quadrature_error: bound for all n modes, `[*stack]`.
    """

    matrices: Tensor
    change: Tensor
    values: Tensor
    change_values: Tensor
    weights: Tensor
    top: Tensor
    offset: Tensor
    quadrature_error: Tensor


def _path(matrix: Tensor, points: int) -> _Path:
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    check_definite(torch.sort(diagonal.double(), -1).values, "the diagonal of the matrix")
    root = diagonal.double().rsqrt()
    balanced = root.unsqueeze(-1) * matrix.double() * root.unsqueeze(-2)
    values = torch.linalg.eigvalsh(balanced)
    check_definite(values)
    n, top, q = matrix.shape[-1], values[..., -1], values[..., 0] / values[..., -1]
    u, weights = graded_rule(q, points)
    identity = torch.eye(n, dtype=torch.float64, device=matrix.device)
    change = (balanced - top[..., None, None] * identity).unsqueeze(-3)
    change_values = (values - top.unsqueeze(-1)).unsqueeze(-2)
    ratios = torch.exp(torch.linspace(0, 1, 129, dtype=torch.float64, device=matrix.device) * q.log().unsqueeze(-1))
    sums = (weights.unsqueeze(-2) * (ratios.unsqueeze(-1) - 1) / (1 + u.unsqueeze(-2) * (ratios.unsqueeze(-1) - 1))).sum(-1)
    return _Path(
        matrices=top[..., None, None, None] * identity + u[..., None, None] * change,
        change=change,
        values=top[..., None, None] + u.unsqueeze(-1) * change_values,
        change_values=change_values,
        weights=weights,
        top=top,
        offset=diagonal.double().log().sum(-1),
        quadrature_error=n * (sums - ratios.log()).abs().amax(-1),
    )


def graded_rule(q: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], graded for integrands 1/(1 + u(r − 1)) with r in [q, 1]; both `[*stack, points]`."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    t = torch.from_numpy((nodes + 1) / 2).to(q)
    w = torch.from_numpy(weights / 2).to(q)
    log_q = q.log().clamp_max(-1e-9).unsqueeze(-1)
    return torch.expm1(t * log_q) / torch.expm1(log_q), w * log_q * torch.exp(t * log_q) / torch.expm1(log_q)


_Slopes = tuple[Tensor, Tensor, Work, Tensor, dict[str, Any]]  # Any: notes are tensors or strings


def _watched(path: _Path, machine: Machine, readout: Fluctuations | None, generator: torch.Generator | None) -> _Slopes:
    """2β dW/du at every point as the machines show it, its variance, work and outcome."""
    tau = machine.spec.time_constant
    scale = path.matrices.abs().amax((-2, -1))
    rates = path.values / scale.unsqueeze(-1)
    if readout is None:
        slowest = tau / float(rates.min())
        readout = Fluctuations(READS, slowest, RELAXATIONS * slowest)
    schedule = Schedule(readout.burn_in, readout.reads * readout.interval, readout.reads)
    programmed = machine.program(path.matrices, schedule=schedule, check=False, generator=generator)
    reading = machine.read_covariance(
        programmed, reads=readout.reads, interval=readout.interval, burn_in=readout.burn_in, generator=generator
    )
    slope = (reading.inverse * path.change).sum((-2, -1))
    correlation = read_correlation(torch.exp(-2 * rates * readout.interval / tau), readout.reads)
    fluctuation = 2 * (path.change_values / path.values).square() * correlation / readout.reads**2
    pushed = 2 * (path.change_values / path.values.square()).square()  # Var tr(X E) of a symmetric E of unit entries, 2‖X‖_F²
    entries = (entry_error(machine.spec) * scale).square().unsqueeze(-1) * pushed
    shares = (reading.inverse * path.matrices).sum((-2, -1)) / path.matrices.shape[-1]  # 1 by equipartition of energy
    prepared = torch.where(shares >= RUNAWAY_SHARE, Outcome.INACCURATE.code, Outcome.SOLVED.code)
    codes = outcome_of(reading, prepared)
    codes = functools.reduce(worse, mark_nonfinite(codes, reading.inverse).unbind(-1))
    notes = {"read_clipped": reading.read_clipped.sum(-1)}
    return slope, (fluctuation + entries).sum(-1), programmed.work + reading.work, codes, notes


def _solved(path: _Path, solver: Solver[Any], generator: torch.Generator | None) -> _Slopes:  # Any: any state
    """The same by a solver's inverses; the 'variance' is the square of a bound."""
    operator = Dense(path.matrices)
    n = operator.size
    identity = torch.eye(n, dtype=torch.float64, device=path.matrices.device).expand_as(path.matrices)
    state, work = solver.prepare(operator, generator=generator)
    codes, notes = solver.outcome(state), {}
    if isinstance(state, Inverse):
        inverse = state.operator.dense()
    else:
        solution = solver.solve(state, identity, generator=generator)
        inverse, work, notes = solution.value, work + solution.work, solution.notes
        codes = worse(codes, solution.outcome)
    slope = (inverse * path.change).sum((-2, -1))
    residual = (identity - inverse @ path.matrices).flatten(-2).norm(dim=-1)
    bound = residual * (path.change_values / path.values).square().sum(-1).sqrt()
    work = work + Work.of(matmul(n, n, n), members(operator))
    return slope, bound.square(), work, functools.reduce(worse, codes.unbind(-1)), dict(notes)
