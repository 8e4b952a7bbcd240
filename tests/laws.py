"""What every optimizer and layer must satisfy, as functions of a row of `tests/zoo.py`.

Judges are dense float64 solves, per-example autograd, or another run of the same problem that must agree (metamorphic laws).
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.operators import map_tensors
from heatbath.optim import KFAC, Policy
from tests.zoo import PLAIN, LayerRow, OptimizerRow


def fresh(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=fresh(seed), dtype=dtype)


# --- optimizers ------------------------------------------------------------------------------------------------------


def network(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two linear layers of different shapes, a bare scale for the fallback, tanh between."""
    generator = fresh(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Scale(5), nn.Linear(5, 3)).to(dtype)
    for parameter in model.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


class Scale(nn.Module):
    """A layer without a rule: a bare parameter."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def batches(count: int, examples: int = 8, *, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Inputs `[B, 4]` and classes `[B]`."""
    return [
        (noise(examples, 4, seed=10 + i, dtype=dtype), torch.randint(3, (examples,), generator=fresh(50 + i)))
        for i in range(count)
    ]


def train(model: nn.Module, optimizer: KFAC, data: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """An ordinary loop."""
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parameters_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def saved_and_loaded(plain: Any) -> Any:
    """Through a file, weights only."""
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal_trees(a: Any, b: Any) -> None:
    pairs: list[bool] = []
    map_tensors(lambda x, y: pairs.append(torch.equal(x.nan_to_num(), y.nan_to_num())) or x, a, b)
    assert all(pairs)


def optimizer_repeats(row: OptimizerRow) -> None:
    """Equal starts and equal generators give equal bits."""
    runs = []
    for _ in range(2):
        model = network()
        train(model, row.make(model, lr=0.1), batches(4))
        runs.append(parameters_of(model))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def optimizer_resumes_in_mid_interval(row: OptimizerRow, split: int) -> None:
    """Saved after `split` steps, loaded into a new optimizer: every later parameter is bit-equal, counters too."""
    policy = Policy(factor_every=2, refresh_every=3, patience=0)
    data = batches(split + 6)
    model = network()
    optimizer = row.make(model, lr=0.1, policy=policy)
    train(model, optimizer, data[:split])
    weights, state = saved_and_loaded(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    train(model, optimizer, data[split:])
    other = network(seed=1)
    resumed = row.make(other, lr=0.7, policy=policy)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(other, resumed, data[split:])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert resumed.report() == optimizer.report()
    assert resumed.work == optimizer.work
    assert resumed.steps == split + 6


def optimizer_takes_micro_batches(row: OptimizerRow, parts: int) -> None:
    """k micro-batches whose losses are divided by k are one batch, over several steps."""
    whole, split = network(), network()
    one, many = row.make(whole, lr=0.1, policy=PLAIN), row.make(split, lr=0.1, policy=PLAIN)
    for x, y in batches(3):
        train(whole, one, [(x, y)])
        many.zero_grad()
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(split(x_part), y_part) / parts).backward()
        many.step()
    _assert_close_models(whole, split)


def optimizer_ignores_duplicates(row: OptimizerRow) -> None:
    """Every example three times over is the same problem: damping means the same at every batch size."""
    once, thrice = network(), network()
    train(once, row.make(once, lr=0.1, policy=PLAIN), batches(4))
    train(thrice, row.make(thrice, lr=0.1, policy=PLAIN), [(x.repeat(3, 1), y.repeat(3)) for x, y in batches(4)])
    _assert_close_models(once, thrice)


def optimizer_commutes_with_permutations(row: OptimizerRow) -> None:
    """Renaming hidden units before training is renaming them after it."""
    order = torch.randperm(5, generator=fresh(9))
    plain, renamed = network(), network()
    _permute(renamed, order)
    for model in (plain, renamed):
        train(model, row.make(model, lr=0.1), batches(4))
    _permute(plain, order)
    _assert_close_models(plain, renamed)


def _permute(model: nn.Sequential, order: Tensor) -> None:
    first, _, scale, last = model
    with torch.no_grad():
        for parameter in (first.weight, first.bias, scale.scale):
            parameter.copy_(parameter[order].clone())
        last.weight.copy_(last.weight[:, order].clone())


def _assert_close_models(a: nn.Module, b: nn.Module, tolerance: float = 1e-8) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def optimizer_skips_a_step_that_is_not_finite(row: OptimizerRow, bad: float) -> None:
    """Nothing moves, nothing is poisoned, it is counted, and training goes on."""
    model = network()
    optimizer = row.make(model, lr=0.1, weight_decay=0.1)
    data = batches(6)
    train(model, optimizer, data[:3])
    before, velocity = parameters_of(model), _momenta(optimizer)
    assert velocity
    x, y = data[3]
    optimizer.zero_grad()
    (F.cross_entropy(model(x), y) * bad).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(velocity, _momenta(optimizer), strict=True))
    assert optimizer.report()["skipped_steps"] == 1
    losses = train(model, optimizer, data[4:])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(loss == loss for loss in losses)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for stack in optimizer.stacks:
        assert all(torch.isfinite(t).all() for t in _tensors(stack.mean))
    assert all(torch.isfinite(m).all() for m in _momenta(optimizer))


