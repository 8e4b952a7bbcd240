"""Devices that fail: for tests of what stands behind them, and for studies.

A fault spoils whole machines, member by member of the stack, by chance (`rate`) or at every so-many-th call (`every`). What
comes back then is what hardware gives: numbers without meaning, no numbers, old numbers, or nothing in time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from heatbath.machines.device import Device, RawReads, ReadPlan
from heatbath.machines.emulator.emulator import Emulated, Emulator
from heatbath.machines.emulator.front_end import EmulatedReads
from heatbath.machines.random import normal, uniform
from heatbath.machines.spec import MachineSpec


class Fault(Enum):
    """What a spoilt call returns; the value says it in words."""

    GARBAGE = "numbers of the right size without meaning"
    NONFINITE = "NaN"
    STALE = "the result of the drive before (the first: 0)"
    LATE = "nothing in time: NaN, and the reading says `late`"


@dataclass(frozen=True)
class FaultInjector:
    """A device that spoils some of its runs; loading does not fail.

    Args:
        device: the device that would work.
        fault: what happens.
        rate: probability for each machine at each run.
        every: instead: all machines at every so-many-th run. This counts runs, the only state it has.

    Raises:
        ValueError: neither or both of `rate` and `every`, or a value out of range.
    """

    device: Device
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
        """The data sheet of the device that would work."""
        return self.device.spec

    @property
    def serial(self) -> int:
        """Serial number of an emulator's first machine."""
        return int(getattr(self.device, "serial", 0))

    @property
    def shortcut(self) -> FaultInjector | None:
        """An emulator's, with the same faults."""
        return None if getattr(self.device, "shortcut", None) is None else self

    def load(self, codes: Tensor, slots: Sequence[int]) -> None:
        """See `Device.load`."""
        self.device.load(codes, slots)

    def run(
        self,
        slots: Sequence[int],
        drive: Tensor | None,
        plan: ReadPlan,
        *,
        initial: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> RawReads:
        """See `Device.run`."""
        raw = self.device.run(slots, drive, plan, initial=initial, generator=generator)
        return self._spoil(raw, self._hit(raw, generator), generator)

    def program(self, codes: Tensor, slots: Sequence[int], **options: Any) -> Emulated:  # Any: those of `Emulator.program`
        """See `Emulator.program`."""
        return self._emulator.program(codes, slots, **options)

    def respond(
        self,
        emulated: Emulated,
        drive: Tensor | None,
        plan: ReadPlan,
        *,
        generator: torch.Generator | None = None,
        **options: Any,  # Any: those of `Emulator.respond`
    ) -> EmulatedReads:
        """See `Emulator.respond`."""
        reads = self._emulator.respond(emulated, drive, plan, generator=generator, **options)
        return replace(reads, raw=self._spoil(reads.raw, self._hit(reads.raw, generator), generator))

    def stream(
        self,
        emulated: Emulated,
        drive: Tensor | None,
        plan: ReadPlan,
        *,
        gram: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[RawReads]:
        """See `Emulator.stream`; one run, however many chunks."""
        hit: Tensor | None = None
        for raw in self._emulator.stream(emulated, drive, plan, gram=gram, generator=generator):
            hit = self._hit(raw, generator) if hit is None else hit
            yield self._spoil(raw, hit, generator)

    @property
    def _emulator(self) -> Emulator:
        return self.device.shortcut  # type: ignore[attr-defined]  # `shortcut` of this is None without one

    def _hit(self, raw: RawReads, generator: torch.Generator | None) -> Tensor:
        """Which machines fail this time, bool `[*stack]`."""
        if self.every is not None:
            return torch.full_like(raw.late, next(self.calls) % self.every == 0)
        assert self.rate is not None
        return uniform(tuple(raw.late.shape), raw.unit, generator) < self.rate

    def _spoil(self, raw: RawReads, hit: Tensor, generator: torch.Generator | None) -> RawReads:
        """What comes back in place of `raw`."""
        codes, unit = raw.codes, raw.unit
        if self.fault is Fault.GARBAGE:
            size = codes.flatten(hit.ndim).square().mean(-1).sqrt()
            spoilt = size.reshape(*hit.shape, *(1,) * (codes.ndim - hit.ndim)) * normal(tuple(codes.shape), codes, generator)
        elif self.fault is Fault.STALE:
            spoilt, before = (t.movedim(hit.ndim, 0).roll(1, 0).movedim(0, hit.ndim) for t in (codes, unit))
            spoilt.narrow(hit.ndim, 0, 1).zero_()
            unit = torch.where(hit[..., None, None], before, unit)
        else:
            spoilt = torch.full_like(codes, torch.nan)
        chosen = hit.reshape(*hit.shape, *(1,) * (codes.ndim - hit.ndim))
        late = hit & (self.fault is Fault.LATE)
        return replace(raw, codes=torch.where(chosen, spoilt, codes), unit=unit, late=raw.late | late)
