"""What the study of quantization varies: bits and damping together, other imperfections one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from heatbath.experiments.optimizers import THERMODYNAMIC
from heatbath.machines import MachineSpec

DRIFT, DRIFT_SPREAD = 0.05, 0.3  # illustrative exponent and its relative spread


@dataclass(frozen=True)
class Sweep:
    """One imperfection, varied alone.

    Args:
        label: of its axis, with the unit.
        values: from harmless to harmful.
        change: what a value makes of a machine.
    """

    label: str
    values: tuple[float, ...]
    change: Callable[[MachineSpec, float], MachineSpec]


SWEEPS: Mapping[str, Sweep] = MappingProxyType(
    {
        "noise": Sweep(
            "noise of a cell, rms over full scale",
            (1e-3, 1e-2, 0.03, 0.1, 0.3),
            lambda spec, x: replace(spec, noise_volts_rms=x * spec.volts),
        ),
        "settling": Sweep("time of a drive (τ)", (50, 20, 10, 5, 2), lambda spec, x: replace(spec, settle_taus=x)),
        "mismatch": Sweep(
            "gain mismatch of an entry, rms", (1e-3, 1e-2, 0.03, 0.1, 0.3), lambda spec, x: replace(spec, gain_mismatch=x)
        ),
        "drift": Sweep(
            "time from programming to use (s)",
            (1.0, 1e2, 1e4, 1e6),
            lambda spec, x: replace(spec, hold_seconds=x, drift_exponent=DRIFT, drift_spread=DRIFT_SPREAD),
        ),
        "drive": Sweep("bits of the drive's converter", (12, 8, 6, 4, 3), lambda spec, x: replace(spec, drive_bits=int(x))),
    }
)


@dataclass(frozen=True)
class Grid:
    """What is varied.

    Args:
        matrix_bits: of the machine's matrix.
        read_bits: of its read converters.
        dampings: multiples of the tuned damping.
        solvers: keys of `THERMODYNAMIC`.
        sweeps: keys of `SWEEPS`.

    Raises:
        ValueError: an unknown name, a damping that is not positive, or no bits, dampings or solvers.
    """

    matrix_bits: tuple[int, ...] = (4, 6, 8, 12)
    read_bits: tuple[int, ...] = (4, 6, 8, 12)
    dampings: tuple[float, ...] = (0.1, 1.0, 10.0)
    solvers: tuple[str, ...] = tuple(THERMODYNAMIC)
    sweeps: tuple[str, ...] = tuple(SWEEPS)

    def __post_init__(self) -> None:
        for what, names, known in (("solver", self.solvers, THERMODYNAMIC), ("sweep", self.sweeps, SWEEPS)):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ValueError(f"there is no {what} {', '.join(unknown)} to vary; known: {', '.join(known)}")
        if not all(0 < d < math.inf for d in self.dampings):
            raise ValueError(f"dampings are multiples of the tuned one and must be positive, got {self.dampings}")
        if not (self.matrix_bits and self.read_bits and self.dampings and self.solvers):
            raise ValueError("a grid needs at least one of matrix bits, read bits, dampings and solvers")
