"""Staggered refreshes: each layer by its own clock, on data of that step, the rest left alone; resumable, bit by bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, ExactFisher
from heatbath.layers import LayerRule
from heatbath.optim import KFAC, Policy, Unclipped
from heatbath.solvers import Cholesky, Eigen, NewtonSchulz
from tests.laws import batches, fresh, noise, saved_and_loaded, train

EVERY = 4


def deep(width: int = 4, depth: int = 6) -> nn.Sequential:
    """Equal layers, then one of another shape."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 3)).double()


def staggered(model: nn.Module, **options: Any) -> KFAC:
    policy = Policy(
        **{"factor_every": EVERY, "refresh_every": EVERY, "patience": 0, "stagger": True, "trust": Unclipped(), **options}
    )
    return KFAC(model, lr=0.05, damping=0.1, policy=policy, generator=fresh(3))


def test_stacks_are_cut_to_their_share_and_no_further():
    model = deep(width=6, depth=8)
    plain, cut = staggered(copy.deepcopy(model), stagger=False), staggered(model)
    assert len(plain.stacks) == 2
    assert len(cut.stacks) <= 2 + EVERY
    share = sum(stack.cost for stack in plain.stacks) / EVERY
    assert all(stack.cost <= share * (1 + 1e-9) for stack in cut.stacks)
    assert sum(stack.cost for stack in cut.stacks) == pytest.approx(sum(stack.cost for stack in plain.stacks))
    assert [name for stack in cut.stacks for name in stack.names] == [name for stack in plain.stacks for name in stack.names]


def test_cost_is_the_cube_of_each_side():
    model = nn.ModuleList([nn.Linear(3, 5), nn.Embedding(7, 2), nn.Linear(9, 4)])
    costs = [stack.cost for stack in KFAC(model).stacks]
    assert costs == [5**3 + 4**3, 2**3 + 7, 4**3 + 10**3]
    assert [stack.cost for stack in KFAC(model, policy=Policy(max_dim=4)).stacks] == [
        2 * 3**3 + 4**3,
        2**3 + 7,
        4**3 + 3 * 4**3,
    ]


