"""What follows from a specification before anything is run: settling, usable condition numbers, time of a solve.

With entries at full scale the largest eigenvalue of what is held is at least 1, so λ_min ≥ 1/κ in units of 1/τ and a start is
forgotten to ε after τ κ ln(1/ε) at most. Rounding to b bits adds a symmetric matrix of independent errors of rms LSB/√12
whose norm is about 2 (LSB/√12) √n (Wigner); relative to λ_min this is the error of the inverse, and above 1 what is held may
be indefinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from heatbath.machines.converters import lsb
from heatbath.machines.spec.machine_spec import MachineSpec


@dataclass(frozen=True)
class Figures:
    """Derived figures of a machine for matrices of size n and condition number κ; seconds, and None where not stated.

    Args:
        cells: n.
        condition: κ.
        settle_seconds: until a start is forgotten to half a step of the read converter (to 10⁻³ without one).
        upload_seconds: to send the matrix.
        drive_seconds: to settle, read once, and move one drive and one result.
        rounding_error: relative error of the inverse from the matrix bits, 0 without any.
        largest_condition: κ at which that error reaches ½; None without matrix bits.
        noise_error: relative error of a single read from the noise, for a drive of one unit vector; 0 without noise.
    """

    cells: int
    condition: float
    settle_seconds: float
    upload_seconds: float | None
    drive_seconds: float | None
    rounding_error: float
    largest_condition: float | None
    noise_error: float

    @property
    def solve_seconds(self) -> float | None:
        """To program and serve one drive."""
        if self.upload_seconds is None or self.drive_seconds is None:
            return None
        return self.upload_seconds + self.drive_seconds


def figures(spec: MachineSpec, *, cells: int, condition: float) -> Figures:
    """Derive figures for matrices of size `cells` and condition number `condition`.

    Raises:
        ValueError: a size below 1 or above the machine's, or a condition number below 1.
    """
    if cells < 1 or (spec.cells is not None and cells > spec.cells):
        raise ValueError(f"cells must be 1 to {spec.cells or 'any number'} on machine {spec.name!r}, got {cells}")
    if not condition >= 1 or math.isinf(condition):
        raise ValueError(f"a condition number is finite and 1 or more, got {condition}")
    settle = settle_seconds(spec, condition=condition)
    upload = drive = None
    if spec.bandwidth is not None:
        bits = float(spec.matrix_bits or 32)
        upload = cells**2 * bits / spec.bandwidth
        moved = cells * ((spec.drive_bits or 32) + (spec.read_bits or 32)) / spec.bandwidth
        drive = max(settle, moved)
    perturbation = 0.0 if spec.matrix_bits is None else 2 * float(lsb(spec.matrix_bits)) * math.sqrt(cells / 12)
    return Figures(
        cells=cells,
        condition=condition,
        settle_seconds=settle,
        upload_seconds=upload,
        drive_seconds=drive,
        rounding_error=perturbation * condition,
        largest_condition=0.5 / perturbation if perturbation > 0 else None,
        noise_error=math.sqrt(spec.noise * cells),
    )


def settle_seconds(spec: MachineSpec, *, condition: float, error: float | None = None) -> float:
    """Longest time until a start is forgotten to `error` (None: half a step of the read converter, or 10⁻³).

    Cells with inertia ring down at 1/2μ at best, however fast their mode is.
    """
    if error is None:
        error = 1e-3 if spec.read_bits is None else float(lsb(spec.read_bits)) / 2
    rate = 1 / condition
    if spec.inertia is not None:
        rate = min(rate, 1 / (2 * spec.inertia))
    return spec.time_constant * math.log(1 / error) / rate
