"""The step: what it reads, what it moves, what it leaves alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.optim import KFAC, KLClip, MatchedRMS, Policy
from tests.laws import Scale, batches, network, noise, parameters_of, saved_and_loaded
from tests.zoo import PLAIN

NEVER = replace(PLAIN, factor_every=10**6, refresh_every=10**6)  # the first curvature for ever


def backward(model: nn.Module, index: int = 0) -> None:
    x, y = batches(index + 1)[index]
    F.cross_entropy(model(x), y).backward()


# --- options are read at each step ---------------------------------------------------------------------------------------


def test_a_learning_rate_schedule_scales_every_parameter_the_fallback_included():
    """One step at half the rate moves everything half as far."""
    moves = []
    for factor in (1.0, 0.5):
        model = network()
        optimizer = KFAC(model, lr=0.2, policy=PLAIN)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor)  # noqa: B023
        before = parameters_of(model)
        backward(model)
        optimizer.step()
        scheduler.step()
        moves.append([p.detach() - old for p, old in zip(model.parameters(), before, strict=True)])
    for whole, half in zip(*moves, strict=True):
        torch.testing.assert_close(half, 0.5 * whole, rtol=1e-9, atol=1e-12)
        assert whole.abs().max() > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=6),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [2]
        ),
    ],
    ids=["step", "cosine", "one cycle", "cyclic", "sequential"],
)
def test_trap_5_schedules_of_torch_accept_it(make):
    model = network()
    optimizer = KFAC(model, lr=0.1)
    scheduler = make(optimizer)
    for index in range(5):
        optimizer.zero_grad()
        backward(model, index)
        optimizer.step()
        scheduler.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_trap_5_damping_and_momentum_are_read_from_the_groups():
    """A huge damping set between two steps makes the next refresh a small step; momentum set to 0 forgets the velocity."""
    model = network()
    optimizer = KFAC(model, lr=0.1, policy=PLAIN)
    backward(model)
    optimizer.step()
    for group in optimizer.param_groups:
        group["damping"], group["momentum"] = 1e8, 0.0
    before = parameters_of(model)
    optimizer.zero_grad()
    backward(model)
    optimizer.step()
    for stack in optimizer.stacks:
        for place in stack.places:
            for name in place.site.parameters():
                key = f"{place.site.name}.{name}"
                old = before[[n for n, _ in model.named_parameters()].index(key)]
                assert (model.get_parameter(key) - old).abs().max() < 1e-8


def test_groups_have_options_of_their_own():
    """lr and weight decay per parameter, damping and momentum per stack: two groups are two optimizers.

    Three steps on one gradient and one curvature, so that momentum shows.
    """
    policy = replace(PLAIN, factor_every=9, refresh_every=9)
    both, first, last = network(), network(), network()
    options = [
        {"lr": 0.1, "damping": 1e-2, "momentum": 0.9, "weight_decay": 0.0},
        {"lr": 0.3, "damping": 1.0, "momentum": 0.5, "weight_decay": 0.1},
    ]
    groups = [
        {"params": list(both[0].parameters()), **options[0]},
        {"params": [*both[2].parameters(), *both[3].parameters()], **options[1]},
    ]
    optimizers = [
        KFAC(both, groups, policy=policy),
        *(KFAC(m, policy=policy, **o) for m, o in zip((first, last), options, strict=True)),
    ]
    for model, optimizer in zip((both, first, last), optimizers, strict=True):
        backward(model)
        for _ in range(3):
            optimizer.step()
    truth = [*first[0].parameters(), *last[2].parameters(), *last[3].parameters()]
    for p, q in zip(both.parameters(), truth, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_parameters_that_are_in_no_group_get_the_defaults():
    model = network()
    optimizer = KFAC(model, [{"params": model[0].parameters(), "lr": 0.5}], lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_one_tensor_is_a_group_too():
    model = network()
    optimizer = KFAC(model, [{"params": model[0].weight, "lr": 0.5}])
    assert optimizer.param_groups[0]["params"] == [model[0].weight]


def test_a_weight_and_its_bias_may_have_rates_of_their_own():
    """They share a block, so the direction is that of the block; each goes along it at its own rate."""
    plain, split = network(), network()
    optimizers = [
        KFAC(plain, lr=0.1, policy=PLAIN),
        KFAC(split, [{"params": [split[0].bias], "lr": 0.0}], lr=0.1, policy=PLAIN),
    ]
    start = split[0].bias.detach().clone()
    for model, optimizer in zip((plain, split), optimizers, strict=True):
        backward(model)
        optimizer.step()
    assert torch.equal(split[0].bias, start)
    torch.testing.assert_close(split[0].weight, plain[0].weight, rtol=1e-12, atol=1e-12)


def test_weight_decay_is_decoupled():
    """θ ← (1 − lr·wd) θ, whatever the curvature and the gradient: the rest of the step is that without decay."""
    plain, decayed = network(), network()
    start = parameters_of(plain)
    for model, decay in ((plain, 0.0), (decayed, 0.5)):
        optimizer = KFAC(model, lr=0.2, weight_decay=decay, policy=PLAIN)
        backward(model)
        optimizer.step()
    rates = [0.2, 0.2, 1e-3, 0.2, 0.2]  # the bare scale decays at the fallback's rate
    for p, q, old, rate in zip(plain.parameters(), decayed.parameters(), start, rates, strict=True):
        torch.testing.assert_close(q, p - rate * 0.5 * old, rtol=1e-12, atol=1e-12)


def test_momentum_is_the_heavy_ball():
    """With fixed curvature and gradient: displacements of 1, 1 + μ, 1 + μ + μ² times the first."""
    model = nn.Linear(3, 2).double()
    optimizer = KFAC(model, lr=0.1, momentum=0.7, policy=NEVER)
    x, weights = noise(5, 3), noise(5, 2, seed=1)
    moves = []
    for _ in range(3):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        (model(x) * weights).sum().backward()  # linear in the parameters: one gradient for ever
        optimizer.step()
        moves.append(model.weight.detach() - before)
    torch.testing.assert_close(moves[1], 1.7 * moves[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moves[2], (1 + 0.7 + 0.49) * moves[0], rtol=1e-12, atol=1e-14)


# --- the fallback ---------------------------------------------------------------------------------------------------------


def test_parameters_without_a_rule_are_trained_by_adamw():
    """A bare scale follows torch's own AdamW, at the fallback's rate."""
    model, other = Scale(4).double(), Scale(4).double()
    with pytest.warns(UserWarning, match="no layer of this model has a curvature rule: AdamW trains all of it"):
        optimizer = KFAC(model, lr=0.1, weight_decay=0.05, policy=Policy(fallback_lr=0.02))
    theirs = torch.optim.AdamW(other.parameters(), lr=0.02, betas=(0.9, 0.99), eps=1e-22, weight_decay=0.05)
    for index in range(5):
        for network_, step in ((model, optimizer), (other, theirs)):
            step.zero_grad()
            network_(noise(3, 4, seed=index)).square().sum().backward()
            step.step()
    torch.testing.assert_close(model.scale, other.scale, rtol=1e-12, atol=1e-12)


def test_complex_parameters_are_trained_by_adamw_too():
    """Real and imaginary parts are parameters of their own, in torch's AdamW as here."""

    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.complex(noise(4, seed=1), noise(4, seed=2)))
            self.last = nn.Linear(4, 3).double()

        def forward(self, x):
            return self.last((x * self.phase).abs())

    model, other = Wave(), Wave()
    other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="no layer of this model has a curvature rule"):
        optimizer = KFAC(model, policy=replace(PLAIN, fallback_lr=0.02, skip=lambda name, module: name == "last"))
    theirs = torch.optim.AdamW(other.parameters(), lr=0.02, weight_decay=0.0)
    for index in range(4):
        for network_, step in ((model, optimizer), (other, theirs)):
            step.zero_grad()
            backward(network_, index)
            step.step()
    torch.testing.assert_close(model.phase, other.phase, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(model.last.weight, other.last.weight, rtol=1e-11, atol=1e-12)


def test_a_layer_that_is_skipped_is_trained_by_adamw():
    model = network()
    optimizer = KFAC(model, policy=Policy(skip=lambda name, module: name == "3"))
    assert [site.name for site in optimizer.sites] == ["0"]
    before = parameters_of(model)
    backward(model)
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert optimizer.coverage().count("adamw") == 5 + 5 * 3 + 3


# --- what it leaves alone -------------------------------------------------------------------------------------------------


def test_gradients_are_left_alone():
    model = network()
    optimizer = KFAC(model, weight_decay=0.1)
    backward(model)
    before = [p.grad.clone() for p in model.parameters()]
    tensors = [p.grad for p in model.parameters()]
    optimizer.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), tensors, strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_a_parameter_without_a_gradient_stays():
    """A layer that this loss does not reach does not move, not even by decay or old momentum."""
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(4, 2), "c": Scale(2)}).double()
    optimizer = KFAC(model, lr=0.1, weight_decay=0.1)

    def step(*names: str) -> None:
        optimizer.zero_grad()
        for name in names:
            model[name](noise(5, model[name].in_features if name != "c" else 2)).square().mean().backward()
        optimizer.step()

    step("a", "b", "c")
    before = {name: parameters_of(model[name]) for name in model}
    step("a")
    assert all(torch.equal(p, q) for name in ("b", "c") for p, q in zip(model[name].parameters(), before[name], strict=True))
    assert not torch.equal(model["a"].weight, before["a"][0])


