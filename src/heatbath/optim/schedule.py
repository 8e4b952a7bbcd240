"""When factors are updated and solver states refreshed.

K-FAC blows up in its first steps when the averages are young and the first inverse is stale, so an interval grows with age: at
step t it is min(every, 1 + t // patience). With patience 5 and every 10 that is ten refreshes more than a fixed interval, once.
"""

from __future__ import annotations

from dataclasses import dataclass


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

    def due(self, step: int, last: int | None) -> bool:
        """Whether `step` is due when the last time was `last` (None: never)."""
        if last is None:
            return True
        age = step if self.patience > 1 else last  # at patience 1 the length would run ahead of the steps for ever
        length = min(self.every, 1 + age // self.patience) if self.patience else self.every
        return step - last >= length
