"""Runs of a device, recorded and replayed: results of hardware that anybody can repeat bit by bit.

A recording holds each call in order: the codes that were loaded, the drives and plans of each run, and what came back. A replay
answers the same calls and refuses others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heatbath.machines.device import Device, RawReads, ReadPlan
from heatbath.machines.spec import MachineSpec

Call = dict[str, Any]  # Any: plain numbers and tensors


@dataclass(frozen=True)
class Recording:
    """A device that keeps what goes to another one and comes back.

    Args:
        device: the other device. An emulator is recorded without its shortcut.
    """

    device: Device
    calls: list[Call] = field(default_factory=list, compare=False, repr=False)

    @property
    def spec(self) -> MachineSpec:
        """The device's data sheet."""
        return self.device.spec

    def load(self, codes: Tensor, slots: Sequence[int]) -> None:
        """See `Device.load`."""
        self.device.load(codes, slots)
        self.calls.append({"load": codes.clone(), "slots": list(slots)})

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
        self.calls.append({**_asked(slots, drive, plan, initial), "raw": dict(vars(raw))})
        return raw

    def save(self, path: str | Path) -> None:
        """Write all calls to a file of tensors and plain numbers (`torch.load(weights_only=True)`)."""
        torch.save(self.calls, path)


@dataclass(frozen=True)
class Replay:
    """A device that returns what was recorded, call by call.

    Args:
        spec: the data sheet of the device that was recorded.
        path: from `Recording.save`.
    """

    spec: MachineSpec
    path: str | Path
    calls: list[Call] = field(init=False, compare=False, repr=False)
    done: list[int] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls", torch.load(self.path, weights_only=True))

    def load(self, codes: Tensor, slots: Sequence[int]) -> None:
        """See `Device.load`.

        Raises:
            ValueError: another call than was recorded, or more calls.
        """
        self._next({"load": codes, "slots": list(slots)})

    def run(
        self,
        slots: Sequence[int],
        drive: Tensor | None,
        plan: ReadPlan,
        *,
        initial: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> RawReads:
        """See `Device.run`.

        Raises:
            ValueError: another call than was recorded, or more calls.
        """
        return RawReads(**self._next(_asked(slots, drive, plan, initial))["raw"])

    def _next(self, asked: Call) -> Call:
        k = len(self.done)
        if k >= len(self.calls):
            raise ValueError(f"the recording ends after {k} calls, and more was asked; record the whole run")
        recorded = self.calls[k]
        if not all(_same(value, recorded.get(name)) for name, value in asked.items()):
            raise ValueError(f"call {k + 1}: something else was asked than was recorded; same code, data and seeds are needed")
        self.done.append(k)
        return recorded


def _asked(slots: Sequence[int], drive: Tensor | None, plan: ReadPlan, initial: Tensor | None) -> Call:
    return {"slots": list(slots), "drive": drive, "plan": asdict(plan), "initial": initial}


def _same(a: Any, b: Any) -> bool:  # Any: plain numbers and tensors
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)
