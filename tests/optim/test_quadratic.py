"""Learning rate and momentum from the exact quadratic model, and Levenberg–Marquardt damping, against dense truth."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp

from heatbath.curvature import Bernoulli, Categorical, ExactFisher, Gaussian, Reduction
from heatbath.operators import Diagonal, Kronecker, Operator
from heatbath.optim import KFAC, LevenbergMarquardt, Policy, QuadraticModel
from heatbath.optim.quadratic import linearize
from heatbath.optim.scaling import LossScale
from tests.curvature.test_fisher import mlp
from tests.curvature.truth import fill
from tests.laws import batches, network, noise, parameters_of, saved_and_loaded
from tests.zoo import PLAIN

MSE, CE = QuadraticModel(Gaussian()), QuadraticModel(Categorical())


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def dense_ggn(model: nn.Module, x: Tensor, likelihood) -> Tensor:
    """(1/D) Jᵀ H J in all parameters."""
    outputs = model(x).detach()
    jacobian = jacrev(lambda p: functional_call(model, p, (x,)))(named(model))
    full = torch.cat([j.reshape(outputs.numel(), -1) for j in jacobian.values()], 1)
    seen = likelihood.observe(outputs)
    pushed = [seen.as_outputs(seen.hessian(seen.as_rows(column.reshape(outputs.shape)))).flatten() for column in full.mT]
    return full.mT @ torch.stack(pushed, 1) / seen.terms


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


# --- the model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model,x",
    [
        (mlp(4, 5, 3, activation=nn.Tanh()), noise(6, 4)),
        (fill(nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))), noise(4, 2, 3, 3)),
        (fill(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))), noise(5, 2, 4)),
    ],
    ids=["mlp", "convolution", "norm"],
)
def test_directions_are_pushed_forward_as_by_forward_mode(model, x):
    """J d by double backward is `torch.func.jvp`, also after the ordinary backward pass freed its graph."""
    outputs = model(x)
    linear = linearize(outputs, Gaussian().observe(outputs), list(model.parameters()))
    outputs.sum().backward()
    direction = {name: noise(*p.shape, seed=i) for i, (name, p) in enumerate(model.named_parameters())}
    with torch.enable_grad():
        pushed = linear.push(list(model.parameters()), list(direction.values()))
    truth = jvp(lambda p: functional_call(model, p, (x,)), (named(model),), (direction,))[1]
    torch.testing.assert_close(linear.observation.as_outputs(pushed), truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_law_15_gauss_newton_products_are_hessian_products_in_each_block_of_a_piecewise_linear_network(name):
    """Any number of examples: (1/D) (J d)ᵀ H (J d) = dᵀ ∇²L d for directions within one layer, away from kinks."""
    model = fill(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.LeakyReLU(0.3), nn.Linear(5, 3)))
    x, target = noise(9, 4), torch.arange(9) % 3
    outputs = model(x)
    linear = linearize(outputs, Categorical().observe(outputs), list(model.parameters()))
    layer = [model.get_submodule(name).weight, model.get_submodule(name).bias]
    direction = [noise(*p.shape, seed=i) for i, p in enumerate(layer)]
    with torch.enable_grad():
        pushed = linear.push(layer, direction)
    got = (pushed * linear.observation.hessian(pushed)).sum() / linear.observation.terms
    slopes = torch.autograd.grad(F.cross_entropy(model(x), target), layer, create_graph=True)
    along = sum((g * d).sum() for g, d in zip(slopes, direction, strict=True))
    curved = torch.autograd.grad(along, layer)
    truth = sum((g * d).sum() for g, d in zip(curved, direction, strict=True))
    assert got.item() == pytest.approx(truth.item(), rel=1e-12)


def test_parameters_that_do_not_matter_are_pushed_to_zero():
    model, idle = mlp(4, 3), nn.Linear(2, 2).double()
    outputs = model(noise(5, 4))
    linear = linearize(outputs, Gaussian().observe(outputs), [*model.parameters(), *idle.parameters()])
    pushed = linear.push(list(idle.parameters()), [torch.ones_like(p) for p in idle.parameters()])
    assert pushed.shape == (5, 1, 3)
    assert pushed.abs().max() == 0


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical(), Bernoulli()], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("parts", [1, 2])
def test_the_step_minimizes_the_damped_model_over_the_plane(likelihood, parts):
    """Dense G + λI over all parameters; v and m are read off the optimizer's own first two steps."""
    model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(6, 4)
    policy = replace(PLAIN, quadratic=QuadraticModel(likelihood), fisher=ExactFisher(likelihood))
    optimizer = KFAC(model, lr=1.0, damping=0.3, policy=policy)
    before_step = torch.zeros(0)
    for step in range(3):
        old, ggn = flat(model.parameters()), dense_ggn(model, x, likelihood)
        optimizer.zero_grad()
        for part in x.chunk(parts):
            (optimizer.observe(model(part)).sin().mean() / parts).backward()
        gradient = flat(p.grad for p in model.parameters())
        optimizer.step()
        move = flat(model.parameters()) - old
        bent = ggn @ move + 0.3 * move
        # stationary along both axes: (G + λI)δ + g is orthogonal to the last step and to δ itself, which span the plane
        residual = bent + gradient
        assert abs(residual @ move) < 1e-9 * move.norm() * gradient.norm()
        if step:
            assert abs(residual @ before_step) < 1e-9 * before_step.norm() * gradient.norm()
            assert gradient @ move < 0
        before_step = move


