"""When factors are updated and solver states refreshed.

K-FAC blows up in its first steps when the averages are young and the first inverse is stale, so an interval grows with age: at
step t it is min(every, 1 + t // patience). With patience 5 and every 10 that is ten refreshes more than a fixed interval, once.

Staggered, each stack has a phase p in [0, every) and is due where t mod ℓ = ⌊p ℓ/every⌋, ℓ the interval at step t, and whenever
its last time is ℓ steps ago or more: no stack is ever staler than without staggering. (Where all capture at once, a stack waits
up to ℓ steps more for its turn.) Phases come from the longest-first rule
(Graham 1969): stacks, dearest first, each to the phase with the least work so far, which is within 4/3 of the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Interval:
    """An interval in steps that starts at 1 and grows to `every`.

    Args:
        every: the interval in the long run, in steps.
        patience: steps spent at each length while growing; 0: `every` from the start.

    Raises:
        ValueError: every below 1 or patience below 0.
    """

    every: int
    patience: int = 5

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 0:
            raise ValueError(f"an interval needs every >= 1 and patience >= 0, got {self.every} and {self.patience}")

    def length(self, step: int, last: int) -> int:
        """ℓ at `step`, in steps, when the last time was `last`."""
        age = step if self.patience > 1 else last  # at patience 1 the length would run ahead of the steps for ever
        return min(self.every, 1 + age // self.patience) if self.patience else self.every

    def due(self, step: int, last: int | None, phase: int | None = None, slack: int = 1) -> bool:
        """Whether `step` is due when the last time was `last` (None: never).

        Args:
            step: the present step.
            last: the last time.
            phase: in [0, every), or None: due as soon as the interval is over.
            slack: after how many intervals it is due whatever its phase.
        """
        if last is None:
            return True
        length = self.length(step, last)
        if step - last >= slack * length:
            return True
        return phase is not None and step > last and step % length == phase * length // self.every


@dataclass(eq=False)
class Timetable:
    """Which stacks look at curvature at which step, and which are refreshed: host numbers, equal in all processes.

    Args:
        factors: interval of captures.
        refresh: interval of refreshes.
        capture_phases: of each stack, or None: all stacks capture at once.
        refresh_phases: of each stack, or None: all stacks that captured are refreshed at once.
        last_factors: step of each stack's last capture; None: never.
        last_refresh: step of each stack's last refresh.
    """

    factors: Interval
    refresh: Interval
    capture_phases: Sequence[int] | None
    refresh_phases: Sequence[int] | None
    last_factors: list[int | None] = field(default_factory=list)
    last_refresh: list[int | None] = field(default_factory=list)

    @staticmethod
    def of(
        costs: Sequence[float], factors: Interval, refresh: Interval, *, stagger: bool = False, together: bool = False
    ) -> Timetable:
        """A timetable on which nothing has happened.

        Args:
            costs: of one refresh of each stack, in any unit.
            factors: interval of captures.
            refresh: interval of refreshes.
            stagger: spread the stacks over the steps of the interval.
            together: capture all stacks at once even so, where a capture costs a pass through the network.
        """
        parts = min(factors.every, refresh.every)
        phases = balance(costs, parts) if stagger else None
        capture = None if phases is None or together else [_spread(p, parts, factors.every) for p in phases]
        renewal = None if phases is None else [_spread(p, parts, refresh.every) for p in phases]
        return Timetable(factors, refresh, capture, renewal, [None for _ in costs], [None for _ in costs])

    def captures(self, step: int) -> list[bool]:
        """Which stacks capture factors at a step."""
        phases: Sequence[int | None] = self.capture_phases or [None for _ in self.last_factors]
        return [self.factors.due(step, last, phase) for last, phase in zip(self.last_factors, phases, strict=True)]

    def refreshes(self, step: int) -> list[bool]:
        """Which stacks are due for a refresh at a step: those with curvature that is newer than their last one."""
        phases: Sequence[int | None] = self.refresh_phases or [None for _ in self.last_refresh]
        waiting = self.refresh_phases is not None and self.capture_phases is None
        slack = 2 if waiting else 1  # all captured at once: without it, all would be overdue at once
        due = []
        for seen, last, phase in zip(self.last_factors, self.last_refresh, phases, strict=True):
            news = seen is not None and (seen == step or (self.refresh_phases is not None and (last is None or seen > last)))
            due.append(news and self.refresh.due(step, last, phase, slack))
        return due

    def captured(self, step: int, which: Sequence[bool]) -> None:
        """Note which stacks got factors; without phases of their own all count, so that they stay together."""
        together = self.capture_phases is None
        self.last_factors = [step if got or together else last for got, last in zip(which, self.last_factors, strict=True)]

    def refreshed(self, step: int, which: Sequence[bool]) -> None:
        """Note which stacks were refreshed, or found to fit."""
        self.last_refresh = [step if done else last for done, last in zip(which, self.last_refresh, strict=True)]

    def to_plain(self) -> dict[str, Any]:  # Any: plain Python
        """What has happened, for a checkpoint."""
        return {"last_factors": self.last_factors, "last_refresh": self.last_refresh}

    def load_plain(self, plain: dict[str, Any]) -> None:  # Any: as above
        """From a checkpoint; one number stands for all stacks, as in checkpoints before staggering."""
        for name in ("last_factors", "last_refresh"):
            last, count = plain[name], len(self.last_factors)
            setattr(self, name, list(last) if isinstance(last, list) else [last] * count)


def balance(costs: Sequence[float], parts: int) -> list[int]:
    """A phase in [0, parts) for each cost, longest first.

    >>> balance([5.0, 3.0, 2.0], 2)
    [0, 1, 1]
    """
    loads, phases = [0.0] * parts, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        phases[index] = min(range(parts), key=lambda p: (loads[p], p))
        loads[phases[index]] += costs[index]
    return phases


def _spread(phase: int, parts: int, every: int) -> int:
    """A phase of `parts` as one of a longer interval: spread over it, and equal to the old one modulo `parts`."""
    return phase + parts * (phase * (every // parts) // parts)
