"""Schedules refuse what cannot be run."""

from __future__ import annotations

import pytest

from heatbath.machines import Schedule
from heatbath.operators import from_plain, to_plain


def test_schedule_occupies_burn_in_and_duration_and_survives_a_checkpoint() -> None:
    schedule = Schedule(2e-6, 3e-6, 4)
    assert schedule.seconds == pytest.approx(5e-6)
    assert from_plain(to_plain(schedule)) == schedule


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        (("1us", 1e-6), TypeError, "burn_in must be a number of seconds, got '1us'"),
        ((0.0, True), TypeError, "duration must be a number of seconds, got True"),
        ((-1.0, 1e-6), ValueError, "burn_in must be a finite number of seconds, 0 or more, got -1.0"),
        ((0.0, float("nan")), ValueError, "duration must be a finite number of seconds"),
        ((0.0, 1e-6, 2.5), TypeError, "reads must be a whole number, or None for an analog integrator, got 2.5"),
        ((0.0, 1e-6, 0), ValueError, "reads must be at least 1, got 0"),
        ((1e-6, 0.0), ValueError, r"an analog integrator \(reads=None\) need a duration above 0 s; .* use reads=1"),
        ((1e-6, 0.0, 3), ValueError, "3 reads need a duration above 0 s"),
    ],
)
def test_bad_schedules_are_refused(arguments: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Schedule(*arguments)
