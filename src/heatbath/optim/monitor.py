"""Warnings about what steps have in common, given when their numbers have reached the host, so that no step waits for a device.

On a GPU the few numbers of a step are copied into pinned memory behind an event, and are looked at by the first step after
the copy is done; on the CPU at once. On other devices, and for tensors without data, nothing is looked at.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHORTENED_STEPS = 20  # in a row, before lr is said to have no effect
SHORT = 0.01  # a mean scale below this, over as many steps, is most likely a loss in another unit
SKIPPED_STEPS = 5  # in a row
NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Copy:
    """Numbers of one step on their way to the host.

    Args:
        values: scale, whether all was finite, whether parameters still are; float32 `[3]`.
        event: recorded behind the copy; None: it is done.
    """

    values: Tensor
    event: torch.cuda.Event | None

    def arrived(self) -> bool:
        """Whether the host may look."""
        return self.event is None or self.event.query()


class StepMonitor:
    """Counts shortened and skipped steps, and warns once about each kind.

    It is no part of a checkpoint: a resumed run counts anew.
    """

    def __init__(self) -> None:
        self._arriving: deque[_Copy] = deque()
        self._scales: deque[float] = deque(maxlen=SHORTENED_STEPS)
        self._skipped = 0
        self._warned: set[str] = set()

    def add(self, scale: Tensor, finite: Tensor, parameters: Sequence[Tensor] = ()) -> None:
        """Note a step that was just made, and warn about those whose numbers have arrived.

        Args:
            scale: by how much a step rule shortened it, 0-d.
            finite: whether it was made, 0-d bool.
            parameters: after it; those of 16 bits are looked at for overflow.
        """
        narrow = [p for p in parameters if p.dtype in NARROW]
        intact = torch.stack([p.isfinite().all() for p in narrow]).all() if narrow else torch.ones_like(finite)
        values = torch.stack([scale.float(), finite.float(), intact.float()])
        if type(values) is not Tensor or values.device.type not in ("cpu", "cuda"):
            return
        self._arriving.append(_sent(values))
        while self._arriving and self._arriving[0].arrived():
            for message in self._complaints(*self._arriving.popleft().values.tolist()):
                if message not in self._warned:
                    self._warned.add(message)
                    warnings.warn(message, stacklevel=6)

    def _complaints(self, scale: float, finite: float, intact: float) -> list[str]:
        """What there is to say after one more step."""
        found = []
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped >= SKIPPED_STEPS:
            found.append(
                f"{SKIPPED_STEPS} steps in a row were skipped because gradients or their solution were not finite: look at the "
                "loss; a smaller lr or more damping may be needed"
            )
        if not intact:
            found.append(
                "parameters of 16 bits are not finite after a step: the update was too large for their type; keep them in "
                "float32 and use torch.autocast"
            )
        if finite:
            self._scales.append(scale)
        full = len(self._scales) == SHORTENED_STEPS
        if full and max(self._scales) < 1:
            found.append(
                f"{SHORTENED_STEPS} steps in a row were shortened by the step rule: lr has no effect while they are; raise the "
                "rule's bound (KLClip(kappa=...), NormClip(radius=...)), or leave trust out for steps in units of lr"
            )
        if full and sum(self._scales) / SHORTENED_STEPS < SHORT:
            found.append(
                f"the last {SHORTENED_STEPS} steps were shortened to less than {SHORT:.0%} of their length on average: if the "
                "loss is a sum or a mean over elements, say so by Policy(reduction=...), or leave trust out for steps that do "
                "not depend on the unit of the loss"
            )
        return found


def _sent(values: Tensor) -> _Copy:
    """The numbers on their way to the host."""
    if values.device.type == "cpu":
        return _Copy(values, None)
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return _Copy(host, event)
