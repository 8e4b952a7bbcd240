"""A machine that fails: for tests of what stands behind it, and for studies.

A fault spoils whole machines of a fleet, member by member of the stack, by chance (`rate`) or at every so-many-th call
(`every`). What comes back then is what hardware gives: numbers without meaning, no numbers, old numbers, or nothing in time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from heatbath.machines.converters import normal, uniform
from heatbath.machines.machine import Machine
from heatbath.machines.programmed import CovarianceReading, Programmed, Reading
from heatbath.machines.spec import MachineSpec


class Fault(Enum):
    """What a spoilt call returns; the value says it in words."""

    GARBAGE = "numbers of the right size without meaning"
    NONFINITE = "NaN"
    STALE = "the result of the drive before (the first: 0)"
    LATE = "nothing in time: NaN, and the reading says `late`"


P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", Reading, CovarianceReading)


def _passed_on(method: Callable[Concatenate[Machine, P], T]) -> Callable[Concatenate[Faulty, P], T]:
    """A method of the machine that would work, as it is."""

    @functools.wraps(method)
    def call(self: Faulty, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self.machine, *args, **kwargs)

    return call


def _spoilt(
    method: Callable[Concatenate[Machine, Programmed, P], R],
) -> Callable[Concatenate[Faulty, Programmed, P], R]:
    """A method of the machine that would work, some of whose readings are spoilt."""

    @functools.wraps(method)
    def call(self: Faulty, programmed: Programmed, /, *args: P.args, **kwargs: P.kwargs) -> R:
        generator = cast("torch.Generator | None", kwargs.get("generator"))
        return self._answer(method(self.machine, programmed, *args, **kwargs), programmed, generator)

    return call


@dataclass(frozen=True)
class Faulty:
    """A machine that spoils some of its calls; used wherever a `Machine` is.

    It has a machine's methods with a machine's signatures; programming does not fail.

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

    program = _passed_on(Machine.program)
    age = _passed_on(Machine.age)
    clock = _passed_on(Machine.clock)
    run = _spoilt(Machine.run)
    read_covariance = _spoilt(Machine.read_covariance)

    def _answer(self, reading: R, programmed: Programmed, generator: torch.Generator | None) -> R:
        """The reading as it comes back this time."""
        hit = self._hit(programmed, generator)
        value = reading.mean if isinstance(reading, Reading) else reading.inverse
        rows = value.reshape(*programmed.stack, -1, programmed.size)
        spoilt = self._spoil(rows, generator)
        if isinstance(reading, CovarianceReading):
            spoilt = (spoilt + spoilt.mT) / 2
        value = torch.where(hit[..., None, None], spoilt, rows).reshape(value.shape)
        late = hit & (self.fault is Fault.LATE)
        if isinstance(reading, Reading):
            return replace(reading, mean=value, late=late)
        return replace(reading, inverse=value, late=late)

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
