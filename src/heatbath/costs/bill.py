"""What a computation costs, by part; what nobody stated stays "not stated"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

PARTS = ("digital", "upload", "drive", "convert", "settle", "read")
"""digital kernels; sending matrices; sending drives and results, as far as settling and reading do not hide it; converters, the
same; waiting for the machine to settle; reading it."""


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {part: a.get(part, 0.0) + b.get(part, 0.0) for part in PARTS if part in a or part in b}


@dataclass(frozen=True)
class Bill:
    """Seconds and joules by part. Bills add up (one after the other) and scale.

    Args:
        seconds_by_part: what is stated, in seconds; keys from `PARTS`.
        joules_by_part: what is stated, in joules.
        unstated_seconds: parts to which something adds time that nobody stated.
        unstated_joules: parts to which something adds energy that nobody stated.

    Raises:
        ValueError: a part that is not in `PARTS`.

    >>> (Bill({"settle": 1.0}) + Bill({"settle": 2.0}, unstated_joules=frozenset({"settle"}))).rows()
    [('settle', '3 s', 'not stated'), ('total', '3 s', 'not stated')]
    """

    seconds_by_part: Mapping[str, float] = field(default_factory=dict)
    joules_by_part: Mapping[str, float] = field(default_factory=dict)
    unstated_seconds: frozenset[str] = frozenset()
    unstated_joules: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = {*self.seconds_by_part, *self.joules_by_part, *self.unstated_seconds, *self.unstated_joules} - set(PARTS)
        if unknown:
            raise ValueError(f"a bill has the parts {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
        object.__setattr__(self, "seconds_by_part", MappingProxyType(dict(self.seconds_by_part)))
        object.__setattr__(self, "joules_by_part", MappingProxyType(dict(self.joules_by_part)))

    @property
    def seconds(self) -> float:
        """Total of what is stated, in seconds; a lower bound if `unstated_seconds` is not empty."""
        return sum(self.seconds_by_part.values())

    @property
    def joules(self) -> float:
        """Total of what is stated, in joules; a lower bound if `unstated_joules` is not empty."""
        return sum(self.joules_by_part.values())

    @property
    def unstated(self) -> tuple[str, ...]:
        """What is missing, in words: `("seconds of convert", "joules of settle")`."""
        seconds = [f"seconds of {part}" for part in PARTS if part in self.unstated_seconds]
        return (*seconds, *(f"joules of {part}" for part in PARTS if part in self.unstated_joules))

    def __add__(self, other: Bill) -> Bill:
        return Bill(
            _sum(self.seconds_by_part, other.seconds_by_part),
            _sum(self.joules_by_part, other.joules_by_part),
            self.unstated_seconds | other.unstated_seconds,
            self.unstated_joules | other.unstated_joules,
        )

    def __mul__(self, times: float) -> Bill:
        return Bill(
            {part: value * times for part, value in self.seconds_by_part.items()},
            {part: value * times for part, value in self.joules_by_part.items()},
            self.unstated_seconds,
            self.unstated_joules,
        )

    __rmul__ = __mul__

    def rows(self) -> list[tuple[str, str, str]]:
        """Part, seconds and joules as text, and a last row with the totals; parts that cost nothing are left out."""
        rows = []
        for part in PARTS:
            second = (self.seconds_by_part.get(part, 0.0), part in self.unstated_seconds)
            joule = (self.joules_by_part.get(part, 0.0), part in self.unstated_joules)
            if any(second) or any(joule):
                rows.append((part, _text(*second, "s"), _text(*joule, "J")))
        total = _text(self.seconds, bool(self.unstated_seconds), "s"), _text(self.joules, bool(self.unstated_joules), "J")
        return [*rows, ("total", *total)]

    def to_json(self) -> dict[str, Any]:  # Any: numbers and lists, for a record file
        """Plain values, for a record file; `from_json` is the inverse."""
        return {
            "seconds": dict(self.seconds_by_part),
            "joules": dict(self.joules_by_part),
            "unstated_seconds": sorted(self.unstated_seconds),
            "unstated_joules": sorted(self.unstated_joules),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Bill:  # Any: as above
        """Rebuild from `to_json`."""
        return Bill(data["seconds"], data["joules"], frozenset(data["unstated_seconds"]), frozenset(data["unstated_joules"]))


def _text(value: float, unstated: bool, unit: str) -> str:
    if unstated:
        return f"at least {with_unit(value, unit)}" if value > 0 else "not stated"
    return with_unit(value, unit)


def with_unit(value: float, unit: str) -> str:
    """Three digits and an SI prefix.

    >>> with_unit(7.55e-4, "s"), with_unit(0.0, "J"), with_unit(1234.0, "J")
    ('755 µs', '0 J', '1.23 kJ')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    rounded = float(f"{value:.3g}")
    prefixes = "qryzafpnµm kMGTPEZYRQ"
    step = min(max(math.floor(math.log10(abs(rounded)) / 3), -10), 10)
    return f"{rounded / 1000.0**step:.3g} {prefixes[step + 10].strip()}{unit}"
