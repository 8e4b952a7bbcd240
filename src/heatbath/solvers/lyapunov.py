"""Lyapunov equations A X + X A = Q: the covariance of cells under correlated noise.

With noise of covariance Q̂ the machine's stationary covariance Σ obeys Â Σ + Σ Â = (2/β) Q̂ (Aifer et al. 2023, arXiv
2308.05660), so for A = s Â, Q = ρ Q̂ the answer is X = (ρ/2s) βΣ. Digitally, in the eigenbasis of A, X_ij = Q_ij/(λ_i + λ_j);
or matrix-free, as the linear system of the Kronecker sum A ⊗ I + I ⊗ A.

The sample covariance S of k reads dt apart errs, for any stationary Gaussian process with C_ij(t) = Σ_ij e^{−λ_j t}, by

    Var S_ij = (Σ_ii Σ_jj + Σ_ij²) K(e^{−(λ_i+λ_j) dt})/k²,

K as in law (d), of which that is the case Σ = Λ⁻¹/β. An error E of the programmed entries of rms σ moves X by the solution of
A ΔX + ΔX A = −(E X + X E).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatbath.machines import CorrelatedNoise, Device, Machine, MachineSpec
from heatbath.machines.dynamics.ornstein_uhlenbeck import read_correlation
from heatbath.operators import Dense, Operator, check_symmetric, tree
from heatbath.solvers.base import Outcome, Solver, worse
from heatbath.solvers.determinant import READS, RELAXATIONS, RUNAWAY_SHARE
from heatbath.solvers.door import check_cells, check_definite, one_of
from heatbath.solvers.eigen import Eigen
from heatbath.solvers.held import outcome_of
from heatbath.solvers.prediction import entry_error
from heatbath.solvers.products import members
from heatbath.solvers.result import Result
from heatbath.solvers.thermodynamic import Fluctuations
from heatbath.work import Job, Work, elementwise, matmul


@tree
@dataclass(frozen=True, eq=False)
class KroneckerSum(Operator):
    """X ↦ (A + shift/2) X + X (A + shift/2), acting on matrices `[n, n]`.

    Args:
        side: A, of domain (n,).
    """

    side: Operator

    @property
    def domain(self) -> torch.Size:
        return torch.Size((self.side.size, self.side.size))

    @property
    def stack(self) -> torch.Size:
        return self.side.stack

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.side @ x + (self.side @ x.mT).mT

    def dense(self) -> Tensor:
        a = self.side.dense()
        eye = torch.eye(self.side.size, dtype=a.dtype, device=a.device)
        total = torch.einsum("...ij,kl->...ikjl", a, eye) + torch.einsum("ij,...kl->...ikjl", eye, a)
        return total.reshape(*self.stack, self.size, self.size)

    def trace(self) -> Tensor:
        return 2 * self.side.size * self.side.trace()

    def shift(self, amount: Tensor | float) -> KroneckerSum:
        return KroneckerSum(self.side.shift(amount / 2))


def lyapunov(
    matrix: Tensor,
    source: Tensor,
    *,
    solver: Solver[Any] | None = None,  # Any: any state
    machine: Machine | Device | MachineSpec | None = None,
    readout: Fluctuations | None = None,
    generator: torch.Generator | None = None,
) -> Result:
    """Solve A X + X A = Q.

    Args:
        matrix: A, `[*stack, n, n]`, symmetric positive definite, float32 or float64.
        source: Q, of the same shape, symmetric; positive semidefinite for a machine, whose noise it is.
        solver: of the Kronecker sum, `ConjugateGradient()` for example; None and no machine: in the eigenbasis of A.
        machine: watch this machine under noise of covariance Q.
        readout: how it is watched; None: as for `logdet`.
        generator: source of randomness.

    Returns:
        X, symmetric. `error` is with a machine the predicted standard error, else the bound ‖Q − AX − XA‖_F/2λ_min.

    Raises:
        TypeError: what is no tensor, of another dtype, or no machine.
        ValueError: matrices that are not square, finite, symmetric and of one shape; an A that is not definite or larger than
            the machine; both `solver` and `machine`, or a read-out without a machine; for a machine a Q that is not
            semidefinite, or cells that ring.
    """
    machine = one_of(solver, machine)
    check_symmetric(matrix)
    check_symmetric(source, "the source")
    check_cells(matrix, machine)
    if source.shape != matrix.shape or source.dtype != matrix.dtype:
        raise ValueError(
            f"matrix and source must agree in shape and dtype, got {tuple(matrix.shape)} {matrix.dtype} and "
            f"{tuple(source.shape)} {source.dtype}"
        )
    if readout is not None and machine is None:
        raise ValueError("lyapunov needs a machine for a read-out; give machine=, or leave the read-out away")
    values, modes = torch.linalg.eigh(matrix.double())
    check_definite(values)
    if machine is not None:
        return _watched(matrix, source, values, modes, machine, readout, generator)
    operator = KroneckerSum(Dense(matrix))
    n, count = matrix.shape[-1], members(operator)
    if solver is None:
        spectrum, work = Eigen().prepare(Dense(matrix))
        codes = spectrum.outcome
        assert spectrum.right is not None
        value = spectrum.right @ ((spectrum.right.mT @ source @ spectrum.right) / _sums(spectrum.values)) @ spectrum.right.mT
        work = work + (Work.of(matmul(n, n, n), 4) + Work.of(elementwise(n * n, 2))) * count
    else:
        state, work = solver.prepare(operator, generator=generator)
        solution = solver.solve(state, source, generator=generator)
        value, work = solution.value, work + solution.work
        codes = worse(solver.outcome(state), solution.outcome)
    value = 0.5 * (value + value.mT)
    residual = (source - operator @ value).flatten(-2).norm(dim=-1)
    work = work + Work.of(matmul(n, n, n), 2 * count)
    return Result(value, residual / (2 * values[..., 0]).to(residual), work, codes, {"residual": residual})


def _watched(
    matrix: Tensor,
    source: Tensor,
    values: Tensor,
    modes: Tensor,
    machine: Machine,
    readout: Fluctuations | None,
    generator: torch.Generator | None,
) -> Result:
    """The covariance of a machine under noise of covariance Q."""
    check_overdamped(machine)
    rho = source.abs().amax((-2, -1)).clamp_min(torch.finfo(source.dtype).tiny)
    weakest = torch.linalg.eigvalsh(source.double())[..., 0] / rho
    if bool((weakest < -1e3 * torch.finfo(source.dtype).eps).any()):
        raise ValueError(
            f"a machine's noise has a positive semidefinite covariance, the source reaches {float(weakest.min()):.2g} of its "
            "largest entry; solve for its positive and negative parts, or without a machine"
        )
    scale, tau = matrix.abs().amax((-2, -1)), machine.spec.time_constant
    rates = values / scale.double().unsqueeze(-1)
    if readout is None:
        slowest = tau / float(rates.min())
        readout = Fluctuations(READS, slowest, RELAXATIONS * slowest)
    noise = CorrelatedNoise(source / rho[..., None, None])
    programmed = machine.program(matrix, circuit=noise, check=False, generator=generator)
    reading = machine.read_covariance(
        programmed, reads=readout.reads, interval=readout.interval, burn_in=readout.burn_in, generator=generator
    )
    turned = (modes.mT @ source.double() @ modes) / _sums(values)  # X in the eigenbasis
    own = turned.diagonal(dim1=-2, dim2=-1)
    correlation = read_correlation(torch.exp(-_sums(rates) * readout.interval / tau), readout.reads)
    fluctuation = (own.unsqueeze(-1) * own.unsqueeze(-2) + turned.square()) * correlation / readout.reads**2
    pushed = _pushed_variance(turned) / _sums(values).square()
    entries = (entry_error(machine.spec) * scale.double())[..., None, None].square() * pushed
    value = reading.inverse * (rho / 2)[..., None, None]
    left = (source - matrix @ value - value @ matrix).flatten(-2).norm(dim=-1) / source.flatten(-2).norm(dim=-1)
    prepared = torch.where(left >= RUNAWAY_SHARE, Outcome.INACCURATE.code, Outcome.SOLVED.code)
    n, bits = matrix.shape[-1], programmed.upload_bits
    count = max(matrix.shape[:-2].numel(), 1)
    work = programmed.work + Work.of(Job(machine.spec.name, n, upload_bits=bits), count) + reading.work
    return Result(
        value,
        (fluctuation + entries).sum((-2, -1)).sqrt().to(matrix),
        work + Work.of(elementwise(n * n, 2), 2 * count),
        outcome_of(reading, prepared),
        {"read_clipped": reading.read_clipped},
    )


def _pushed_variance(x: Tensor) -> Tensor:
    """Variance of each entry of E X + X E for symmetric E of independent entries of variance 1, 2 on the diagonal."""
    own = x.diagonal(dim1=-2, dim2=-1)
    rows = x.square().sum(-1)
    total = _sums(rows) + 2 * x.square() + 2 * own.unsqueeze(-1) * own.unsqueeze(-2)
    return total + torch.diag_embed(2 * rows)


def check_overdamped(machine: Machine) -> None:
    """Refuse machines whose noise does not obey the first-order law.

    Raises:
        ValueError: cells with inertia, or a matrix held in capacitances.
    """
    if machine.spec.inductance is not None or machine.spec.coupling is not None:
        raise ValueError(
            f"machine {machine.spec.name!r} has cells that ring or couple through capacitances, whose covariance under "
            "correlated noise solves another equation; use one with resistive coupling and no inductance"
        )


def _sums(values: Tensor) -> Tensor:
    """v_i + v_j, `[*stack, n, n]`."""
    return values.unsqueeze(-1) + values.unsqueeze(-2)
