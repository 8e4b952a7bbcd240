"""NGD: one step against dense truths, in the words of a user."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from heatbath.curvature import (
    Bernoulli,
    Categorical,
    EmpiricalFisher,
    ExactFisher,
    Gaussian,
    InputOnly,
    Poisson,
    Reduction,
    SampledFisher,
)
from heatbath.optim import KFAC, NGD, JointPolicy, KLClip, LevenbergMarquardt, NormClip, joint
from heatbath.solvers import Cholesky, ConjugateGradient, Full, Guarded, NewtonSchulz, Refined, SmallSide, ThermodynamicSolve
from tests.curvature.test_jacobian import close, families, gauss_newton, mlp
from tests.curvature.truth import fill
from tests.laws import fresh, noise, parameters_of
from tests.zoo import IDEAL, LONG

LEAST = {
    "default": (None, 1e-11),
    "ConjugateGradient": (ConjugateGradient(60, 1e-15), 1e-11),
    "Full": (Full(Cholesky()), 1e-11),
    "NewtonSchulz": (NewtonSchulz(), 1e-11),
    "ideal machine": (Full(ThermodynamicSolve(IDEAL, LONG)), 1e-8),
}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def steps(model: nn.Module, optimizer: NGD, x: Tensor, y: Tensor, count: int = 1, loss=F.mse_loss) -> list[float]:
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        value = loss(optimizer.observe(model(x)), y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


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


# --- state -----------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_goes_on_bit_equal_and_work_goes_with_it():
    x, y = noise(6, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])

    def make() -> tuple[nn.Module, NGD]:
        model = mlp()
        return model, NGD(model, fisher=SampledFisher(Categorical(), 2), damping=0.1, momentum=0.9, generator=fresh(3))

    model, optimizer = make()
    steps(model, optimizer, x, y, 2, F.cross_entropy)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    steps(model, optimizer, x, y, 2, F.cross_entropy)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = make()
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    steps(again, other, x, y, 2, F.cross_entropy)
    assert torch.equal(flat(again), flat(model))
    assert other.work == optimizer.work
    assert other.report() == optimizer.report()


def test_a_copy_goes_on_alone():
    x, y, (model, optimizer, _) = noise(5, 4), noise(5, 3, seed=1), ready(momentum=0.9, damping=0.1)
    steps(model, optimizer, x, y)
    other, twin = copy.deepcopy((model, optimizer))
    steps(model, optimizer, x, y, 2)
    kept = flat(model)
    steps(other, twin, x, y, 2)
    assert torch.equal(flat(other), kept)
    assert torch.equal(flat(model), kept)
    assert twin.report() == optimizer.report()


def test_distributed_checkpoints_hold_the_momentum():
    x, y, (model, optimizer, _) = noise(5, 4), noise(5, 3, seed=1), ready(momentum=0.9, damping=0.1)
    steps(model, optimizer, x, y)
    weights, saved = get_state_dict(model, optimizer)
    weights, saved = copy.deepcopy((weights, saved))
    steps(model, optimizer, x, y)
    again, other, _ = ready(momentum=0.9, damping=0.1)
    get_state_dict(again, other)
    set_state_dict(again, other, model_state_dict=weights, optim_state_dict=saved)
    steps(again, other, x, y)
    assert torch.equal(flat(again), flat(model))


@pytest.mark.parametrize("fisher", [ExactFisher(Gaussian()), EmpiricalFisher()], ids=lambda f: type(f).__name__)
def test_a_grad_scaler_changes_nothing(fisher):
    x, y, moved = noise(5, 4), noise(5, 3, seed=1), []
    for scaled in (False, True):
        model, optimizer, _ = ready(fisher=fisher, damping=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        scaler.scale(F.mse_loss(optimizer.observe(model(x)), y)).backward()
        scaler.step(optimizer)
        moved.append(flat(model))
    close(moved[1], moved[0])


def test_a_group_that_comes_later_gets_the_defaults():
    model, x, y = mlp(), noise(6, 4, seed=1), noise(6, 3, seed=2)
    model[0].requires_grad_(False)
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()), lr=0.2, damping=0.1)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[0].parameters()})
    assert optimizer.param_groups[1]["lr"] == 0.2
    whole = mlp()
    steps(model, optimizer, x, y)
    steps(whole, NGD(whole, fisher=ExactFisher(Gaussian()), lr=0.2, damping=0.1), x, y)
    close(flat(model), flat(whole))


def test_states_of_others_are_refused():
    optimizer = NGD(mlp(), fisher=ExactFisher(Gaussian()))
    with pytest.raises(ValueError, match="this state_dict was not saved by NGD or TNGD"):
        optimizer.load_state_dict(KFAC(mlp()).state_dict())
    with pytest.raises(ValueError, match=r"saved with the solver SmallSide\(Cholesky\(\)\), this optimizer has Conj"):
        NGD(mlp(), fisher=ExactFisher(Gaussian()), solver=ConjugateGradient()).load_state_dict(optimizer.state_dict())


def test_a_rehearsal_without_outputs_changes_nothing():
    """`torch.distributed.checkpoint` steps with gradients and learning rates of zero."""
    model = mlp()
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()), lr=0.0)
    before = flat(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(flat(model), before)
    assert optimizer.steps == 0


def test_work_counts_the_small_side():
    model, x, y = mlp(), noise(4, 4, seed=1), noise(4, 3, seed=2)
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()), damping=0.1)
    steps(model, optimizer, x, y)
    m, n = 12, len(flat(model))
    factor = m**3 / 3 + 2 * m**3 / 3
    assert optimizer.work.flops == pytest.approx(2 * m * m * n + factor + 2 * m * m + 4 * m * n + 2 * n)


# --- at the door -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [None, [], mlp().parameters()], ids=lambda value: type(value).__name__)
def test_parameters_in_place_of_the_model_are_refused(what):
    with pytest.raises(TypeError, match=r"NGD takes the model itself, not its parameters: expected nn\.Module, got"):
        NGD(what, fisher=ExactFisher(Gaussian()))


@pytest.mark.parametrize("fisher", [InputOnly(), Gaussian(), None], ids=lambda value: type(value).__name__)
def test_a_fisher_without_vectors_at_the_outputs_is_refused(fisher):
    with pytest.raises(TypeError, match="fisher must be ExactFisher, SampledFisher or EmpiricalFisher, got"):
        NGD(mlp(), fisher=fisher)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"damping": float("nan")}, {"momentum": 1.0}], ids=str)
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must"):
        NGD(mlp(), fisher=ExactFisher(Gaussian()), **options)


def test_groups_with_dampings_of_their_own_are_refused():
    model = mlp()
    with pytest.raises(ValueError, match="all parameters are solved for together, so groups cannot have dampings of their own"):
        NGD(model, [{"params": model[0].parameters(), "damping": 1.0}], fisher=ExactFisher(Gaussian()))


def test_several_processes_are_refused(monkeypatch):
    model, optimizer, x = ready()
    optimizer.observe(model(x)).square().mean().backward()
    monkeypatch.setattr(joint, "is_parallel", lambda: True)
    with pytest.raises(ValueError, match="NGD and TNGD work in one process: G is of one batch"):
        optimizer.step()


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        NGD(nn.ReLU(), fisher=ExactFisher(Gaussian()))


def ready(**options: Any) -> tuple[nn.Module, NGD, Tensor]:
    model = options.pop("model", None) or mlp()
    return model, NGD(model, fisher=options.pop("fisher", ExactFisher(Gaussian())), **options), noise(5, 4)


def test_a_step_without_observed_outputs_is_refused():
    model, optimizer, x = ready()
    model(x).sum().backward()
    with pytest.raises(ValueError, match=r"step\(\) has seen no outputs since the last one: write loss"):
        optimizer.step()


def test_observing_twice_what_the_model_gave_once_is_refused():
    model, optimizer, x = ready()
    outputs = optimizer.observe(model(x))
    with pytest.raises(ValueError, match="observe found no call of the model since the last one"):
        optimizer.observe(outputs)


def test_evaluation_needs_no_observation_and_keeps_none():
    model, optimizer, x = ready()
    with torch.no_grad():
        optimizer.observe(model(x))
    assert optimizer._seen == []


def test_a_step_without_gradients_warns():
    model, optimizer, x = ready()
    optimizer.observe(model(x))
    with pytest.warns(UserWarning, match=r"step\(\) found no gradients and changed nothing"):
        optimizer.step()


def test_an_empirical_fisher_whose_loss_went_elsewhere_is_refused():
    model, optimizer, x = ready(fisher=EmpiricalFisher())
    optimizer.observe(model(x))
    model(x).sum().backward()
    with pytest.raises(ValueError, match="no gradient came to the observed outputs: compute the loss from"):
        optimizer.step()


def test_dropout_in_training_mode_is_refused_and_nothing_moves():
    model = fill(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    model, optimizer, x = ready(model=model)
    before = flat(model)
    optimizer.observe(model(x)).square().mean().backward()
    with pytest.raises(ValueError, match="the model gives other outputs when it is run again on the same inputs: put Dropout"):
        optimizer.step()
    assert torch.equal(flat(model), before)


def test_a_part_of_what_the_model_returns_needs_the_policy_to_pick_it():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(x)}

    policy = JointPolicy(output=lambda out: out["logits"])
    model, optimizer, x = ready(model=Named(), policy=policy, damping=0.1)
    before = flat(model)
    optimizer.observe(model(x)["logits"]).square().mean().backward()
    optimizer.step()
    assert not torch.equal(flat(model), before)


def test_sparse_gradients_are_refused():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)).double()
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()))
    optimizer.observe(model(torch.tensor([[0, 1], [2, 3]]))).square().mean().backward()
    with pytest.raises(ValueError, match="NGD and TNGD take no sparse gradients: build embeddings with sparse=False"):
        optimizer.step()


def test_adapting_damping_needs_an_evaluation():
    model, optimizer, x = ready(policy=JointPolicy(adapt=LevenbergMarquardt()))
    optimizer.observe(model(x)).square().mean().backward()
    with pytest.raises(ValueError, match=r"damping adapts by the loss after a step: call step\(evaluate="):
        optimizer.step()


def test_a_nan_in_one_gradient_stops_the_whole_step():
    model, optimizer, x = ready(momentum=0.9, weight_decay=0.1)
    optimizer.observe(model(x)).square().mean().backward()
    optimizer.step()
    before, held = flat(model), [s["momentum"].clone() for s in optimizer.state.values()]
    optimizer.zero_grad()
    optimizer.observe(model(x)).square().mean().backward()
    model[0].weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert torch.equal(flat(model), before)
    assert all(torch.equal(s["momentum"], h) for s, h in zip(optimizer.state.values(), held, strict=True))
    assert optimizer.report()["skipped_steps"] == 1


def test_no_damping_where_outputs_are_fewer_than_weights_moves_nothing_and_says_so():
    model, optimizer, x = ready(damping=0.0)
    before = flat(model)
    optimizer.observe(model(x[:2])).square().mean().backward()
    optimizer.step()
    assert torch.equal(flat(model), before)
    assert optimizer.report()["prepare.indefinite"] == 1


FITTED = [
    (Cholesky(), False),
    (Guarded(NewtonSchulz()), False),
    (ConjugateGradient(), True),
    (Refined(SmallSide()), True),
    (Full(Cholesky()), True),
]


@pytest.mark.parametrize("given,kept", FITTED, ids=str)
def test_solvers_of_dense_matrices_get_the_small_side(given, kept):
    solver = NGD(mlp(), fisher=ExactFisher(Gaussian()), solver=given).solver
    assert solver == (given if kept else SmallSide(given))
