"""When a machine starts to be read, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass

from heatbath.operators import tree


@tree
@dataclass(frozen=True)
class Schedule:
    """Burn in, then read.

    A single read costs least time; averaging lowers the thermal noise as one over the root of the duration. An analog
    integrator needs one conversion a cell; digital averaging needs one for each read, and dithers the converter.

    Args:
        burn_in: seconds from the start of the drive to the first read.
        duration: seconds of reading; the machine is free again after `burn_in + duration`.
        reads: None for an analog integrator over `duration` that is converted once; k for k reads, `duration / k` apart
            and beginning at `burn_in`, averaged digitally.

    Raises:
        TypeError: a time or the number of reads is not a number.
        ValueError: a negative or non-finite time, no reads, or several reads in no time.
    """

    burn_in: float
    duration: float
    reads: int | None = None

    def __post_init__(self) -> None:
        for name in ("burn_in", "duration"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number of seconds, got {value!r}")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number of seconds, 0 or more, got {value!r}")
        if self.reads is not None:
            if isinstance(self.reads, bool) or not isinstance(self.reads, int):
                raise TypeError(f"reads must be a whole number, or None for an analog integrator, got {self.reads!r}")
            if self.reads < 1:
                raise ValueError(f"reads must be at least 1, got {self.reads}")
        if self.duration == 0 and self.reads != 1:
            how = "an analog integrator (reads=None)" if self.reads is None else f"{self.reads} reads"
            raise ValueError(f"{how} need a duration above 0 s; for one read at the end of the burn-in use reads=1")

    @property
    def seconds(self) -> float:
        """Time a drive occupies the machine."""
        return self.burn_in + self.duration
