"""{expand, reduce} × {joint bias, none} × what networks do to capture: factors are those of the same network written plainly.

The judge runs the network once more by `F.linear` on the same numbers, without modules, hooks, in-place operations or
checkpoints, asks autograd for the gradients of every layer's outputs and sums outer products by hand:

    expand   A = Σ a aᵀ / rows,   B = N Σ g gᵀ                over all positions and uses
    reduce   the same after averaging a and summing g over the positions of an example
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heatbath.curvature import Sharing
from tests.curvature.truth import factors, fill, optimizer_for
from tests.laws import noise

ROUNDING = {"rtol": 1e-12, "atol": 1e-14}


@dataclass(frozen=True)
class Situation:
    """What is unusual about a network or its training; the default is plain but for modules registered in another order."""

    uses: int = 1
    idle: bool = False
    frozen: bool = False
    in_place: bool = False
    shape: tuple[int, ...] = (5, 3)  # of one example
    transposed: bool = False
    interruptions: bool = False
    forwards: int = 1
    reentrant: bool | None = None  # of checkpoints; None: no checkpoints


SITUATIONS = {
    "shuffled modules": Situation(),
    "a reused module": Situation(uses=3),
    "an unused module": Situation(idle=True),
    "a frozen layer": Situation(frozen=True),
    "an in-place activation": Situation(in_place=True),
    "multi-dimensional outputs": Situation(shape=(2, 4, 3)),
    "non-contiguous inputs": Situation(transposed=True),
    "no-grad and eval passes in between": Situation(interruptions=True),
    "several forwards before one backward": Situation(forwards=3),
    "reentrant checkpoints": Situation(reentrant=True),
    "checkpoints": Situation(reentrant=False),
    "all of it": Situation(2, True, False, True, (2, 4, 3), True, True, 2, False),
}


class Network(nn.Module):
    """Three linear layers, registered last to first."""

    def __init__(self, situation: Situation, bias: bool) -> None:
        super().__init__()
        self.situation = situation
        self.last, self.middle = nn.Linear(4, 2, bias=bias), nn.Linear(4, 4, bias=bias)
        if situation.idle:
            self.idle = nn.Linear(3, 4, bias=bias)  # in one stack with `first`
        self.first = nn.Linear(3, 4, bias=bias)
        self.first.requires_grad_(not situation.frozen)

    def hidden(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = F.leaky_relu_(y, 0.3) if self.situation.in_place else F.leaky_relu(y, 0.3)
        for _ in range(self.situation.uses):
            y = self.middle(y).tanh_() if self.situation.in_place else self.middle(y).tanh()
        return y

    def forward(self, x: Tensor) -> Tensor:
        if self.situation.reentrant is None:
            return self.last(self.hidden(x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about inputs without gradients
            return self.last(checkpoint(self.hidden, x, use_reentrant=self.situation.reentrant))


@dataclass
class Judge:
    """The same network by `F.linear`, with a note of each call."""

    model: Network
    calls: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def call(self, name: str, x: Tensor) -> Tensor:
        layer = self.model.get_submodule(name)
        bias = None if layer.bias is None else layer.bias.detach().requires_grad_()
        y = F.linear(x, layer.weight.detach().requires_grad_(), bias)
        self.calls.setdefault(name, []).append((x.detach(), y))
        return y

    def loss(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.call("first", x), 0.3)
        for _ in range(self.model.situation.uses):
            y = self.call("middle", y).tanh()
        return loss_of(self.call("last", y))

    def factors(self, name: str, loss: Tensor, sharing: Sharing, bias: bool, examples: int) -> tuple[Tensor, Tensor]:
        """B and A."""
        left, right = [], []
        for (x, y), g in zip(
            self.calls[name], torch.autograd.grad(loss, [y for _, y in self.calls[name]], retain_graph=True), strict=True
        ):
            a = torch.cat((x, torch.ones_like(x[..., :1])), -1) if bias else x
            a, g = a.reshape(len(x), -1, a.shape[-1]), g.reshape(len(y), -1, g.shape[-1])
            if sharing is Sharing.REDUCE:
                a, g = a.mean(1, keepdim=True), g.sum(1, keepdim=True)
            left.append(g.flatten(0, 1))
            right.append(a.flatten(0, 1))
        g, a = torch.cat(left), torch.cat(right)
        return examples * g.mT @ g, a.mT @ a / len(a)


def loss_of(outputs: Tensor) -> Tensor:
    return outputs.flatten(1).sin().sum(1).mean()


def inputs(situation: Situation) -> list[Tensor]:
    batches = [noise(6, *situation.shape, seed=20 + i) for i in range(situation.forwards)]
    if situation.transposed:
        batches = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in batches]
        assert not any(x.is_contiguous() for x in batches)
    return batches


def run(model: Network, batches: list[Tensor]) -> None:
    """One backward pass of the mean loss of all batches."""
    losses = []
    for x in batches:
        if model.situation.interruptions:
            with torch.no_grad():
                model(noise(3, *model.situation.shape, seed=1))
        losses.append(loss_of(model(x.requires_grad_(model.situation.reentrant is True))))
        if model.situation.interruptions:
            model.eval()
            with torch.inference_mode():
                model(noise(2, *model.situation.shape, seed=2))
            model.train()
    assert all(p.grad is None for p in model.parameters())
    (sum(losses) / len(losses)).backward()


@pytest.mark.parametrize("sharing", Sharing, ids=lambda s: s.name.lower())
@pytest.mark.parametrize("bias", [True, False], ids=["joint bias", "no bias"])
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS.keys())
def test_factors_are_those_of_the_network_written_plainly_and_gradients_are_left_alone(situation, bias, sharing):
    model = fill(Network(situation, bias))
    unwatched, judge = copy.deepcopy(model), Judge(copy.deepcopy(model))
    optimizer = optimizer_for(model, sharing=dict.fromkeys(("first", "middle", "last"), sharing))
    batches = inputs(situation)
    run(model, batches)
    run(unwatched, batches)
    for watched, other in zip(model.parameters(), unwatched.parameters(), strict=True):
        assert (watched.grad is None) == (other.grad is None)
        assert other.grad is None or torch.equal(watched.grad, other.grad)
    found = factors(optimizer)
    loss = sum(judge.loss(x.detach()) for x in batches) / len(batches)
    assert ("first" in found) == (not situation.frozen)
    for name in found.keys() & judge.calls.keys():
        left, right = judge.factors(name, loss, sharing, bias, 6 * len(batches))
        torch.testing.assert_close(found[name].left.dense()[0], left, **ROUNDING)
        torch.testing.assert_close(found[name].right.dense()[0], right, **ROUNDING)
    if situation.idle:
        assert found["idle"].dense().abs().max() == 0
        assert model.idle.weight.grad is None


def test_the_judge_tells_expand_from_reduce():
    model = fill(Network(Situation(), True))
    judge = Judge(model)
    loss = judge.loss(noise(6, 5, 3))
    one, other = (judge.factors("first", loss, sharing, True, 6) for sharing in Sharing)
    assert all((a - b).norm() > 0.1 * a.norm() for a, b in zip(one, other, strict=True))
