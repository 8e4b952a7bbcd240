"""NGD: one step against dense truths, in the words of a user."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import (
    Bernoulli,
    Categorical,
    EmpiricalFisher,
    ExactFisher,
    Gaussian,
    Poisson,
    Reduction,
    SampledFisher,
)
from heatbath.optim import NGD, JointPolicy, KLClip, LevenbergMarquardt, NormClip
from heatbath.solvers import Cholesky, ConjugateGradient, Full, NewtonSchulz, Refined, SmallSide, ThermodynamicSolve
from tests.curvature.test_jacobian import close, families, gauss_newton, mlp
from tests.curvature.truth import fill
from tests.laws import fresh, noise, parameters_of
from tests.optim.joint_loops import flat, gradient, steps
from tests.zoo import IDEAL, LONG

LEAST = {
    "default": (None, 1e-11),
    "ConjugateGradient": (ConjugateGradient(60, 1e-15), 1e-11),
    "Full": (Full(Cholesky()), 1e-11),
    "NewtonSchulz": (NewtonSchulz(), 1e-11),
    "ideal machine": (Full(ThermodynamicSolve(IDEAL, LONG)), 1e-8),
}


# --- what it solves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver,tolerance", LEAST.values(), ids=LEAST.keys())
def test_one_undamped_step_is_the_least_squares_solution(solver, tolerance):
    model, x, y = fill(nn.Linear(4, 3)), noise(40, 4), noise(40, 3, seed=1)
    steps(model, NGD(model, fisher=ExactFisher(Gaussian()), solver=solver, lr=1.0, damping=0.0), x, y)
    truth = torch.linalg.lstsq(torch.cat((x, torch.ones(40, 1)), 1), y).solution.mT
    close(torch.cat((model.weight, model.bias[:, None]), 1).detach(), truth, rtol=tolerance)


def test_fewer_examples_than_weights_are_fitted_by_the_step_of_least_norm():
    """m < n: λ → 0 leads to `pinv`; λ/σ_min² is missing, and rounding is magnified by σ_max²/λ."""
    damping = 1e-7
    model, x, y = fill(nn.Linear(6, 1)), noise(3, 6), noise(3, 1, seed=1)
    before = torch.cat((model.weight, model.bias[:, None]), 1).detach().clone()
    steps(model, NGD(model, fisher=ExactFisher(Gaussian()), lr=1.0, damping=damping), x, y)
    design = torch.cat((x, torch.ones(3, 1)), 1)
    step = (torch.linalg.pinv(design) @ (y - design @ before.T)).T
    values = torch.linalg.svdvals(design).square() * 2 / 3
    error = (torch.cat((model.weight, model.bias[:, None]), 1) - before - step).norm() / step.norm()
    assert error <= damping / values.min() + 10 * torch.finfo(x.dtype).eps * values.max() / damping


@families
@pytest.mark.parametrize(
    "solver", [SmallSide(), ConjugateGradient(80, 1e-14), Refined(SmallSide())], ids=lambda s: type(s).__name__
)
def test_a_step_of_a_network_is_a_dense_solve(family, solver):
    model, x, damping = mlp(), noise(6, 4, seed=1), 0.03
    y = family.targets(model(x))
    truth = gauss_newton(model, x, lambda z: family.loss(z, y))
    before = flat(model)
    steps(
        model, NGD(model, fisher=ExactFisher(family.likelihood), solver=solver, lr=0.7, damping=damping), x, y, 1, family.loss
    )
    natural = torch.linalg.solve(truth + damping * torch.eye(len(truth), dtype=truth.dtype), gradient(model))
    close(flat(model), before - 0.7 * natural, rtol=1e-9)


def test_momentum_and_weight_decay_are_those_of_heavy_ball():
    model, x, y = mlp(), noise(6, 4, seed=1), noise(6, 3, seed=2)
    options = {"fisher": ExactFisher(Gaussian()), "lr": 0.3, "damping": 0.1}
    optimizer = NGD(model, momentum=0.8, weight_decay=0.05, **options)
    held: Tensor | float = 0.0
    for _ in range(3):
        probe, before = mlp(), flat(model)
        probe.load_state_dict(model.state_dict())
        steps(probe, NGD(probe, **options), x, y)
        held = 0.8 * held + (before - flat(probe)) / 0.3
        steps(model, optimizer, x, y)
        close(flat(model), (1 - 0.3 * 0.05) * before - 0.3 * held)


@pytest.mark.parametrize("trust", [KLClip(1e-3), NormClip(0.01)], ids=lambda t: type(t).__name__)
def test_trust_bounds_the_length_of_a_sustained_step(trust):
    model, x, y = mlp(), noise(6, 4, seed=1), noise(6, 3, seed=2)
    before = flat(model)
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()), lr=1.0, damping=0.1, momentum=0.5, policy=JointPolicy(trust=trust))
    steps(model, optimizer, x, y)
    moved = before - flat(model)
    if isinstance(trust, NormClip):
        assert moved.norm().item() == pytest.approx(0.01 * 0.5, rel=1e-6)  # lr/(1 − m) is 2
    else:
        probe = mlp()
        steps(probe, NGD(probe, fisher=ExactFisher(Gaussian()), lr=1.0, damping=0.1), x, y)
        v = before - flat(probe)
        scale = moved.norm() / v.norm()
        assert (scale**2 * 4 * (v @ gradient(probe))).item() == pytest.approx(1e-3, rel=1e-6)


def test_a_summed_loss_is_divided_by_its_examples():
    x, y = noise(6, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    moved = []
    for reduction, how in ((None, "mean"), (Reduction.SUM, "sum")):
        model = mlp()
        optimizer = NGD(model, fisher=ExactFisher(Categorical()), damping=0.1, policy=JointPolicy(reduction=reduction))
        steps(model, optimizer, x, y, loss=lambda z, t, how=how: F.cross_entropy(z, t, reduction=how))
        moved.append(flat(model))
    close(moved[1], moved[0])


def test_accumulated_passes_are_one_batch():
    x, y = noise(6, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    whole, parts = mlp(), mlp()
    steps(whole, NGD(whole, fisher=ExactFisher(Categorical()), damping=0.1), x, y, loss=F.cross_entropy)
    optimizer = NGD(parts, fisher=ExactFisher(Categorical()), damping=0.1)
    for piece, target in zip(x.split(2), y.split(2), strict=True):
        (F.cross_entropy(optimizer.observe(parts(piece)), target) / 3).backward()
    optimizer.step()
    close(flat(parts), flat(whole))


def test_a_closure_and_an_evaluation_adapt_damping_by_the_ratio_of_reductions():
    """A linear model is its own quadratic model: ρ = 1 but for λ, so λ falls by decay^every."""
    model, x, y = fill(nn.Linear(4, 3)), noise(40, 4), noise(40, 3, seed=1)
    adapt = LevenbergMarquardt(every=1, decay=0.5)
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()), lr=1.0, damping=1e-3, policy=JointPolicy(adapt=adapt))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(optimizer.observe(model(x)), y)
        loss.backward()
        return loss

    first = F.mse_loss(model(x), y).item()
    assert optimizer.step(closure, evaluate=lambda: F.mse_loss(model(x), y)).item() == first
    assert optimizer.param_groups[0]["damping"].item() == pytest.approx(5e-4)


@pytest.mark.parametrize("kind", ["mean", "sum", "sum of two passes"])
def test_damping_adapts_alike_whatever_the_loss_divides_by(kind):
    """λ after each step is that of a loop by hand on the mean loss, with dense truths."""
    model, x, y = mlp(), noise(6, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    l2, start, truth = 0.02, 0.1, []
    damping = start

    def mean(at: Tensor) -> Tensor:
        pieces = at.split([p.numel() for p in model.parameters()])
        named = zip(model.named_parameters(), pieces, strict=True)
        values = {name: piece.view(p.shape) for (name, p), piece in named}
        z = torch.func.functional_call(model, values, (x,))
        return F.cross_entropy(z, y) + 0.5 * l2 * at.square().sum()

    theta = flat(model)
    for _ in range(4):
        torch.nn.utils.vector_to_parameters(theta.clone(), model.parameters())
        g = torch.autograd.functional.jacobian(mean, theta)
        matrix = gauss_newton(model, x, lambda z: F.cross_entropy(z, y))
        matrix = matrix + (damping + l2) * torch.eye(len(matrix), dtype=matrix.dtype)
        v = torch.linalg.solve(matrix, g)
        predicted = g @ v - 0.5 * (v @ matrix @ v)
        ratio = (mean(theta) - mean(theta - v)) / predicted
        theta = theta - v
        damping *= 0.5 if ratio > 0.75 else 1.0 if ratio >= 0.25 else 2.0
        truth.append(damping)
    assert truth == pytest.approx([0.1, 0.05, 0.025, 0.05])  # kept, lowered twice, raised

    model = mlp()
    reduction = None if kind == "mean" else Reduction.SUM
    policy = JointPolicy(adapt=LevenbergMarquardt(every=1, decay=0.5), reduction=reduction)
    optimizer = NGD(
        model,
        [{"params": model.parameters(), "l2": l2}],
        fisher=ExactFisher(Categorical()),
        lr=1.0,
        damping=start,
        policy=policy,
    )

    def loss(outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="mean" if kind == "mean" else "sum")

    found = []
    for _ in truth:
        optimizer.zero_grad()
        if kind == "sum of two passes":  # two passes are one batch
            for part, target in zip(x.split(3), y.split(3), strict=True):
                F.cross_entropy(optimizer.observe(model(part)), target, reduction="sum").backward()
        else:
            loss(optimizer.observe(model(x))).backward()
        optimizer.step(evaluate=lambda: loss(model(x)))
        found.append(float(optimizer.param_groups[0]["damping"]))
    assert found == pytest.approx(truth)
    close(flat(model), theta, rtol=1e-8)
    assert optimizer.report()["passes.evaluate"] == 8


def test_loss_and_damping_scale_together():
    """(cG + cλI)⁻¹cg = (G + λI)⁻¹g."""
    x, y, moved = noise(6, 4, seed=1), noise(6, 3, seed=2), []
    for c in (1.0, 7.0):
        model = mlp()
        optimizer = NGD(model, fisher=ExactFisher(Gaussian(2 * c)), damping=0.1 * c)
        steps(model, optimizer, x, y, loss=lambda z, t, c=c: c * F.mse_loss(z, t))
        moved.append(flat(model))
    close(moved[1], moved[0])


def test_examples_seen_twice_change_nothing():
    x, y, moved = noise(6, 4, seed=1), noise(6, 3, seed=2), []
    for times in (1, 2):
        model = mlp()
        steps(model, NGD(model, fisher=ExactFisher(Gaussian()), damping=0.1), x.repeat(times, 1), y.repeat(times, 1))
        moved.append(flat(model))
    close(moved[1], moved[0])


@pytest.mark.parametrize(
    "fisher",
    [SampledFisher(Categorical(), 4), EmpiricalFisher(), ExactFisher(Categorical())],
    ids=lambda f: type(f).__name__,
)
def test_every_fisher_lowers_the_loss(fisher):
    model, x, y = mlp(), noise(30, 4, seed=1), torch.arange(30) % 3
    optimizer = NGD(model, fisher=fisher, lr=0.3, damping=0.1, generator=fresh())
    losses = steps(model, optimizer, x, y, 10, F.cross_entropy)
    assert losses[-1] < losses[0]
    assert optimizer.report()["skipped_steps"] == 0


@pytest.mark.parametrize("kind", [Bernoulli(), Poisson()], ids=lambda k: type(k).__name__)
def test_float32_stays_float32(kind):
    model, x = mlp().float(), noise(6, 4, dtype=torch.float32)
    optimizer = NGD(model, fisher=ExactFisher(kind), damping=0.1, momentum=0.5)
    steps(model, optimizer, x, torch.ones(6, 3), 2, F.binary_cross_entropy_with_logits)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
    assert all(t.dtype == torch.float32 for state in optimizer.state.values() for t in state.values())


def test_an_lstm_in_float32_is_trained_by_products_and_leaves_the_backend_as_it_was():
    """oneDNN's fused kernel knows no forward mode, and float64 does not take it."""
    model = Last(nn.LSTM(3, 4, batch_first=True)).float()
    before = torch.backends.mkldnn.enabled
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()), solver=ConjugateGradient(20), lr=1.0, damping=0.1)
    x = noise(6, 5, 3, dtype=torch.float32)
    losses = steps(model, optimizer, x, x.sum((1, 2)).sin().unsqueeze(1).expand(6, 4), 5)
    assert losses[-1] < losses[0]
    assert torch.backends.mkldnn.enabled == before


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0][:, -1]


