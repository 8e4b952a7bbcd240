"""Maximum cuts against enumeration and integer programming (HiGHS, by scipy)."""

import networkx
import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from heatbath.costs import h100, price
from heatbath.machines import Order, PbitMachine, PbitSpec, pbit_presets
from heatbath.samplers import cut_value, max_cut


def karate() -> torch.Tensor:
    """Friendships in a karate club of 34 (Zachary 1977), unweighted."""
    return torch.tensor(networkx.to_numpy_array(networkx.karate_club_graph(), weight=None))


def integer_program(weights: torch.Tensor) -> float:
    """The maximum cut by mixed-integer programming: e ≤ x_i + x_j, e ≤ 2 − x_i − x_j, Σ w e largest."""
    edges = torch.triu(weights).nonzero().tolist()
    n, m = len(weights), len(edges)
    rows = lil_matrix((2 * m, n + m))
    for k, (i, j) in enumerate(edges):
        rows[2 * k, [i, j, n + k]] = [-1, -1, 1]
        rows[2 * k + 1, [i, j, n + k]] = [1, 1, 1]
    cost = np.concatenate((np.zeros(n), [-float(weights[i, j]) for i, j in edges]))
    upper = np.tile([0.0, 2.0], m)
    fixed = Bounds(np.zeros(n + m), np.concatenate(([0.0], np.ones(n + m - 1))))  # one side of node 0: halves the tree
    result = milp(cost, constraints=LinearConstraint(rows.tocsr(), ub=upper), integrality=np.ones(n + m), bounds=fixed)
    assert result.success
    return -result.fun


@pytest.mark.parametrize("order", list(Order))
def test_the_cut_of_the_karate_club_is_that_of_an_integer_program(order):
    weights = karate()
    machine = PbitMachine(pbit_presets()["z1-2026"])
    best = max_cut(weights, machine, sweeps=200, chains=8, order=order, generator=torch.Generator().manual_seed(0))
    assert best.value == round(integer_program(weights))  # whole weights, so the optimum is whole
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