def test_a_layer_in_the_same_stack_without_a_gradient_stays():
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}).double()
    optimizer = KFAC(model, lr=0.1, weight_decay=0.1)
    assert len(optimizer.stacks) == 1
    for name in ("a", "b"):
        model[name](noise(5, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = parameters_of(model["b"])
    model["a"](noise(5, 3)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model["b"].parameters(), before, strict=True))


def test_layers_of_one_shape_are_one_stack_and_give_the_same_as_alone():
    """Stacking is bookkeeping: two equal layers side by side move as each does in a network of its own."""
    joint = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]).double()
    alone = [copy.deepcopy(layer) for layer in joint]
    data = [noise(5, 3, seed=1), noise(5, 3, seed=2)]
    optimizer = KFAC(joint, lr=0.1, policy=PLAIN)
    sum(layer(x).sin().sum(1).mean() for layer, x in zip(joint, data, strict=True)).backward()
    optimizer.step()
    assert len(optimizer.stacks) == 1
    for layer, x, other in zip(alone, data, joint, strict=True):
        single = KFAC(layer, lr=0.1, policy=PLAIN)
        layer(x).sin().sum(1).mean().backward()
        single.step()
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.bias, other.bias, rtol=1e-12, atol=1e-12)


# --- the rate of AdamW ---------------------------------------------------------------------------------------------------