def test_frozen_parameters_stay_and_groups_have_their_own_learning_rate():
    model, x, y = mlp(), noise(6, 4, seed=1), noise(6, 3, seed=2)
    model[0].bias.requires_grad_(False)
    before = parameters_of(model)
    optimizer = NGD(model, [{"params": [model[2].bias], "lr": 0.0}], fisher=ExactFisher(Gaussian()), damping=0.1)
    steps(model, optimizer, x, y)
    same = [torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert same == [False, True, False, True]
    assert optimizer.coverage().count("ngd") == 20 + 15 + 3
    assert "38 of 38 trainable numbers by curvature" in str(optimizer.coverage())


@pytest.mark.slow
def test_fewer_steps_than_sgd_and_adam_need_at_their_best_rate():
    """A regression by tanh units: steps until the loss is a fifth of its start, learning rates over three decades."""
    x = noise(60, 4, seed=1)
    y = torch.sin(x @ noise(4, 3, seed=2))

    def count(make) -> int:
        model = mlp()
        optimizer = make(model)
        start = F.mse_loss(model(x), y).item()
        for step in range(300):
            optimizer.zero_grad()
            out = model(x)
            loss = F.mse_loss(optimizer.observe(out) if isinstance(optimizer, NGD) else out, y)
            if loss.item() < 0.2 * start:
                return step
            loss.backward()
            optimizer.step()
        return 300

    rates = [10.0**k for k in (-3, -2, -1)] + [3 * 10.0**k for k in (-3, -2, -1)]
    sgd = min(count(lambda m, r=r: torch.optim.SGD(m.parameters(), lr=r, momentum=0.9)) for r in rates)
    adam = min(count(lambda m, r=r: torch.optim.Adam(m.parameters(), lr=r)) for r in rates)
    ngd = count(lambda m: NGD(m, fisher=ExactFisher(Gaussian()), lr=1.0, damping=0.01))
    assert ngd < min(sgd, adam)
