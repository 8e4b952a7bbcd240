"""What a machine refuses, before any work."""

from __future__ import annotations

from torch import Tensor

from heatbath.machines.device import RawReads, ReadPlan
from heatbath.machines.readings import Programmed
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
    codes, stack = programmed.codes, programmed.stack
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(rows).__name__}")
    if rows.dtype != codes.dtype:
        raise TypeError(f"{name} is {rows.dtype}, the programmed matrix {codes.dtype}; convert one of them")
    if rows.device != codes.device:
        raise ValueError(f"{name} is on {rows.device}, the programmed matrix on {codes.device}; move one of them")
    if rows.ndim <= len(stack) or rows.shape[: len(stack)] != stack or rows.shape[-1] != programmed.size:
        wanted = ", ".join([*map(str, stack), "*batch", str(programmed.size)])
        raise ValueError(f"{name} must have shape [{wanted}] for this stack of matrices, got {tuple(rows.shape)}")


def check_watch(spec: MachineSpec, reads: int, interval: float) -> None:
    """Refuse to read the noise of a machine that has none, or not at all.

    Raises:
        ValueError: no noise, no reads, or an interval that is not positive.
    """
    if spec.noise == 0:
        raise ValueError(f"machine {spec.name!r} has no noise to read; give it a temperature or noise_volts_rms, or drive it")
    if reads < 1 or not interval > 0:
        raise ValueError(f"reading noise takes reads >= 1 and an interval > 0 s, got {reads} and {interval}")


def check_raw(raw: RawReads, machines: int, drives: int, cells: int, plan: ReadPlan) -> None:
    """Refuse what a device returned if it is not what was asked for.

    Raises:
        TypeError: no `RawReads`.
        ValueError: a shape that does not fit.
    """
    if not isinstance(raw, RawReads):
        raise TypeError(f"Device.run must return RawReads, got {type(raw).__name__}")
    codes = (machines, drives, plan.reads, cells) if plan.every else (machines, drives, cells)
    wanted = {"codes": codes, "railed": codes, "unit": (machines, drives, 1), "attenuation": (machines, drives, 1)}
    for name, shape in {**wanted, "late": (machines,)}.items():
        got = tuple(getattr(raw, name).shape)
        if got != shape:
            raise ValueError(f"Device.run returned {name} of shape {got}, asked for were {shape} (machines, drives, ...)")
