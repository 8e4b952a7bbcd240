"""Linear algebra with any solver or machine, for direct use: `heatbath.linalg`.

Each function takes symmetric positive definite matrices `[*stack, n, n]`, checks them, warns before any work if the machine
will be of no use, and returns a `Result` with an error estimate, the `Work` and the outcome. Checking costs an
eigendecomposition on the digital side, which would defeat a real machine's purpose: inner loops use the solvers themselves.

| function | machine's answer | source |
|---|---|---|
| `solve` | mean of the driven cells | Aifer et al. 2023, arXiv 2308.05660 |
| `inv` | the same for n orthonormal vectors, or the covariance | the same; Donatella et al. 2025, arXiv 2502.08603 |
| `logdet` | work along a path of equilibria | the same as `solve` |
| `lyapunov` | covariance under correlated noise | the same as `solve` |
| `expm_neg` | covariance with a later moment | Duffield et al. 2023, arXiv 2311.12759 |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from heatbath.machines import Device, Machine, MachineSpec
from heatbath.operators import Dense, check_symmetric
from heatbath.solvers.base import Outcome, Solver, usable, worse
from heatbath.solvers.cholesky import Cholesky
from heatbath.solvers.determinant import logdet as logdet
from heatbath.solvers.door import check_cells, check_definite, check_rows, one_of
from heatbath.solvers.exponential import expm_neg as expm_neg
from heatbath.solvers.inverse import Inverse
from heatbath.solvers.lyapunov import lyapunov as lyapunov
from heatbath.solvers.prediction import InaccuracyWarning as InaccuracyWarning
from heatbath.solvers.prediction import Prediction, predict, predict_covariance, warn_if_useless
from heatbath.solvers.products import members, norms, relative_residual
from heatbath.solvers.result import Result as Result
from heatbath.solvers.thermodynamic import (
    CosineVectors,
    Fluctuations,
    ThermodynamicInverse,
    ThermodynamicSolve,
    UnitVectors,
    default_schedule,
)
from heatbath.work import Work, matmul

REMEDY = "raise the damping or the machine's bits, or pass solver=Refined(ThermodynamicSolve(machine))"


def solve(
    matrix: Tensor,
    rhs: Tensor,
    *,
    solver: Solver[Any] | None = None,  # Any: any state
    machine: Machine | Device | MachineSpec | None = None,
    guess: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Result:
    """Solve M x = b.

    Args:
        matrix: M, `[*stack, n, n]`, symmetric positive definite, float32 or float64.
        rhs: b, rows `[*stack, *batch, n]`.
        solver: how; None: `ThermodynamicSolve(machine)`, or `Cholesky()` without a machine.
        machine: the machine, instead of a solver.
        guess: where to start, of the shape of `rhs`.
        generator: source of randomness.

    Returns:
        x of the shape of `rhs`; `error` bounds ‖x − M⁻¹b‖ of each member by ‖b − Mx‖/λ_min, measured in float64. Notes: the
        relative `residual`, the `condition` number, and with a machine the `predicted` relative error.

    Raises:
        TypeError: what is no tensor, of another dtype, or no machine.
        ValueError: a matrix that is not square, finite, symmetric and definite, or larger than the machine; right-hand
            sides that do not fit; both `solver` and `machine`.

    >>> import torch
    >>> solve(torch.diag(torch.tensor([2.0, 4.0])), torch.tensor([1.0, 1.0])).value
    tensor([0.5000, 0.2500])
    """
    machine = one_of(solver, machine)
    values = _examine(matrix, machine)
    check_rows(matrix, rhs, "rhs")
    if guess is not None:
        check_rows(matrix, guess, "guess")
        if guess.shape != rhs.shape:
            raise ValueError(f"guess must have the shape of rhs, {tuple(rhs.shape)}, got {tuple(guess.shape)}")
    notes = _forecast(matrix, values, machine, _typical_norm(rhs))
    chosen: Solver[Any] = solver or (Cholesky() if machine is None else ThermodynamicSolve(machine))  # Any: any state
    operator = Dense(matrix)
    state, work = chosen.prepare(operator, generator=generator)
    solution = chosen.solve(state, rhs, guess=guess, generator=generator)
    exact = rhs.double()
    residual = exact - Dense(matrix.double()) @ solution.value.double()
    stack = len(operator.stack)
    notes = {**solution.notes, **notes, "residual": relative_residual(residual, exact, stack).to(rhs)}
    rows = rhs.numel() // (members(operator) * operator.size)
    return Result(
        solution.value,
        norms(residual, stack) / values[..., 0],
        work + solution.work + Work.of(matmul(rows, operator.size, operator.size), members(operator)),
        _judged(worse(chosen.outcome(state), solution.outcome), notes["residual"]),
        notes,
    )


def inv(
    matrix: Tensor,
    *,
    solver: Solver[Any] | None = None,  # Any: any state
    machine: Machine | Device | MachineSpec | None = None,
    readout: CosineVectors | UnitVectors | Fluctuations | None = None,
    generator: torch.Generator | None = None,
) -> Result:
    """Invert M.

    Args:
        matrix: M, `[*stack, n, n]`, symmetric positive definite, float32 or float64.
        solver: how; None: `ThermodynamicInverse(machine, readout)`, or `Cholesky()` without a machine.
        machine: the machine, instead of a solver.
        readout: how a machine's answer is read; None: `CosineVectors()`.
        generator: source of randomness.

    Returns:
        M⁻¹, symmetric; `error` bounds ‖X − M⁻¹‖_F of each member by ‖I − XM‖_F/λ_min, measured in float64. Notes as in `solve`.

    Raises:
        TypeError, ValueError: as `solve`.
    """
    machine = one_of(solver, machine)
    values = _examine(matrix, machine)
    readout = readout or CosineVectors()
    if machine is not None and isinstance(readout, Fluctuations):
        notes = _forecast_covariance(matrix, values, machine, readout)
    else:
        waves = CosineVectors() if isinstance(readout, Fluctuations) else readout
        notes = _forecast(matrix, values, machine, _drive_norm(waves.drives(matrix)))
    if solver is None:
        solver = Cholesky() if machine is None else ThermodynamicInverse(machine, readout)
    operator = Dense(matrix)
    n = operator.size
    identity = torch.eye(n, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    state, work = solver.prepare(operator, generator=generator)
    codes = solver.outcome(state)
    if isinstance(state, Inverse):
        value = state.operator.dense()
    else:
        solution = solver.solve(state, identity, generator=generator)
        value, work, codes = solution.value, work + solution.work, worse(codes, solution.outcome)
        notes = {**solution.notes, **notes}
    value = 0.5 * (value + value.mT)
    size = norms(identity.double() - value.double() @ matrix.double(), len(operator.stack))
    return Result(
        value,
        size / values[..., 0],
        work + Work.of(matmul(n, n, n), members(operator)),
        _judged(codes, size / n**0.5),
        {**notes, "residual": (size / n**0.5).to(matrix), "condition": values[..., -1] / values[..., 0]},
    )


def _examine(matrix: Tensor, machine: Machine | None) -> Tensor:
    """Check a matrix; its eigenvalues, ascending, `[*stack, n]` in float64."""
    check_symmetric(matrix)
    check_cells(matrix, machine)
    values = torch.linalg.eigvalsh(matrix.double())
    check_definite(values)
    return values


def _typical_norm(rhs: Tensor) -> float | None:
    """Median ‖b̂‖ of right-hand sides at full scale, leaving out those of zeros; None if there are no others."""
    rows = rhs.double().reshape(-1, rhs.shape[-1])
    rows = rows[rows.abs().amax(-1) > 0]
    return float((rows / rows.abs().amax(-1, keepdim=True)).norm(dim=-1).median()) if len(rows) else None


def _judged(codes: Tensor, residual: Tensor) -> Tensor:
    """Outcomes, with INACCURATE where the answer is no better than 0: a machine that ran away returns such ones."""
    return torch.where(usable(codes) & (residual >= 1) & torch.isfinite(residual), Outcome.INACCURATE.code, codes).to(
        torch.int8
    )


def _forecast(matrix: Tensor, values: Tensor, machine: Machine | None, drive_norm: float | None) -> dict[str, Any]:
    """Notes on what is to be expected; warns where it is useless."""
    condition = values[..., -1] / values[..., 0]
    if machine is None:
        error = condition * torch.finfo(matrix.dtype).eps
        warn_if_useless(error, condition, f"rounding of {matrix.dtype}", "raise the damping or use float64")
        return {"condition": condition}
    if drive_norm is None:  # x = 0, which is read without error
        return {"condition": condition, "predicted": torch.zeros_like(condition)}
    balanced = torch.linalg.eigvalsh(_balanced(matrix))
    prediction = predict(machine, balanced.clamp_min(1e-300), default_schedule(machine), drive_norm)
    warn_if_useless(prediction.total, condition, _causes(prediction, machine), REMEDY)
    return {"condition": condition, "predicted": prediction.total}


def _forecast_covariance(
    matrix: Tensor, values: Tensor, machine: Machine, readout: Fluctuations
) -> dict[str, Any]:  # Any: as in Solution
    """As `_forecast`, of the covariance read-out."""
    condition = values[..., -1] / values[..., 0]
    prediction = predict_covariance(
        machine, _balanced(matrix), reads=readout.reads, interval=readout.interval, burn_in=readout.burn_in
    )
    remedy = "take more reads, a larger read gain or less read noise, or readout=CosineVectors()"
    warn_if_useless(prediction.total, condition, _causes(prediction, machine), remedy)
    return {"condition": condition, "predicted": prediction.total}


def _balanced(matrix: Tensor) -> Tensor:
    """What is programmed of M: scaled to a unit diagonal, float64."""
    root = matrix.double().diagonal(dim1=-2, dim2=-1).rsqrt()
    return root.unsqueeze(-1) * matrix.double() * root.unsqueeze(-2)


def _drive_norm(drives: Tensor) -> float:
    """‖b̂‖ of a drive at full scale that stands for orthonormal ones.

    A drive b_k with largest entry m_k is driven as b_k/m_k, and its answer's error comes back times m_k. Turning answers back
    keeps Frobenius norms, so that of the inverse errs by √(Σ_k m_k²) of one drive's: as with n drives of norm 1/√(Σ m_k²/n),
    which is 1 for unit vectors and about √(n/2) for cosine vectors. That both triangles are averaged lessens it by up to √2.
    """
    return float(drives.double().abs().amax(-1).square().mean().rsqrt())


def _causes(prediction: Prediction, machine: Machine) -> str:
    """The error budget in words."""
    worst = int(prediction.total.flatten().nan_to_num(nan=torch.inf).argmax())
    names = ("rounding", "settling", "noise", "conversion")
    parts = [(name, float(getattr(prediction, name).flatten()[worst])) for name in names]
    return f"machine {machine.spec.name!r}: " + ", ".join(f"{name} {value:.1e}" for name, value in parts)


__all__ = ["InaccuracyWarning", "Outcome", "Result", "expm_neg", "inv", "logdet", "lyapunov", "solve"]
