"""Layers of odd sizes, as mixtures of experts and adaptive softmax make them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heatbath as hb
from heatbath.curvature import Sharing
from heatbath.solvers import Eigen
from tests.curvature.test_rows import check
from tests.curvature.truth import error, factors, fill, optimizer_for
from tests.laws import noise


class Experts(nn.Module):
    """Each example goes to one of three experts; the last gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.arange(len(x)) % 2
        out = x.new_zeros(*x.shape[:-1], 3)
        for i, expert in enumerate(self.experts):
            out = out.index_add(0, (chosen == i).nonzero()[:, 0], expert(x[chosen == i]))
        return out


@pytest.mark.filterwarnings("ignore:experts.2. gradients came, but through no call of the module")  # zeros came, with no rows
@pytest.mark.parametrize("policy", [hb.Policy(), hb.Policy(corrected=True), hb.Policy(max_dim=2)], ids=["", "corrected", "cut"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 4)])
def test_an_expert_without_examples_breaks_nothing(shape, policy):
    model, x = fill(Experts()), noise(*shape)
    optimizer = hb.KFAC(model, lr=0.1, solver=Eigen() if policy.corrected else None, policy=policy)
    before = [p.clone() for p in model.parameters()]
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert moved == [True, True, True, True, False, False]


@pytest.mark.filterwarnings("ignore:experts.2. gradients came, but through no call of the module")
@pytest.mark.parametrize("how", list(Sharing))
def test_an_expert_without_examples_leaves_the_factors_of_the_others_alone(how):
    model, x = fill(Experts()), noise(6, 2, 4)
    sharing = {f"experts.{i}": how for i in range(3)}
    optimizer = optimizer_for(model, sharing=sharing)
    model(x).square().mean().backward()
    found = factors(optimizer)
    alone = fill(nn.Linear(4, 3))
    alone.load_state_dict(model.experts[0].state_dict())
    single = optimizer_for(alone, sharing={"": how})
    (alone(x[::2]).square().sum() / 36).backward()
    truth = factors(single)[""]
    assert error(found["experts.0"].right.dense(), truth.right.dense()) < 1e-13
    assert error(found["experts.0"].left.dense(), 2 * truth.left.dense()) < 1e-13  # six terms, of which three came here


class Adaptive(nn.Module):
    """A vocabulary in clusters, whose last projection is so small that nothing is left of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.slope = nn.Linear(6, 8), nn.PReLU(8)
        self.head = nn.AdaptiveLogSoftmaxWithLoss(8, 20, [4, 10])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.slope(self.first(x)), y).loss


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_adaptive_softmax_trains_with_clusters_and_layers_of_no_size():
    model, x = fill(Adaptive()), noise(40, 6)
    y = torch.arange(40) * 7 % 20
    check(model, lambda: model(x, y))
    optimizer = hb.KFAC(model, lr=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    rows = {r.name: r.treatment for r in optimizer.coverage().rows}
    assert rows["head.tail.1.0.weight"] == rows["head.tail.1.1.weight"] == rows["slope.weight"] == "adamw"
    assert rows["head.head"].startswith("kfac")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_of_no_outputs_is_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 0))
    optimizer = hb.KFAC(model, lr=0.1)
    F.pad(model(torch.ones(2, 3)), (0, 1)).sum().backward()
    optimizer.step()
    assert {r.name for r in optimizer.coverage().rows} == {"0", "2.weight", "2.bias"}
