"""How large a condition number a machine stands: a rule is in `spec.derived`, a measurement here.

Matrices with a random eigenbasis and evenly spaced logarithms of eigenvalues are held by the machine (rounded, mismatched,
written with noise), inverted exactly, and compared with what was meant. The condition number at which the median relative
error of the inverse reaches ½ is found by halving an interval; what is held indefinite counts as an infinite error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heatbath.machines.emulator.emulator import Emulator
from heatbath.machines.machine import Machine
from heatbath.machines.oracle import oracle
from heatbath.machines.spec import MachineSpec

DRAWS = 5  # matrices for each condition number
HIGHEST = 1e12  # beyond, float64 itself is in doubt
HALVINGS = 14  # of log κ: to 0.2 % of its range


def simulated_condition(spec: MachineSpec, *, cells: int, serial: int = 0, generator: torch.Generator) -> float | None:
    """The condition number at which the inverse of what the machine holds is off by half; None if that is beyond 10¹².

    Args:
        spec: the machine.
        cells: n; costs about 70 inversions of this size.
        serial: serial number of the first machine, for its mismatch.
        generator: source of the matrices, and of write noise and stochastic rounding.

    Raises:
        ValueError: a size below 2 or above the machine's.
    """
    if cells < 2 or (spec.cells is not None and cells > spec.cells):
        raise ValueError(f"cells must be 2 to {spec.cells or 'any number'} on machine {spec.name!r}, got {cells}")
    basis = torch.linalg.qr(torch.randn(DRAWS, cells, cells, dtype=torch.float64, generator=generator)).Q
    low, high = 0.0, math.log10(HIGHEST)
    if _error(basis, high, spec, serial, generator) < 0.5:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _error(basis, middle, spec, serial, generator) < 0.5:
            low = middle
        else:
            high = middle
    return 10.0**low


def _error(basis: Tensor, decades: float, spec: MachineSpec, serial: int, generator: torch.Generator) -> float:
    """Median relative error of the inverse at κ = 10^decades."""
    values = torch.logspace(0, -decades, basis.shape[-1], dtype=basis.dtype)
    matrix = (basis * values) @ basis.mT
    programmed = Machine(Emulator(spec, serial)).program(matrix, check=False, generator=generator)
    rates, modes = torch.linalg.eigh(oracle(programmed).conductance)
    inverse = (modes / rates.unsqueeze(-2)) @ modes.mT / programmed.scale[..., None, None]
    exact = (basis / values) @ basis.mT
    error = (inverse - exact).flatten(1).norm(dim=-1) / exact.flatten(1).norm(dim=-1)
    return float(torch.where(rates[..., 0] > 0, error, math.inf).median())
