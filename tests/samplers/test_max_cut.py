"""Maximum cuts against enumeration and integer programming (HiGHS, by scipy)."""

import networkx
import pytest
import torch

from examples.max_cut import integer_program
from heatbath.costs import h100, price
from heatbath.machines import Order, PbitMachine, PbitSpec, pbit_presets
from heatbath.samplers import cut_value, max_cut


def karate() -> torch.Tensor:
    """Friendships in a karate club of 34 (Zachary 1977), unweighted."""
    return torch.tensor(networkx.to_numpy_array(networkx.karate_club_graph(), weight=None))


@pytest.mark.parametrize("order", list(Order))
def test_the_cut_of_the_karate_club_is_that_of_an_integer_program(order):
    weights = karate()
    machine = PbitMachine(pbit_presets()["z1-2026"])
    best = max_cut(weights, machine, sweeps=200, chains=8, order=order, generator=torch.Generator().manual_seed(0))
    assert best.value == round(integer_program(weights, seconds=60)[0])  # whole weights, so the optimum is whole
    crossing = sum(
        float(w) for i, j in torch.triu(weights).nonzero() for w in [weights[i, j]] if best.sides[i] != best.sides[j]
    )
    assert best.value == crossing


def test_a_bipartite_graph_is_cut_whole():
    weights = torch.tensor(networkx.to_numpy_array(networkx.grid_2d_graph(6, 6)))
    best = max_cut(weights, PbitMachine(PbitSpec("ideal")), generator=torch.Generator().manual_seed(0))
    assert best.value == float(weights.sum()) / 2


def test_cut_value_of_every_split_of_a_triangle():
    weights = torch.ones(3, 3) - torch.eye(3)
    assert cut_value(weights, torch.tensor([[1, 1, 1], [1, -1, 1], [-1, -1, 1]])).tolist() == [0.0, 2.0, 2.0]


def test_the_bill_counts_writes_updates_and_reads():
    spec = pbit_presets()["z1-2026"]
    best = max_cut(karate(), PbitMachine(spec), sweeps=100, chains=4, generator=torch.Generator().manual_seed(0))
    bill = price(best.work, digital=h100())
    wanted = {"upload": 34 * 153.6e-12, "settle": 4 * 100 * 34 * 7.09e-15, "read": 4 * 34 * 1.692e-12}
    assert dict(bill.joules_by_part) == pytest.approx(wanted)
    assert set(bill.unstated_seconds) == {"upload", "settle", "read"}  # the chip's rates were not published


@pytest.mark.parametrize(
    ("weights", "sweeps", "message"),
    [
        (torch.zeros(3, 3), 10, "nothing to cut"),
        (torch.eye(3), 10, "zero diagonal"),
        (torch.ones(3, 3) - torch.eye(3), 1, "at least 2 sweeps"),
    ],
)
def test_what_cannot_be_cut_is_refused(weights, sweeps, message):
    with pytest.raises(ValueError, match=message):
        max_cut(weights, PbitMachine(PbitSpec("x")), sweeps=sweeps)
