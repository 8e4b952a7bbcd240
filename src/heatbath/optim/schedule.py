"""When factors are updated and solver states refreshed.

K-FAC blows up in its first steps when the averages are young and the first inverse is stale, so an interval grows with age: at
step t it is min(every, first + t // patience). From 1 with patience 5 to 10 that is ten refreshes more than a fixed interval,
once. Steps of matched root mean square keep their length whatever the inverse is: they start at 3, with patience 40, which
costs as much in the first sixty steps and keeps inverses younger in the two hundred after them (recipe char-gpt, one seed,
loss after 150 steps: 2.33 against 2.44; patience 20 from 1 comes to 2.30 with half as many refreshes again).

Staggered, each stack has a phase p in [0, every) and is due where t mod ℓ = ⌊p ℓ/every⌋, ℓ the interval at step t, and whenever
its last time is ℓ steps ago or more. It captures then, and is refreshed one step later: a capture costs about as much as a
refresh (½T n² and ½n³ of each side, T the rows of a batch), and no step has to do both for one stack. So a step uses inverses
of captures at most ℓ steps old, where they are at most ℓ − 1 steps old without staggering. (Longer for a while where intervals
of different length grow: a capture interval; and where all capture at once, a stack waits up to ℓ steps more for its turn.)
While ℓ = 1 nothing is spread or late.

Phases come from the longest-first rule (Graham 1969): stacks, dearest first, each to the phase whose steps have the least work
so far. They follow from shapes alone, so that all processes agree. T does not, so what captures cost beside refreshes is not
known: work of the same kind counts double.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Interval:
    """An interval in steps that starts at `first` and grows to `every`.

    Args:
        every: the interval in the long run, in steps.
        patience: steps spent at each length while growing; 0: `every` from the start.
        first: the interval at the start, in steps.

    Raises:
        ValueError: every or first below 1, or patience below 0.
    """

    every: int
    patience: int = 5
    first: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 0:
            raise ValueError(f"an interval needs every >= 1 and patience >= 0, got {self.every} and {self.patience}")
        if self.first < 1:
            raise ValueError(f"an interval starts at 1 step or more, got {self.first}")

    def length(self, step: int, last: int) -> int:
        """ℓ at `step`, in steps, when the last time was `last`."""
        age = step if self.patience > 1 else last  # at patience 1 the length would run ahead of the steps for ever
        return min(self.every, self.first + age // self.patience) if self.patience else self.every

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
        last_refresh: step at which each stack's last refresh was due; where captures are staggered it was done one step later.
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
            costs: of one refresh of each stack, in any unit; captures are taken to cost in proportion.
            factors: interval of captures.
            refresh: interval of refreshes.
            stagger: spread the stacks over the steps of the interval.
            together: capture all stacks at once even so, where a capture costs a pass through the network.
        """
        never: list[int | None] = [None for _ in costs]
        if not stagger:
            return Timetable(factors, refresh, None, None, never, never)
        refresh = refresh if refresh.every > factors.every else factors  # there is nothing new between captures
        turns = [range(p, p + refresh.every) for p in range(refresh.every)]
        seeing = [[step % refresh.every for step in turn[:: factors.every] if not together] for turn in turns]
        phases = balance(costs, seeing, [(p + (not together)) % refresh.every for p in range(refresh.every)])
        capture = None if together else [p % factors.every for p in phases]
        return Timetable(factors, refresh, capture, phases, never, never)

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
            due.append(news and self.refresh.due(self._nominal(step, last), last, phase, slack))
        return due

    def _nominal(self, step: int, last: int | None) -> int:
        """The step at which a refresh that is done at `step` was due: that of the capture which it follows."""
        late = self.capture_phases is not None and last is not None and self.refresh.length(step, last) > 1
        return step - late

    def captured(self, step: int, which: Sequence[bool]) -> None:
        """Note which stacks got factors; without phases of their own all count, so that they stay together."""
        together = self.capture_phases is None
        self.last_factors = [step if got or together else last for got, last in zip(which, self.last_factors, strict=True)]

    def refreshed(self, step: int, which: Sequence[bool]) -> None:
        """Note which stacks were refreshed, or found to fit."""
        pairs = zip(which, self.last_refresh, strict=True)
        self.last_refresh = [self._nominal(step, last) if done else last for done, last in pairs]

    def hasten(self, which: Sequence[bool]) -> None:
        """Have stacks refreshed as if they never were, since a refresh cannot wait."""
        self.last_refresh = [None if now else last for now, last in zip(which, self.last_refresh, strict=True)]

    def state_dict(self) -> dict[str, Any]:  # Any: plain Python
        """What has happened, for a checkpoint."""
        return {"last_factors": self.last_factors, "last_refresh": self.last_refresh}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Any: as above
        """From a checkpoint; one number stands for all stacks, as in checkpoints before staggering."""
        for name in ("last_factors", "last_refresh"):
            last, count = state_dict[name], len(self.last_factors)
            setattr(self, name, list(last) if isinstance(last, list) else [last] * count)


def balance(costs: Sequence[float], captures: Sequence[Sequence[int]], refreshes: Sequence[int]) -> list[int]:
    """A phase for each cost, longest first.

    With C and R what steps capture and refresh so far, a stack goes where Σ (C² + CR + R²) over all steps grows least.

    Args:
        costs: of each stack.
        captures: steps, in [0, number of phases), at which a stack captures if it has phase 0, 1, …
        refreshes: the step at which it is refreshed then.

    >>> balance([5.0, 3.0, 2.0], [[], []], [0, 1])
    [0, 1, 1]
    """
    seeing, renewing, phases = [0.0] * len(captures), [0.0] * len(captures), [0] * len(costs)

    def growth(phase: int) -> tuple[float, int]:
        there = refreshes[phase]
        return 2 * renewing[there] + seeing[there] + sum(2 * seeing[s] + renewing[s] for s in captures[phase]), phase

    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        phase = phases[index] = min(map(growth, range(len(captures))))[1]
        renewing[refreshes[phase]] += costs[index]
        for step in captures[phase]:
            seeing[step] += costs[index]
    return phases
