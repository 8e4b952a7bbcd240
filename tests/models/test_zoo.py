"""Every network of the table: it trains with one line, nothing is left out, and what is captured inside it is the truth."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import heatbath as hb
from heatbath.curvature import Site
from heatbath.layers import Rows
from heatbath.operators import map_tensors
from tests.layers.truth import outer_sums
from tests.models.networks import NETWORKS, NetworkRow

Sums = dict[tuple[str, int], list[Tensor]]

EXAMPLES = 48
FALLEN = 0.5  # of the loss at the start; a choice, not a prediction: half is clear, and no network is near it by luck


@pytest.fixture(params=NETWORKS, autouse=True)
def row(request):
    """Each network in turn; dropout draws from PyTorch's global generator, so it is set."""
    torch.manual_seed(0)
    return NETWORKS[request.param]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, row: NetworkRow, steps: int) -> list[float]:
    batch, losses = row.examples(EXAMPLES, next(model.parameters()).dtype), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = row.losses(model, batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_one_line_trains_it(row):
    model = row.model()
    optimizer = hb.KFAC(model, lr=0.1)
    losses = train(model, optimizer, row, row.steps)
    assert math.isfinite(sum(losses))
    assert sum(losses[-5:]) / 5 < FALLEN * losses[0]


def test_no_trainable_parameter_is_left_untrained(row):
    model = row.model()
    before = [p.clone() for p in model.parameters()]
    optimizer = hb.KFAC(model, lr=0.1)
    train(model, optimizer, row, 3)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    rows = optimizer.coverage().rows
    assert sum(r.parameters for r in rows) == sum(p.numel() for p in model.parameters())
    assert {r.treatment.split()[0].rstrip(",") for r in rows} <= {"kfac", "adamw"}
    assert sorted(r.name for r in rows if r.treatment.startswith("adamw")) == sorted(row.fallback)
    assert optimizer.layout.absent == set()  # each layer saw its rows


class Collector:
    """Σ_s g aᵀ of each row, for each block and call."""

    def __init__(self, optimizer: hb.KFAC) -> None:
        self.sums: Sums = {}
        optimizer.capture.connect(self.sink)

    def sink(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        for index, block in enumerate(rows):
            self.sums.setdefault((site.name, index), []).append(outer_sums(block))


def packed(optimizer: hb.KFAC, grads: dict[int, Tensor]) -> dict[tuple[str, int], Tensor]:
    """Gradients, by id of their parameter, as one tensor for each block."""
    found = {}
    for site in optimizer.sites:
        tensors = {name: grads[id(p)] for name, p in site.parameters().items()}
        found.update({(site.name, i): block for i, block in enumerate(site.rule.pack(site.module, tensors))})
    return found


def test_rows_make_up_the_gradient_of_every_layer(row):
    """In training mode, dropout and batch statistics included."""
    model, batch = row.model(torch.float64), row.examples(5, torch.float64)
    optimizer = hb.KFAC(model)
    collector = Collector(optimizer)
    row.losses(model.train(), batch).mean().backward()
    truth = packed(optimizer, {id(p): p.grad for p in model.parameters() if p.grad is not None})
    assert truth.keys() == collector.sums.keys()
    for key, gradient in truth.items():
        got = sum(part.sum(1) for part in collector.sums[key])
        torch.testing.assert_close(got, gradient, rtol=1e-8, atol=1e-11)


def test_rows_of_each_example_are_its_own_gradient_in_every_layer(row):
    """In eval mode, where examples do not see each other; the judge differentiates one example's loss after the other."""
    model, batch = row.model(torch.float64), row.examples(5, torch.float64)
    optimizer = hb.KFAC(model)
    collector = Collector(optimizer)
    losses = row.losses(model.eval(), batch) / 5
    parameters = list(model.parameters())
    every = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    collector.sums.clear()
    losses.sum().backward()
    of_example = [
        packed(optimizer, {id(p): torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)})
        for grads in every
    ]
    examples = torch.arange(5)
    for key, parts in collector.sums.items():
        for example, truth in enumerate(of_example):
            owners = [examples if row.owner is None or part.shape[1] == 5 else row.owner(batch) for part in parts]
            own = sum(part[:, owner == example].sum(1) for part, owner in zip(parts, owners, strict=True))
            torch.testing.assert_close(own, truth[key], rtol=1e-8, atol=1e-11)
    assert collector.sums.keys() == of_example[0].keys()


def test_evaluation_in_between_changes_nothing(row):
    """An eval pass without gradients gives what an unwatched model gives (on PyTorch's fused path), and adds no rows."""
    if row.losses is NETWORKS["physics"].losses:
        pytest.skip("its loss cannot be had without gradients")
    model, batch = row.model(torch.float64), row.examples(5, torch.float64)
    optimizer = hb.KFAC(model, lr=0.1)
    train(model, optimizer, row, 2)
    unwatched = row.model(torch.float64)
    unwatched.load_state_dict(model.state_dict())
    means = [copy.deepcopy(stack.mean) for stack in optimizer.stacks]
    with torch.no_grad():
        losses, truth = (row.losses(m.eval(), batch) for m in (model, unwatched))
    torch.testing.assert_close(losses, truth, rtol=1e-10, atol=1e-12)
    assert not any(stack.sums.filled for stack in optimizer.stacks)
    assert optimizer.capture.terms == {}
    for stack, mean in zip(optimizer.stacks, means, strict=True):
        map_tensors(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0) or a, stack.mean, mean)


def test_it_trains_in_eval_mode_too(row):
    """Fine-tuning with frozen statistics and no dropout: fused paths must not hide layers while gradients flow."""
    model = row.model().eval()
    optimizer = hb.KFAC(model, lr=0.1)
    losses = train(model, optimizer, row, 8)
    assert min(losses) < losses[0]
    assert optimizer.layout.absent == set()