def _momenta(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [state["momentum_buffer"].clone() for state in optimizer.state.values() if "momentum_buffer" in state]


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) or t, value)
    return found


def optimizer_learns(row: OptimizerRow) -> None:
    """Eighty full-batch steps on sixteen points with the defaults; the loss never rises above its start."""
    ((x, y),) = batches(1, examples=16)
    model = network()
    losses = train(model, row.make(model), [(x, y)] * 80)
    assert losses[-1] < 0.7 * losses[0]
    assert max(losses) <= losses[0] + 1e-12


# --- layers ----------------------------------------------------------------------------------------------------------


def example_losses(model: nn.Module, x: Tensor) -> Tensor:
    """One number per example `[B]`: any smooth function of its outputs."""
    outputs = model(x).flatten(1)
    return (outputs * noise(outputs.shape[1], seed=4)).sin().sum(1)


def layer_step(model: nn.Module, x: Tensor, parts: int = 1, **options: Any) -> list[Tensor]:
    """The update of every parameter by one step of plain K-FAC."""
    optimizer = KFAC(model, **{"lr": 1.0, "damping": 0.1, "momentum": 0.0, "policy": PLAIN, **options})
    before = parameters_of(model)
    for part in x.chunk(parts):
        (example_losses(model, part).mean() / parts).backward()
    optimizer.step()
    optimizer.capture.detach()
    return [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]


def assert_close_updates(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    for got, want in zip(a, b, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def layer_is_wholly_trained(row: LayerRow) -> None:
    """Every parameter is under curvature, and one step moves all of them by what is finite."""
    model = row.model()
    assert KFAC(model).coverage().count("adamw") == 0
    updates = layer_step(model, row.batch(6))
    assert all(torch.isfinite(u).all() and u.abs().max() > 0 for u in updates)


def layer_ignores_duplicates(row: LayerRow) -> None:
    """Every example three times over changes nothing."""
    x = row.batch(4)
    once, thrice = (layer_step(row.model(), batch) for batch in (x, torch.cat((x, x, x))))
    assert_close_updates(once, thrice)


def layer_takes_micro_batches(row: LayerRow) -> None:
    """Two micro-batches are one batch."""
    x = row.batch(6)
    assert_close_updates(layer_step(row.model(), x), layer_step(row.model(), x, parts=2))


def layer_capture_leaves_gradients_alone(row: LayerRow) -> None:
    """`.grad` and buffers are bit-equal with and without capture, and nobody else's hooks are needed."""
    x = row.batch(5)
    plain, watched = row.model(), row.model()
    optimizer = KFAC(watched)
    for model in (plain, watched):
        example_losses(model, x).mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), watched.buffers(), strict=True))
    assert all(c.rows > 0 for stack in optimizer.stacks for c in stack.sums.counts)


def layer_survives_a_copy(row: LayerRow) -> None:
    """A deep copy of the model, without its hooks, computes the same."""
    model = row.model()
    KFAC(model)
    x = row.batch(2)
    assert torch.equal(model(x), copy.deepcopy(model)(x))
