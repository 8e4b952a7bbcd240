"""Compass search: hyper-parameters on one lattice for all, walked until every neighbour of the best is worse.

Every hyper-parameter lives on a lattice that is the same for all optimizers: half decades for learning rates, dampings, clips
and 1 − β₂, factors of two for 1 − β₁. From an optimizer's default the search tries the neighbours, one step up and one down in
each hyper-parameter, moves to the best, and goes on until no neighbour is better (compass search, Kolda, Lewis & Torczon 2003,
§1.2, without refinement). So no best lies at an edge of what was tried, and no trial is spent far from it, which matters where
a trial takes minutes. A search can be made to go on over diagonal neighbours until it has had as many trials as another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

from heatbath.experiments.choice import Choice
from heatbath.experiments.experiment import Hyper
from heatbath.experiments.records import Record
from heatbath.experiments.tuned import Score, Tuned, pick, score

Point = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """The lattice of one hyper-parameter: `unit · ratio^k`, or one minus that.

    Args:
        ratio: between neighbours.
        unit: the value at k = 0.
        complement: whether it is 1 − value that is spaced evenly.
        largest: bound on k; None: none.
    """

    ratio: float
    unit: float = 1.0
    complement: bool = False
    largest: int | None = None

    def value(self, k: int) -> float:
        """The hyper-parameter at k, to three digits."""
        value = float(f"{self.unit * self.ratio**k:.3g}")
        return round(1 - value, 12) if self.complement else value

    def nearest(self, value: float) -> int:
        """The k nearest to a value, on the log scale."""
        return round(math.log((1 - value if self.complement else value) / self.unit) / math.log(self.ratio))

    def holds(self, k: int) -> bool:
        """Whether k is on the lattice."""
        return self.largest is None or k <= self.largest


HALF_DECADE = math.sqrt(10)
AXES = {
    "lr": Axis(HALF_DECADE),
    "damping": Axis(HALF_DECADE),
    "kl_clip": Axis(HALF_DECADE),
    "momentum": Axis(2.0, unit=0.1, complement=True, largest=3),
    "square_decay": Axis(HALF_DECADE, complement=True, largest=-1),
}


@dataclass(frozen=True)
class Compass:
    """What is searched, and for how long.

    Args:
        names: of the hyper-parameters; the others stay as they are.
        at_least: trials to make even if the walk has ended before.
        at_most: trials after which it ends wherever it is.

    Raises:
        ValueError: an unknown name, none, or no trials allowed.
    """

    names: tuple[str, ...]
    at_least: int = 1
    at_most: int = 40

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in AXES]
        if unknown or not self.names:
            raise ValueError(f"a compass search needs some of {', '.join(AXES)}, got {', '.join(self.names) or 'none'}")
        if not 1 <= self.at_least <= self.at_most:
            raise ValueError(f"1 <= at_least <= at_most is needed, got {self.at_least} and {self.at_most}")

    def start(self, hyper: Hyper) -> Point:
        """The point nearest to given hyper-parameters.

        Raises:
            ValueError: one of them has no value.
        """
        values = {name: getattr(hyper, name) for name in self.names}
        if None in values.values():
            raise ValueError(f"nowhere to start from: {', '.join(n for n, v in values.items() if v is None)} has no default")
        return tuple(AXES[name].nearest(value) for name, value in values.items())

    def hyper(self, hyper: Hyper, point: Point) -> Hyper:
        """Hyper-parameters with those of a point."""
        return replace(hyper, **{name: AXES[name].value(k) for name, k in zip(self.names, point, strict=True)})

    def around(self, point: Point) -> list[Point]:
        """Its neighbours, one step up and down in each hyper-parameter."""
        moved = (tuple(k + d * (i == j) for j, k in enumerate(point)) for i in range(len(point)) for d in (-1, 1))
        return [p for p in moved if self.on_lattice(p)]

    def beyond(self, point: Point) -> Iterator[Point]:
        """Points around it in growing distance, for trials that are left."""
        for reach in (1, 2, 3):
            for moves in product(range(-reach, reach + 1), repeat=len(point)):
                moved = tuple(k + d for k, d in zip(point, moves, strict=True))
                if self.on_lattice(moved):
                    yield moved

    def on_lattice(self, point: Point) -> bool:
        """Whether a point is allowed."""
        return all(AXES[name].holds(k) for name, k in zip(self.names, point, strict=True))


def compass(
    choice: Choice, how: Compass, measure: Callable[[Sequence[Choice]], Sequence[Record]], *, rank: Score = score
) -> Tuned:
    """Walk until every neighbour of the best is worse.

    Args:
        choice: with its defaults, where the walk starts.
        how: what is searched.
        measure: runs some choices on held-out data.
        rank: what makes one better than another.
    """
    tried: dict[Point, tuple[Choice, Record]] = {}

    def attempt(points: Iterable[Point]) -> bool:
        room = how.at_most - len(tried)
        new = list(islice((p for p in dict.fromkeys(points) if p not in tried), room))
        choices = [replace(choice, hyper=how.hyper(choice.hyper, p)) for p in new]
        tried.update(zip(new, zip(choices, measure(choices) if choices else [], strict=True), strict=True))
        return bool(new)

    def best() -> Point:
        return min(tried, key=lambda point: rank(tried[point][1]))

    attempt([how.start(choice.hyper)])
    while attempt(how.around(best())) or (
        len(tried) < how.at_least and attempt(islice((p for p in how.beyond(best()) if p not in tried), 1))
    ):
        pass
    choices, records = zip(*tried.values(), strict=True)
    loose = tuple(
        name for i, name in enumerate(how.names) if any(p not in tried for p in how.around(best()) if p[i] != best()[i])
    )
    return pick(choices, records, lambda hyper: loose, rank=rank)