class Plain:
    """A damping rule that forgets curvature: natural gradients are gradients."""

    def __call__(self, curvature: Operator, amount: Tensor) -> Operator:
        assert isinstance(curvature, Kronecker)
        ones = [Diagonal(torch.ones(*side.stack, side.size, dtype=amount.dtype)) for side in (curvature.left, curvature.right)]
        return Kronecker(*ones)


def test_with_plain_gradients_on_a_quadratic_it_is_conjugate_gradients():
    """Minimizing over gradient and last step is CG: five unknowns per output, exact after as many steps."""
    x, y, model = noise(30, 4), noise(30, 2, seed=2), fill(nn.Linear(4, 2))
    optimizer = KFAC(model, lr=1.0, damping=0.0, policy=replace(PLAIN, quadratic=MSE, damping_rule=Plain()))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.mse_loss(optimizer.observe(model(x)), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    joint = torch.cat((x, torch.ones(30, 1).double()), 1)
    truth = torch.linalg.lstsq(joint, y).solution.mT
    torch.testing.assert_close(torch.cat((model.weight, model.bias[:, None]), 1).detach(), truth, rtol=1e-8, atol=1e-10)
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(losses))  # at the minimum only rounding moves


def test_law_12_one_step_solves_least_squares_whatever_the_rate_of_the_curvature():
    """Curvature off by a factor of 7: α makes up for it."""
    x, y, model = noise(30, 4), noise(30, 2, seed=2), fill(nn.Linear(4, 2))
    policy = replace(PLAIN, quadratic=MSE, fisher=ExactFisher(Gaussian(14.0)))
    optimizer = KFAC(model, lr=1.0, damping=0.0, policy=policy)
    F.mse_loss(optimizer.observe(model(x)), y).backward()
    optimizer.step()
    joint = torch.cat((x, torch.ones(30, 1).double()), 1)
    truth = torch.linalg.lstsq(joint, y).solution.mT
    torch.testing.assert_close(torch.cat((model.weight, model.bias[:, None]), 1).detach(), truth, rtol=1e-9, atol=1e-11)
    scale = optimizer.report()["mean_trust"]
    assert scale == pytest.approx(7.0, rel=1e-6)


def test_a_sum_steps_as_the_mean_does():
    steps = []
    for reduction in (Reduction.SUM, None):
        model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(6, 4)
        optimizer = KFAC(
            model,
            lr=1.0,
            damping=0.1,
            policy=replace(PLAIN, quadratic=CE, fisher=ExactFisher(Categorical()), reduction=reduction),
        )
        for _ in range(2):
            optimizer.zero_grad()
            target = torch.arange(6) % 3
            F.cross_entropy(optimizer.observe(model(x)), target, reduction="sum" if reduction else "mean").backward()
            optimizer.step()
        steps.append(flat(model.parameters()))
    torch.testing.assert_close(*steps, rtol=1e-9, atol=1e-12)


