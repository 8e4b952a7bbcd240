"""Streams of a device, played on the CPU: who may see what is told by vector clocks (Lamport 1978; Mattern 1989).

Each operation ticks the clock of the stream it is given to, and every tensor's memory remembers who wrote and who read it last.
An operation may read what another stream wrote only if its own stream has waited for an event after that write, may write
only what others have done with, and may touch memory of another stream only if that was recorded on its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RaceError(AssertionError):
    """An order of operations that a device could break."""


@dataclass(eq=False)
class Stream:
    name: str
    clock: dict[str, int] = field(default_factory=dict)

    def record_event(self) -> dict[str, int]:
        return dict(self.clock)

    def wait_event(self, event: dict[str, int]) -> None:
        for name, tick in event.items():
            self.clock[name] = max(tick, self.clock.get(name, 0))


class Deaf(Stream):
    """A stream that waits for nothing."""

    def wait_event(self, event: dict[str, int]) -> None:
        pass


@dataclass(eq=False)
class PlayedStreams:
    """In the place of `heatbath.optim.beside.CUDAStreams`."""

    main: Stream = field(default_factory=lambda: Stream("main"))
    other: Stream = field(default_factory=lambda: Stream("side"))
    recorded: set[tuple[int, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.now = self.main

    def current(self, device: torch.device) -> Stream:
        return self.now

    def side(self, device: torch.device) -> Stream:
        return self.other

    @contextlib.contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    def record(self, tensor: Tensor, stream: Stream) -> None:
        self.recorded.add((tensor.untyped_storage()._cdata, stream.name))


@dataclass(eq=False)
class _Memory:
    storage: Any  # keeps the address from being used again
    owner: str
    written: tuple[str, int]
    read: dict[str, int] = field(default_factory=dict)


class NoRaces(TorchDispatchMode):
    """Raises `RaceError` where the order of two operations on the same memory hangs on the speed of a device."""

    def __init__(self, streams: PlayedStreams) -> None:
        super().__init__()
        self.streams = streams
        self.known: dict[int, _Memory] = {}
        self.operations = {"main": 0, "side": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        stream = self.streams.now
        tick = stream.clock[stream.name] = stream.clock.get(stream.name, 0) + 1
        self.operations[stream.name] += 1
        kwargs = kwargs or {}
        changed = {
            id(leaf)
            for argument, value in [*zip(func._schema.arguments, args, strict=False), *self._named(func, kwargs)]
            if argument.alias_info is not None and argument.alias_info.is_write
            for leaf in tree_leaves(value)
        }
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in given:
            memory = self._memory(tensor, stream.name if func.overloadpacket is torch.ops.aten.lift_fresh else "main")
            name, written = memory.written
            if stream.clock.get(name, 0) < written:
                raise RaceError(f"{func} on {stream.name} reads what {name} wrote and nobody waited for")
            key = tensor.untyped_storage()._cdata
            if memory.owner != stream.name and (key, stream.name) not in self.streams.recorded:
                raise RaceError(f"{func} on {stream.name} uses memory of {memory.owner} that was not recorded")
            if id(tensor) in changed:
                if any(stream.clock.get(reader, 0) < read for reader, read in memory.read.items()):
                    raise RaceError(f"{func} on {stream.name} writes what another stream may be reading")
                memory.written = stream.name, tick
            memory.read[stream.name] = tick
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._memory(tensor, stream.name).written = stream.name, tick
        return result

    def _memory(self, tensor: Tensor, owner: str) -> _Memory:
        storage = tensor.untyped_storage()
        return self.known.setdefault(storage._cdata, _Memory(storage, owner, ("main", 0)))

    @staticmethod
    def _named(func, kwargs):
        arguments = {argument.name: argument for argument in func._schema.arguments}
        return [(arguments[name], value) for name, value in kwargs.items()]