def test_each_layer_is_refreshed_from_the_batch_of_its_own_step_one_step_later():
    """Weights that hardly move, no memory: a layer's state is the inverse of the factors of the last batch at its phase."""
    model = nn.ModuleList([nn.Linear(3, 2, bias=False) for _ in range(4)]).double()
    optimizer = KFAC(
        model, lr=1e-12, damping=0.1, momentum=0.0, policy=Policy(EVERY, EVERY, 0, decay=0.0, stagger=True, trust=Unclipped())
    )
    data = [[noise(6, 3, seed=10 * step + layer) for layer in range(4)] for step in range(11)]
    for inputs in data:
        optimizer.zero_grad()
        sum(layer(x).sum(1).mean() for layer, x in zip(model, inputs, strict=True)).backward()
        optimizer.step()
    last = {}
    for stack, phase in zip(optimizer.stacks, optimizer._timetable.capture_phases, strict=True):
        (name,) = stack.names
        layer = int(name[0])
        last[layer] = max(step for step in range(10) if step % EVERY == phase)  # of step 10, only factors
        x, ones = data[last[layer]][layer], torch.ones(2, 2, dtype=torch.float64)
        a = x.mT @ x / 6
        pi = ((a.trace() / 3) / 1.0).sqrt()  # B = (1, 1; 1, 1) of mean eigenvalue 1
        root = 0.1**0.5
        truth = (
            torch.linalg.inv(a + pi * root * torch.eye(3).double()),
            torch.linalg.inv(ones + root / pi * torch.eye(2).double()),
        )
        torch.testing.assert_close(stack.state.right.operator.dense()[0], truth[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(stack.state.left.operator.dense()[0], truth[1], rtol=1e-9, atol=1e-9)
    assert sorted(last.values()) == [6, 7, 8, 9]


def test_with_intervals_of_one_step_all_moves_as_without_staggering():
    runs = []
    for stagger in (False, True):
        model = nn.Linear(4, 3).double()
        torch.manual_seed(1)
        nn.init.normal_(model.weight)
        nn.init.zeros_(model.bias)
        train(model, staggered(model, stagger=stagger, factor_every=1, refresh_every=1), batches(11))
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*runs)


def test_layers_at_rest_are_not_looked_at(monkeypatch):
    """Turning a call into rows may repeat it (attention); a layer whose turn it is not is spared that."""
    model = deep()
    optimizer = staggered(model)
    asked: list[str] = []
    rule = type(optimizer.sites[0].rule)
    rows = rule.rows

    def spy(self: LayerRule, module: nn.Module, *rest: Any) -> Any:
        asked.append(next(name for name, m in model.named_modules() if m is module))
        return rows(self, module, *rest)

    monkeypatch.setattr(rule, "rows", spy)
    counts = []
    for batch in batches(2 * EVERY + 1):
        asked.clear()
        train(model, optimizer, [batch])
        counts.append(len(asked))
    assert counts[0] == 7
    assert max(counts[1:]) <= 3
    assert sum(counts[EVERY + 1 :]) == 7  # once an interval each


def test_observed_outputs_capture_together_and_refresh_by_turns():
    """A capture takes passes through the network there, so there is one in an interval."""
    model = deep()
    optimizer = staggered(model, fisher=ExactFisher(Categorical()))
    captured, refreshed = [], []
    for x, y in batches(2 * EVERY + 1):
        optimizer.zero_grad()
        outputs = optimizer.observe(model(x))
        F.cross_entropy(outputs, y).backward()
        captured.append(sum(stack.sums.filled for stack in optimizer.stacks))
        before = [stack.state for stack in optimizer.stacks]
        optimizer.step()
        refreshed.append(sum(old is not stack.state for old, stack in zip(before, optimizer.stacks, strict=True)))
    stacks = len(optimizer.stacks)
    assert captured == [stacks, 0, 0, 0, stacks, 0, 0, 0, stacks]
    assert sum(refreshed[EVERY : 2 * EVERY]) == stacks
    assert max(refreshed[EVERY : 2 * EVERY]) < stacks


def test_corrected_eigenvalues_are_staggered_too():
    model = deep(depth=3)
    policy = Policy(2, EVERY, 0, stagger=True, corrected=True)
    losses = train(model, KFAC(model, lr=0.05, damping=0.1, solver=Eigen(), policy=policy), batches(1) * 30)
    assert losses[-1] < 0.7 * losses[0]


WAYS = {
    "staggered": ({"stagger": True}, Cholesky()),
    "captured together": ({"stagger": True, "fisher": ExactFisher(Categorical())}, Cholesky()),
    "growing": ({"stagger": True, "patience": 2}, Cholesky()),
    "warm starts": ({}, NewtonSchulz(warm_steps=1, tolerance=1e-3)),
}


@pytest.mark.parametrize("options,solver", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("split", [1, 5, 7])
def test_a_run_saved_in_mid_interval_goes_on_bit_equal(options, solver, split):
    """Phases, what was asked a step ago and what is to be prepared again: all of it travels."""
    options = {"factor_every": 3, "refresh_every": 3, "patience": 0, **options}

    def build(seed: int) -> tuple[nn.Module, KFAC]:
        model = deep()
        with torch.no_grad():
            model[0].weight.add_(seed)
        return model, KFAC(model, lr=0.05, damping=0.1, solver=solver, policy=Policy(**options), generator=fresh(seed))

    def go(model: nn.Module, optimizer: KFAC, data: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(optimizer.observe(model(x)), y).backward()
            optimizer.step()

    data = batches(split + 7)
    model, optimizer = build(0)
    go(model, optimizer, data[:split])
    weights, state = saved_and_loaded(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    copied_model, copied = copy.deepcopy((model, optimizer))
    go(model, optimizer, data[split:])
    other, resumed = build(1)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    go(other, resumed, data[split:])
    go(copied_model, copied, data[split:])
    for p, q, r in zip(model.parameters(), other.parameters(), copied_model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)
    assert resumed.report() == optimizer.report() == copied.report()


def test_a_layer_that_is_called_at_odd_steps_only_is_captured_nevertheless():
    model = nn.ModuleDict({"even": nn.Linear(4, 3), "odd": nn.Linear(4, 3)}).double()
    policy = Policy(factor_every=2, refresh_every=2, patience=0, stagger=True)
    optimizer = KFAC(model, lr=0.05, damping=0.1, policy=policy)
    for index, (x, y) in enumerate(batches(12)):
        optimizer.zero_grad()
        F.cross_entropy(model["odd" if index % 2 else "even"](x), y).backward()
        optimizer.step()
    assert all(stack.ages[0] >= 5 for stack in optimizer.stacks)


LATE: dict[str, dict[str, Any]] = {
    "plain": {"stagger": False},
    "staggered": {},
}


@pytest.mark.parametrize("options", LATE.values(), ids=LATE.keys())
def test_a_layer_that_is_called_late_takes_no_step_by_an_inverse_that_knows_nothing_of_it(options):
    """That inverse would be 1/λ. Captured at every step and refreshed rarely, it is refreshed as soon as its rows come."""
    model = nn.ModuleList([nn.Linear(4, 3, bias=False) for _ in range(2)]).double()
    optimizer = staggered(model, factor_every=1, refresh_every=10, **options)
    for index, (x, y) in enumerate(batches(5)):
        optimizer.zero_grad()
        used = model if index == 4 else model[:1]
        F.cross_entropy(sum(layer(x) for layer in used), y).backward()
        optimizer.step()
    (stack, place), *_ = [(s, p) for s in optimizer.stacks for p in s.places if p.site.name == "1"]
    a = stack.mean.right.dense()[place.index]
    b = stack.mean.left.dense()[place.index]
    pi = ((a.trace() / 4) / (b.trace() / 3)).sqrt()
    truth = torch.linalg.inv(a + pi * 0.1**0.5 * torch.eye(4).double())
    torch.testing.assert_close(stack.state.right.operator.dense()[place.index], truth, rtol=1e-9, atol=1e-9)
