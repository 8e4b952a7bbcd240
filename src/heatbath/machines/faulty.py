"""A machine that fails: for tests of what stands behind it, and for studies.

A fault spoils whole machines of a fleet, member by member of the stack, by chance (`rate`) or at every so-many-th call
(`every`). What comes back then is what hardware gives: numbers without meaning, no numbers, old numbers, or nothing in time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from torch import Tensor

from heatbath.machines.converters import normal, uniform
from heatbath.machines.door import Derivation
from heatbath.machines.machine import Machine
from heatbath.machines.programmed import CovarianceReading, Programmed, Reading
from heatbath.machines.schedule import Schedule
from heatbath.machines.spec import MachineSpec


class Fault(Enum):
    """What a spoilt call returns; the value says it in words."""

    GARBAGE = "numbers of the right size without meaning"
    NONFINITE = "NaN"
    STALE = "the result of the drive before (the first: 0)"
    LATE = "nothing in time: NaN, and the reading says `late`"


@dataclass(frozen=True)
class Faulty:
    """A machine that spoils some of its calls; used wherever a `Machine` is.

    Args:
        machine: the machine that would work.
        fault: what happens.
        rate: probability for each member of the stack at each call.
        every: instead: all members at every so-many-th call of `run` or `read_covariance`. This counts calls, the only state
            a machine has outside its arguments.

    Raises:
        ValueError: neither or both of `rate` and `every`, or a value out of range.
    """

    machine: Machine
    fault: Fault
    rate: float | None = None
    every: int | None = None
    calls: itertools.count[int] = field(default_factory=lambda: itertools.count(1), compare=False, repr=False)

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.every is None):
            raise ValueError(f"give either rate or every, got rate={self.rate} and every={self.every}")
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError(f"rate is a probability in [0, 1], got {self.rate}")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")

    @property
    def spec(self) -> MachineSpec:
        """The specification of the machine that would work."""
        return self.machine.spec

    def program(
        self,
        matrix: Tensor,
        *,
        schedule: Schedule | None = None,
        law: Derivation | None = None,
        check: bool = True,
        generator: torch.Generator | None = None,
    ) -> Programmed:
        """See `Machine.program`; programming does not fail."""
        return self.machine.program(matrix, schedule=schedule, law=law, check=check, generator=generator)

    def run(
        self,
        programmed: Programmed,
        drive: Tensor,
        *,
        schedule: Schedule,
        start: Tensor | None = None,
        guess: Tensor | None = None,
        keep_end: bool = True,
        generator: torch.Generator | None = None,
    ) -> Reading:
        """See `Machine.run`; some of the results are spoilt."""
        reading = self.machine.run(
            programmed, drive, schedule=schedule, start=start, guess=guess, keep_end=keep_end, generator=generator
        )
        hit = self._hit(programmed, generator)
        rows = reading.mean.reshape(*programmed.stack, -1, programmed.size)
        spoilt = torch.where(hit[..., None, None], self._spoil(rows, generator), rows)
        return replace(reading, mean=spoilt.reshape(drive.shape), late=hit & (self.fault is Fault.LATE))

    def read_covariance(
        self, programmed: Programmed, *, reads: int, interval: float, burn_in: float, generator: torch.Generator | None = None
    ) -> CovarianceReading:
        """See `Machine.read_covariance`; some of the results are spoilt."""
        reading = self.machine.read_covariance(programmed, reads=reads, interval=interval, burn_in=burn_in, generator=generator)
        hit = self._hit(programmed, generator)
        spoilt = self._spoil(reading.inverse, generator)
        inverse = torch.where(hit[..., None, None], (spoilt + spoilt.mT) / 2, reading.inverse)
        return replace(reading, inverse=inverse, late=hit & (self.fault is Fault.LATE))

    def _hit(self, programmed: Programmed, generator: torch.Generator | None) -> Tensor:
        """Which members fail this time, bool `[*stack]`."""
        if self.every is not None:
            return torch.full_like(programmed.definite, next(self.calls) % self.every == 0)
        assert self.rate is not None
        return uniform(tuple(programmed.stack), programmed.scale, generator) < self.rate

    def _spoil(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """Spoilt results in place of `rows` `[*stack, m, n]`."""
        if self.fault is Fault.GARBAGE:
            size = rows.square().mean((-2, -1), keepdim=True).sqrt()
            return size * normal(tuple(rows.shape), rows, generator)
        if self.fault is Fault.STALE:
            return torch.cat([torch.zeros_like(rows[..., :1, :]), rows[..., :-1, :]], -2)
        return torch.full_like(rows, torch.nan)
