"""Ctrl-C at a safe moment.

Between two steps a run can write everything down; in the middle of one it cannot. So the first Ctrl-C (or SIGTERM, as
clusters send it, or SIGHUP, which a terminal sends when it is closed) only sets a flag that the loop looks at between steps,
and a second one ends the program at once. A SIGHUP that is ignored, as `nohup` has it, stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Interrupt:
    """A flag: whether the run was asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def interruptible(notice: Callable[[], None] | None = None) -> Iterator[Interrupt]:
    """Within the block, turn the first SIGINT, SIGTERM or SIGHUP into a flag. Outside the main thread it does nothing.

    Args:
        notice: called when the flag is raised, to tell the user.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        if notice is not None:
            with suppress(OSError):  # a terminal that was closed cannot be written to
                notice()

    ignored = {number for number in SIGNALS[2:] if signal.getsignal(number) is signal.SIG_IGN}
    previous = {number: signal.signal(number, handle) for number in SIGNALS if number not in ignored}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
