"""Flags on their way from a device to the host, read a step later, so that nothing waits for them.

Reading a tensor waits for all work that is queued on its device. A copy that was started when the tensor was made, read after
the next forward and backward pass have been queued, waits at most for the step before, while the device has a step's work left.
When a flag is read is thus a matter of step numbers, never of how fast a device is: equal runs stay equal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from heatbath.operators import upload


class Deferred:
    """Flags of the members of a stack, copied to the host without waiting.

    Args:
        flags: bool `[L]`.
        shared: take a flag as set where it is in any process of the default group, so that all processes decide alike; every
            process must then make this object at the same step.
    """

    def __init__(self, flags: Tensor, *, shared: bool = False) -> None:
        flags = flags.to(torch.uint8)
        if shared:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self._event: Any = None  # Any: an event of the device's kind
        self._host = flags
        if flags.is_meta:  # shapes without values, on which work is counted: nothing goes wrong
            self._host = torch.zeros(flags.shape, dtype=torch.uint8)
        elif flags.device.type != "cpu":
            self._host = torch.empty(flags.shape, dtype=torch.uint8, pin_memory=flags.device.type == "cuda")
            self._host.copy_(flags, non_blocking=True)
            if flags.is_cuda:  # the stream of the flags' own device, which need not be the current one
                self._event = torch.cuda.current_stream(flags.device).record_event()
            else:
                self._event = torch.Event(flags.device)
                self._event.record()

    def members(self) -> list[int]:
        """The members whose flag is set."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return [i for i, flag in enumerate(self._host.tolist()) if flag]

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        self.members()  # an event cannot be copied
        return dict(self.__dict__)

    def joined(self, device: torch.device) -> Deferred:
        """Flags of this process alone joined with those of all others, each of which joins its own at the same step.

        Args:
            device: on which processes exchange them.
        """
        self.members()  # what is on its way has arrived
        return Deferred(upload(self._host, device), shared=True)

    @staticmethod
    def of(members: list[int], length: int) -> Deferred:
        """Flags that are known already, from a checkpoint."""
        return Deferred(torch.tensor([i in members for i in range(length)]))
