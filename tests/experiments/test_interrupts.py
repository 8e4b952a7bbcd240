from __future__ import annotations

import os
import signal
import threading

import pytest

from heatbath.experiments.interrupts import interruptible


def test_the_first_signal_raises_a_flag_and_the_second_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with interruptible():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.usefixtures("heard_hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_only_raises_the_flag_even_where_nobody_can_be_told(number: int) -> None:
    def closed() -> None:
        raise OSError("the terminal is closed")

    with interruptible(closed) as interrupt:
        os.kill(os.getpid(), number)
        assert interrupt.requested


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """As `nohup` starts a program."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_happens() -> None:
    flags: list[bool] = []

    def work() -> None:
        with interruptible() as interrupt:
            flags.append(interrupt.requested)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert flags == [False]
    assert signal.getsignal(signal.SIGINT) == before
