from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatbath.experiments import Choice, Hyper, Record
from heatbath.experiments.compass import AXES, Compass, compass

START = Hyper(lr=1e-3, damping=1e-3, kl_clip=1.0, momentum=0.9)
TARGET = {"metric": "held-out loss", "value": 0.0, "higher": False}


class Bowl:
    """Stands in for training: a loss that is a convex function of the place on the lattice."""

    def __init__(self, names: Sequence[str], loss: Callable[..., float]) -> None:
        self.names, self.loss, self.tried = names, loss, list[tuple[int, ...]]()

    def __call__(self, choices: Sequence[Choice]) -> list[Record]:
        return [self._record(choice) for choice in choices]

    def _record(self, choice: Choice) -> Record:
        place = tuple(AXES[name].nearest(getattr(choice.hyper, name)) for name in self.names)
        self.tried.append(place)
        loss = float(self.loss(*place))
        row = {"step": 1, "loss": loss, "seconds": 0.0, "metrics": {"held-out loss": loss}}
        return Record(Path(f"{place}.jsonl"), {"target": TARGET}, [row], [{"event": "finished", "step": 1, "message": ""}])


@given(st.integers(-8, 2), st.integers(-8, 2), st.floats(0.2, 5.0))
def test_the_walk_ends_at_the_lowest_place_of_a_bowl_with_every_neighbour_tried(a: int, b: int, steep: float) -> None:
    names = ("lr", "damping")
    bowl = Bowl(names, lambda k, m: (k - a) ** 2 + steep * (m - b) ** 2)
    tuned = compass(Choice("kfac", START), Compass(names), bowl)
    assert (tuned.choice.hyper.lr, tuned.choice.hyper.damping) == (AXES["lr"].value(a), AXES["damping"].value(b))
    assert tuned.near_edge == ()
    assert {(a - 1, b), (a + 1, b), (a, b - 1), (a, b + 1)} <= set(bowl.tried)
    assert len(set(bowl.tried)) == len(bowl.tried) == tuned.trials


def test_all_optimizers_share_one_lattice() -> None:
    starts = [Hyper(lr=lr) for lr in (0.9e-3, 1e-3, 1.2e-3)]
    how = Compass(("lr",))
    assert {how.hyper(hyper, how.start(hyper)).lr for hyper in starts} == {1e-3}
    assert [AXES["lr"].value(k) for k in (-2, -1, 0, 1)] == [0.1, 0.316, 1.0, 3.16]
    assert [AXES["momentum"].value(k) for k in (-1, 0, 1)] == [0.95, 0.9, 0.8]
    assert AXES["square_decay"].value(-6) == 0.999


@pytest.mark.parametrize("name", AXES)
def test_places_and_values_are_inverse_to_each_other(name: str) -> None:
    axis = AXES[name]
    places = [k for k in range(-8, 4) if axis.holds(k)]
    assert [axis.nearest(axis.value(k)) for k in places] == places


def test_a_search_with_trials_left_tries_further_neighbours_and_goes_there_if_they_are_better() -> None:
    ridge = Bowl(("lr", "damping"), lambda k, m: -10.0 if (k, m) == (-5, -5) else abs(k + 6) + abs(m + 6))
    short = compass(Choice("kfac", START), Compass(("lr", "damping")), ridge)
    assert (short.trials, short.value) == (5, 0.0)
    longer = compass(Choice("kfac", START), Compass(("lr", "damping"), at_least=9), ridge)
    assert longer.value == -10.0
    assert longer.trials >= 9


def test_a_walk_that_is_cut_short_says_what_it_has_not_enclosed() -> None:
    slope = Bowl(("lr",), lambda k: -k)
    tuned = compass(Choice("adamw", START), Compass(("lr",), at_most=5), slope)
    assert (tuned.trials, tuned.near_edge) == (5, ("lr",))


def test_momentum_stays_below_one_and_above_nothing() -> None:
    bowl = Bowl(("momentum",), lambda k: -k)
    tuned = compass(Choice("adamw", START), Compass(("momentum",)), bowl)
    assert tuned.choice.hyper.momentum == pytest.approx(0.2)
    assert tuned.near_edge == ()


def test_points_beyond_a_place_come_in_growing_distance_and_cover_its_surroundings() -> None:
    points = list(Compass(("lr", "damping")).beyond((0, 0)))
    assert set(points) == set(product(range(-3, 4), repeat=2))
    assert set(points[:9]) == set(product(range(-1, 2), repeat=2))


def test_a_search_over_nothing_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a compass search needs some of lr, damping, .* got none"):
        Compass(())
    with pytest.raises(ValueError, match="got lr, speed"):
        Compass(("lr", "speed"))
    with pytest.raises(ValueError, match="1 <= at_least <= at_most is needed, got 5 and 4"):
        Compass(("lr",), at_least=5, at_most=4)
    with pytest.raises(ValueError, match="nowhere to start from: damping has no default"):
        Compass(("lr", "damping")).start(Hyper(lr=1.0))
