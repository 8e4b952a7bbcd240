"""Work queued beside a device's main queue, so that a refresh runs while the next forward and backward pass do.

A device with streams runs a stream's work in order, and nothing is ordered between streams but by events. With M what the
current (main) stream was given and S the side stream, work over tensors x that makes tensors y is handed over so:

    queue    S waits for M as far as it was given;  each x is recorded on S, so that its memory is not used again before;
             the work is queued on S;  an event marks its end
    join     M waits for the event;  each y is recorded on M likewise

The host waits for nothing in either. Whoever queues has to leave x unchanged until joined: to replace tensors, not write
into them. When to join is a matter of step numbers, never of how fast a device is, so that equal runs stay equal; on a device
without streams the work is done at once, and joined at the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from heatbath.operators import nodes_of


class Streams(Protocol):
    """What is asked of the streams of a device; a test puts a record of the calls in their place."""

    def current(self, device: torch.device) -> Any:  # Any: a stream of the device's kind
        """The stream that takes work now."""

    def side(self, device: torch.device) -> Any:  # Any: as above
        """The one stream beside it."""

    def within(self, stream: Any) -> AbstractContextManager[Any]:  # Any: as above
        """Give work to a stream, inside the context."""

    def record(self, tensor: Tensor, stream: Any) -> None:  # Any: as above
        """Note that a stream uses a tensor that was made on another one."""


class CUDAStreams:
    """PyTorch's CUDA streams (and ROCm's, which go by that name), one beside the current one for each device."""

    def __init__(self) -> None:
        self._sides: dict[torch.device, Any] = {}  # Any: torch.cuda.Stream, absent from builds without CUDA

    def current(self, device: torch.device) -> Any:
        return torch.cuda.current_stream(device)

    def side(self, device: torch.device) -> Any:
        if device not in self._sides:
            self._sides[device] = torch.cuda.Stream(device)
        return self._sides[device]

    def within(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def record(self, tensor: Tensor, stream: Any) -> None:
        tensor.record_stream(stream)


@dataclass(eq=False)
class Queued:
    """What was queued beside the main stream.

    Args:
        result: a tree of tensors, whose values are there once joined.
        streams: of the device; None where there are none.
        device: where the result lies.
        event: marks the end of the work; None where there is nothing to wait for.
    """

    result: Any  # Any: a tree of tensors
    streams: Streams | None
    device: torch.device
    event: Any = None  # Any: an event of the device's kind

    def join(self) -> Any:  # Any: as above
        """Let the current stream wait for the work, and hand over what it made."""
        if self.streams is not None and self.event is not None:
            main = self.streams.current(self.device)
            main.wait_event(self.event)
            for tensor in nodes_of(self.result, Tensor):
                self.streams.record(tensor, main)
        self.event = None
        return self.result

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        self.join()  # an event cannot be copied, and what is copied has to be there
        return {**self.__dict__, "streams": None}


def queue(streams: Streams | None, device: torch.device, work: Callable[..., Any], *given: Any) -> Queued:  # Any: trees
    """Do some work beside the current stream, or at once where there are no streams.

    Args:
        streams: of the device; None: there are none.
        device: where the work is done.
        work: called with `given`; reads no other tensors that the main stream makes.
        given: trees of tensors, which nobody may write into before the result is joined.
    """
    if streams is None:
        return Queued(work(*given), None, device)
    main, side = streams.current(device), streams.side(device)
    side.wait_event(main.record_event())
    for tensor in nodes_of(given, Tensor):
        streams.record(tensor, side)
    with streams.within(side):
        result = work(*given)
    return Queued(result, streams, device, side.record_event())
