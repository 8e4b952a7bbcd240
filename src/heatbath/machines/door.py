"""What a machine refuses, before any work."""

from __future__ import annotations

from torch import Tensor

from heatbath.machines.fast import FastLaw
from heatbath.machines.programmed import Programmed
from heatbath.machines.schedule import Schedule
from heatbath.machines.spec import MachineSpec
from heatbath.operators import check_symmetric


def check_matrix(matrix: Tensor, spec: MachineSpec, *, values: bool = True) -> None:
    """Refuse what cannot be programmed.

    Args:
        matrix: meant to be `[*stack, n, n]`.
        spec: the machine.
        values: also look at the values, which waits for the device.

    Raises:
        TypeError: not a tensor, or not float32 or float64.
        ValueError: not square, empty, larger than the machine, not finite, not symmetric.
    """
    check_symmetric(matrix, values=values)
    n = matrix.shape[-1]
    if spec.cells is not None and n > spec.cells:
        raise ValueError(
            f"a matrix of size {n} needs {n} cells, machine {spec.name!r} has {spec.cells}; "
            "use a larger machine, split the matrix into blocks, or leave this layer to a digital solver"
        )


def check_mean(spec: MachineSpec) -> None:
    """Refuse to drive a machine whose mean is no solution.

    Raises:
        ValueError: capacitive coupling.
    """
    if spec.coupling is not None:
        raise ValueError(
            f"machine {spec.name!r} holds the matrix in capacitances, so its mean is no solution; use read_covariance"
        )


def check_drive(programmed: Programmed, drive: Tensor, *, start: Tensor | None, guess: Tensor | None) -> None:
    """Refuse drives, and starts, that do not fit what is programmed.

    Raises:
        TypeError: another dtype than the matrix.
        ValueError: a shape or device that does not match, or both `start` and `guess`.
    """
    _check_rows(programmed, drive, "drive")
    if start is not None and guess is not None:
        raise ValueError("give either start (voltages) or guess (a solution), got both")
    for name, value in (("start", start), ("guess", guess)):
        if value is not None:
            _check_rows(programmed, value, name)
            if value.shape != drive.shape:
                raise ValueError(f"{name} must have the shape of drive, {tuple(drive.shape)}, got {tuple(value.shape)}")


def _check_rows(programmed: Programmed, rows: Tensor, name: str) -> None:
    held, stack = programmed.held, programmed.stack
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(rows).__name__}")
    if rows.dtype != held.dtype:
        raise TypeError(f"{name} is {rows.dtype}, the programmed matrix {held.dtype}; convert one of them")
    if rows.device != held.device:
        raise ValueError(f"{name} is on {rows.device}, the programmed matrix on {held.device}; move one of them")
    if rows.ndim <= len(stack) or rows.shape[: len(stack)] != stack or rows.shape[-1] != programmed.size:
        wanted = ", ".join([*map(str, stack), "*batch", str(programmed.size)])
        raise ValueError(f"{name} must have shape [{wanted}] for this stack of matrices, got {tuple(rows.shape)}")


def check_schedule(programmed: Programmed, schedule: Schedule) -> None:
    """Refuse a schedule that asks more of the fast law than the one it was chosen for.

    Raises:
        ValueError: a shorter burn-in or duration, closer reads, or another way of reading.
    """
    chosen = programmed.schedule
    if chosen is None or not isinstance(programmed.law, FastLaw) or schedule == chosen:
        return
    alike = (schedule.reads is None, schedule.reads == 1) == (chosen.reads is None, chosen.reads == 1)
    alike = alike and (schedule.burn_in == 0) == (chosen.burn_in == 0)
    spacing, least = (s.duration / (s.reads or 1) for s in (schedule, chosen))
    if not alike or schedule.burn_in < chosen.burn_in or (spacing < least * (1 - 1e-9) and schedule.reads != 1):
        raise ValueError(
            f"the {programmed.tier} was chosen for {chosen} and may not hold for {schedule}; "
            "program again with the schedule you will run, or with none"
        )