def adamw_moves(optimizer: KFAC, rates: list[float]) -> list[float]:
    """How far a bare parameter goes at each rate: AdamW's rate itself, as long as its gradient is the same."""
    scale, moved = optimizer.model[2].scale, []
    for lr in rates:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        x, y = batches(1)[0]
        F.cross_entropy(optimizer.model(x), y).backward()
        scale.grad = torch.ones_like(scale)
        before = scale.detach().clone()
        optimizer.step()
        moved.append((before - scale.detach()).abs().max().item())
    return moved


WARM_UP = [0.0, 0.02, 0.04, 0.01]


@pytest.mark.parametrize("trust", [MatchedRMS(), KLClip()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize(
    "start,fallback_lr,expected",
    [
        (0.02, 1e-3, [0.0, 1e-3, 2e-3, 5e-4]),  # scaled along with lr
        (0.0, 1e-3, [1e-3] * 4),  # there is nothing to scale by: as it is, never frozen
        (0.02, None, {"MatchedRMS": WARM_UP, "KLClip": [0.0, 1e-3, 2e-3, 5e-4]}),
        (0.0, None, {"MatchedRMS": WARM_UP, "KLClip": [1e-3] * 4}),
    ],
)
def test_adamws_rate_under_schedules(trust, start, fallback_lr, expected):
    model, policy = network(), Policy(trust=trust)
    optimizer = KFAC(model, lr=start, fallback_lr=fallback_lr, policy=policy)
    wanted = expected[type(trust).__name__] if isinstance(expected, dict) else expected
    assert adamw_moves(optimizer, WARM_UP) == pytest.approx(wanted, rel=1e-6)


def test_adamws_rate_is_an_option_of_groups_that_may_change():
    model = network()
    optimizer = KFAC(model, [{"params": [model[2].scale], "fallback_lr": 5e-3}], lr=0.02, fallback_lr=1e-3)
    assert [group["fallback_lr"] for group in optimizer.param_groups] == [5e-3, 1e-3]
    assert adamw_moves(optimizer, [0.02]) == pytest.approx([5e-3])
    optimizer.param_groups[0]["fallback_lr"] = 7e-3
    assert adamw_moves(optimizer, [0.04]) == pytest.approx([14e-3])
    other = network()
    loaded = KFAC(other, [{"params": [other[2].scale]}], lr=0.5)
    loaded.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert adamw_moves(loaded, [0.02]) == pytest.approx([7e-3], rel=1e-3)


def test_adamws_rate_follows_an_lr_that_is_a_tensor():
    lr = torch.tensor(0.02)
    optimizer = KFAC(network(), lr=lr, fallback_lr=1e-3)
    lr.mul_(2)
    optimizer.zero_grad()
    scale = optimizer.model[2].scale
    before, (x, y) = scale.detach().clone(), batches(1)[0]
    F.cross_entropy(optimizer.model(x), y).backward()
    scale.grad = torch.ones_like(scale)
    optimizer.step()
    assert (before - scale.detach()).max().item() == pytest.approx(2e-3, rel=1e-6)
