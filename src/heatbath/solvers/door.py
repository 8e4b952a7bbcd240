"""What `heatbath.linalg` refuses, before any work. Looking at values waits for the device, which inner loops must not."""

from __future__ import annotations

import torch
from torch import Tensor

from heatbath.machines import Device, Machine, MachineSpec, as_machine
from heatbath.solvers.base import check_solver


def check_definite(values: Tensor, name: str = "the matrix") -> None:
    """Refuse matrices that are not positive definite.

    Args:
        values: eigenvalues, ascending, `[*stack, n]`.
        name: what to call it in messages.

    Raises:
        ValueError: an eigenvalue at or below 0.
    """
    smallest, largest = values[..., 0].flatten(), values[..., -1].flatten()
    k = int((smallest / largest.abs().clamp_min(torch.finfo(values.dtype).tiny)).argmin())
    if not float(smallest[k]) > 0:
        low, high = float(smallest[k]), float(largest[k])
        where = f" of member {k} of the stack" if len(smallest) > 1 else ""
        raise ValueError(
            f"{name} is not positive definite: the eigenvalues{where} reach from {low:.3g} to {high:.3g}; add damping above "
            f"{abs(low):.1g} to its diagonal"
        )


def check_cells(matrix: Tensor, machine: Machine | None) -> None:
    """Refuse matrices larger than the machine.

    Raises:
        ValueError: more cells needed than there are.
    """
    cells, n = None if machine is None else machine.spec.cells, matrix.shape[-1]
    if machine is not None and cells is not None and n > cells:
        raise ValueError(
            f"a matrix of size {n} needs {n} cells, machine {machine.spec.name!r} has {cells}; "
            f"use solver=Blocked(ThermodynamicSolve(machine), cells={cells}), or a larger machine"
        )


def check_rows(matrix: Tensor, rows: Tensor, name: str) -> None:
    """Refuse right-hand sides that do not fit the matrix.

    Raises:
        TypeError: not a tensor, or another dtype than the matrix.
        ValueError: another device, not finite, or a shape other than `[*stack, *batch, n]`.
    """
    stack, n = matrix.shape[:-2], matrix.shape[-1]
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(rows).__name__}")
    if rows.dtype != matrix.dtype:
        raise TypeError(f"{name} is {rows.dtype}, the matrix {matrix.dtype}; convert one of them")
    if rows.device != matrix.device:
        raise ValueError(f"{name} is on {rows.device}, the matrix on {matrix.device}; move one of them")
    if rows.ndim <= len(stack) or rows.shape[: len(stack)] != stack or rows.shape[-1] != n:
        wanted = ", ".join([*map(str, stack), "*batch", str(n)])
        hint = f"; right-hand sides are rows: pass {name}.mT" if rows.ndim > len(stack) + 1 and rows.shape[-2] == n else ""
        raise ValueError(f"{name} must have shape [{wanted}], got {tuple(rows.shape)}{hint}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{name} holds NaN or inf; look at what it was made from")


def one_of(solver: object, machine: Machine | Device | MachineSpec | None) -> Machine | None:
    """The machine to use, if any; two ways of solving at once are refused.

    Raises:
        ValueError: both given.
        TypeError: a solver or machine that is none.
    """
    if solver is not None:
        check_solver(solver, "solver")
    if solver is not None and machine is not None:
        raise ValueError("give either solver= or machine=, got both; a solver holds its own machine")
    return None if machine is None else as_machine(machine)
