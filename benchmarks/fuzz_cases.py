"""What the families of `fuzz.py` share: a case, and the verdict on it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

RIGHT, REFUSED = "right", "refused"
WRONG, UNCLEAR, HANG = "silently wrong", "unclear error", "hang"
FAILURES = (WRONG, UNCLEAR, HANG)


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        name: says how to find it again.
        run: gives the input to the library; returns whether the answer is right, and raises what the
            library raises.
        mention: what the message of a refusal must contain, such as the name of the file.
    """

    name: str
    run: Callable[[], bool]
    mention: str = ""


class TimeIsUp(BaseException):  # no Exception: nothing in the library may catch it
    """A case took too long."""


def judge(case: Case, *, limit: float) -> tuple[str, str]:
    """Run a case, in the main thread.

    A refusal is a ValueError, TypeError or OSError with a message of at least three words that
    contains what the case wants mentioned; every other exception is an unclear error.

    Args:
        case: to run.
        limit: seconds.

    Returns:
        The verdict, and the words of the error if there was one.
    """
    try:
        with _alarm(limit):
            return (RIGHT if case.run() else WRONG), ""
    except TimeIsUp:
        return HANG, f"over {limit:g} s"
    except (ValueError, TypeError, OSError) as error:
        words = str(error)
        clear = len(words.split()) >= 3 and case.mention in words
        return (REFUSED if clear else UNCLEAR), f"{type(error).__name__}: {words}"
    except Exception as error:
        return UNCLEAR, f"{type(error).__name__}: {error}"


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
