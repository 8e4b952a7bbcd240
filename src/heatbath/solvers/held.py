"""A programmed machine as the state of a solver, and the digital work on both sides of programming.

Before programming, the digital side equilibrates: with D = diag(M)^{−1/2} the machine gets D M D, whose diagonal is 1, and
M⁻¹ = D (D M D)⁻¹ D. That costs n² operations and uses the converters' range evenly; the condition number of D M D is within
a factor n of the best that a diagonal scaling reaches (van der Sluis 1969).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatbath.machines import Machine, Programmed, Reading, Schedule
from heatbath.machines.dynamics import Derivation
from heatbath.operators import Dense, Operator, nodes_of, tree
from heatbath.solvers.base import Outcome
from heatbath.solvers.inverse import Inverse
from heatbath.work import Work, elementwise


@tree
@dataclass(frozen=True, eq=False)
class Held:
    """A programmed machine.

    Args:
        programmed: what was sent to the machine.
        root: D as a vector, `[*stack, n]`.
        outcome: int8 codes `[*stack]`.
        carry: where the cells ended the last run, `[*stack, *batch, n]`; None if that is not kept.
    """

    programmed: Programmed
    root: Tensor
    outcome: Tensor
    carry: Tensor | None = None


def program(
    machine: Machine,
    operator: Operator,
    schedule: Schedule | None,
    *,
    equilibrate: bool = True,
    circuit: Derivation | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Held, Work]:
    """Equilibrate and program a dense operator.

    Args:
        machine: the machine.
        operator: M, `[*stack]` of them.
        schedule: how it will be read; None: any.
        equilibrate: scale to a unit diagonal first.
        circuit: for an emulator, another circuit or dynamics than it would choose.
        generator: source of randomness, for stochastic rounding and write noise.

    Raises:
        TypeError: another structure than `Dense`.
        ValueError: more cells than the machine has.
    """
    if not isinstance(operator, Dense):
        raise TypeError(f"a machine holds Dense operators, got {type(operator).__name__}; wrap the solver: Factorwise(...)")
    matrix, work = operator.matrix, Work()
    root, diagonal = torch.ones_like(matrix[..., 0]), matrix.diagonal(dim1=-2, dim2=-1)
    if equilibrate:
        root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        matrix = root.unsqueeze(-1) * matrix * root.unsqueeze(-2)
        work = Work.of(elementwise(operator.size**2, 2), max(operator.stack.numel(), 1))
    programmed = machine.program(matrix, schedule=schedule, circuit=circuit, check=False, generator=generator)
    good = (diagonal > 0).all(-1) & torch.isfinite(matrix).flatten(-2).all(-1)
    codes = torch.where(good, Outcome.SOLVED.code, Outcome.INDEFINITE.code).to(torch.int8)
    return Held(programmed, root, codes), work + programmed.work


def clips_of(state: Any) -> Tensor | None:  # Any: a state of any solver
    """What machines clipped while a state was prepared, entries of matrices and readings of inverses together, 0-d, or None."""
    counts = [held.programmed.clipped for held in nodes_of(state, Held)]
    counts += [inverse.clipped for inverse in nodes_of(state, Inverse) if inverse.clipped is not None]
    return torch.stack([count.sum() for count in counts]).sum() if counts else None


def outcome_of(reading: Any, prepared: Tensor) -> Tensor:  # Any: a Reading or a CovarianceReading
    """Outcome codes of a run: what preparing said, unless the machine was late."""
    return torch.where(reading.late, Outcome.LATE.code, prepared).to(torch.int8)


def notes_of(reading: Reading) -> dict[str, Any]:  # Any: notes are tensors or strings
    """What a run reports besides its answer."""
    return {"read_clipped": reading.read_clipped, "drive_clipped": reading.drive_clipped}