def test_a_saved_run_goes_on_bit_equal():
    policy = Policy(factor_every=2, refresh_every=2, patience=0, quadratic=CE, adapt=LevenbergMarquardt(every=3))
    data = batches(8)

    def learn(model: nn.Module, optimizer: KFAC, part) -> None:
        for x, y in part:
            optimizer.zero_grad()
            F.cross_entropy(optimizer.observe(model(x)), y).backward()
            optimizer.step(evaluate=lambda: F.cross_entropy(model(x), y))  # noqa: B023

    model = network()
    optimizer = KFAC(model, lr=1.0, damping=0.1, policy=policy)
    learn(model, optimizer, data[:4])
    weights, state = saved_and_loaded(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    learn(model, optimizer, data[4:])
    other = network(seed=1)
    resumed = KFAC(other, policy=policy)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    learn(other, resumed, data[4:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert float(optimizer.param_groups[0]["damping"]) != 0.1


def test_outputs_that_were_not_observed_are_missed():
    model = mlp(4, 3)
    optimizer = KFAC(model, policy=replace(PLAIN, quadratic=MSE))
    model(noise(5, 4)).square().mean().backward()
    with pytest.raises(ValueError, match=r"the quadratic model needs the outputs at every step: call opt\.observe\(outputs\)"):
        optimizer.step()


def test_a_step_that_is_not_finite_moves_nothing():
    model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(6, 4)
    optimizer = KFAC(model, lr=1.0, damping=0.1, policy=replace(PLAIN, quadratic=MSE))
    for bad in (1.0, float("nan"), 1.0):
        optimizer.zero_grad()
        before = parameters_of(model)
        (optimizer.observe(model(x)).square().mean() * bad).backward()
        optimizer.step()
        still = all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
        assert still == (bad != bad)
    assert all(torch.isfinite(p).all() for p in model.parameters())


# --- damping that adapts ---------------------------------------------------------------------------------------------------


def fit(optimizer: KFAC, model: nn.Module, x: Tensor, y: Tensor, steps: int, spoil: float = 0.0) -> list[float]:
    """Damping after each step; `spoil` is added to the loss at every second evaluation, the one after the update."""
    found, count = [], 0

    def evaluate() -> Tensor:
        nonlocal count
        count += 1
        assert not torch.is_grad_enabled()
        return F.mse_loss(model(x), y) + (spoil if count % 2 == 0 else 0.0)

    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(optimizer.observe(model(x)), y).backward()
        optimizer.step(evaluate=evaluate)
        found.append(float(optimizer.param_groups[0]["damping"]))
    assert count == 2 * sum(LevenbergMarquardt(every=2).due(i) for i in range(steps))
    return found


def test_damping_falls_where_the_model_is_right_and_rises_where_it_is_wrong():
    """On a quadratic the undamped part of the model is exact: ρ ≥ 1. A loss that rises gives ρ < 0."""
    x, y = noise(30, 4), noise(30, 2, seed=2)
    policy = replace(PLAIN, quadratic=MSE, adapt=LevenbergMarquardt(every=2, decay=0.8))
    for spoil, factor in ((0.0, 0.64), (1e3, 1 / 0.64)):
        model = fill(nn.Linear(4, 2))
        optimizer = KFAC(model, lr=1.0, damping=0.5, policy=policy)
        damping = fit(optimizer, model, x, y, 4, spoil)
        assert damping == pytest.approx([0.5, 0.5 * factor, 0.5 * factor, 0.5 * factor**2], rel=1e-6)


@pytest.mark.parametrize("quadratic", [MSE, None], ids=["exact model", "layers' own curvature"])
@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_the_predicted_reduction_is_the_actual_one_on_a_quadratic(quadratic, l2):
    """λ = 0, one linear layer with its exact Fisher: the model is the loss, penalty included, over several steps."""
    x, y, model = noise(30, 4), noise(30, 2, seed=2), fill(nn.Linear(4, 2))
    policy = replace(PLAIN, quadratic=quadratic, fisher=ExactFisher(Gaussian()), l2=l2)
    optimizer = KFAC(model, lr=0.3, damping=0.0, momentum=0.5, policy=policy)

    def objective() -> Tensor:
        return F.mse_loss(model(x), y) + 0.5 * l2 * sum(p.square().sum() for p in model.parameters())

    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(optimizer.observe(model(x)), y).backward()
        before = objective().detach()
        with torch.no_grad():
            assert optimizer.bring_up_to_date(LossScale())
            predicted = optimizer._apply(predict=True)
        optimizer.finish_step()
        torch.testing.assert_close(before - objective().detach(), predicted, rtol=1e-10, atol=1e-13)


def test_adaptation_adds_the_penalty_that_gradients_include_to_the_loss_it_is_given():
    """A quadratic and next to no damping: ρ = 1 to a thousandth, so λ stays. Without the penalty it would not."""
    x, y, model = noise(30, 4), noise(30, 2, seed=2), fill(nn.Linear(4, 2))
    rule = LevenbergMarquardt(every=1, low=0.999, high=1.001)
    policy = replace(PLAIN, quadratic=MSE, fisher=ExactFisher(Gaussian()), l2=0.5, adapt=rule)
    optimizer = KFAC(model, lr=1.0, damping=1e-6, policy=policy)
    F.mse_loss(optimizer.observe(model(x)), y).backward()
    optimizer.step(evaluate=lambda: F.mse_loss(model(x), y))
    assert [float(group["damping"]) for group in optimizer.param_groups] == pytest.approx([1e-6], rel=1e-6)


def test_the_rule_by_hand():
    rule = LevenbergMarquardt(every=3, decay=0.5, smallest=0.1, largest=10.0)
    ratios = torch.tensor([0.9, 0.5, 0.1, -1.0, float("nan")])
    assert rule(torch.ones(5), ratios).tolist() == [0.125, 1.0, 8.0, 8.0, 8.0]
    assert rule(torch.full((5,), 0.2), ratios).tolist() == pytest.approx([0.1, 0.2, 1.6, 1.6, 1.6])
    assert rule(torch.full((5,), 5.0), ratios).tolist() == [0.625, 5.0, 10.0, 10.0, 10.0]
    assert [rule.due(step) for step in range(7)] == [False, False, True, False, False, True, False]


def test_damping_that_adapts_needs_the_loss():
    model = network()
    optimizer = KFAC(model, policy=Policy(adapt=LevenbergMarquardt()))
    with pytest.raises(ValueError, match=r"damping adapts by the loss after a step: call step\(evaluate="):
        optimizer.step()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"every": 0}, "every must be at least 1 and decay lie in"),
        ({"decay": 1.0}, "every must be at least 1 and decay lie in"),
        ({"low": 0.8}, "low < high and 0 < smallest <= largest are needed, got low 0.8, high 0.75"),
        ({"smallest": 0.0}, "low < high and 0 < smallest <= largest are needed"),
        ({"smallest": 2.0, "largest": 1.0}, "low < high and 0 < smallest <= largest are needed"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(**options)


def test_a_model_that_overflows_moves_nothing_and_is_counted():
    """Inputs of 5e8 make gradients of 1e16, whose products are beyond float32: the minimum is no number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 1))
    opt = KFAC(model, lr=1.0, damping=1e-3, policy=Policy(quadratic=MSE))
    for size in (1.0, 1e9, 1.0):
        opt.zero_grad()
        outputs = model(size * torch.randn(2, 4))
        opt.observe(outputs)
        outputs.square().mean().backward()
        before = [p.detach().clone() for p in model.parameters()]
        opt.step()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert moved == (size == 1.0)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert opt.report()["skipped_steps"] == 1
