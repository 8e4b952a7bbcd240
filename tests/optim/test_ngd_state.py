"""NGD: what travels with it, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from heatbath.curvature import (
    Categorical,
    EmpiricalFisher,
    ExactFisher,
    Gaussian,
    InputOnly,
    SampledFisher,
)
from heatbath.optim import KFAC, NGD, JointPolicy, LevenbergMarquardt, joint
from heatbath.solvers import Cholesky, ConjugateGradient, Full, Guarded, NewtonSchulz, Refined, SmallSide
from tests.curvature.test_jacobian import close, mlp
from tests.curvature.truth import fill
from tests.laws import fresh, noise
from tests.optim.joint_loops import flat, goes_on_bit_equal, steps
from tests.optim.test_copying import COPIES

# --- state -------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_goes_on_bit_equal_and_work_goes_with_it():
    x, y = noise(6, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])

    def make() -> tuple[nn.Module, NGD]:
        model = mlp()
        return model, NGD(model, fisher=SampledFisher(Categorical(), 2), damping=0.1, momentum=0.9, generator=fresh(3))

    optimizer, other = goes_on_bit_equal(make, x, y)
    assert other.report() == optimizer.report()


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
def test_a_copy_goes_on_alone(copied):
    x, y, (model, optimizer, _) = noise(5, 4), noise(5, 3, seed=1), ready(momentum=0.9, damping=0.1)
    steps(model, optimizer, x, y)
    other, twin = copied((model, optimizer))
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


def test_a_scaler_that_is_named_is_known_where_it_does_not_call_the_step():
    """The empirical Fisher is made of gradients at the outputs, which carry the scale."""
    x, y, moved = noise(5, 4), noise(5, 3, seed=1), []
    for scaled in (False, True):
        model, optimizer, _ = ready(fisher=EmpiricalFisher(), damping=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        optimizer.scaler = scaler
        scaler.scale(F.mse_loss(optimizer.observe(model(x)), y)).backward()
        scaler.unscale_(optimizer)
        optimizer.step()
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
    with pytest.raises(ValueError, match="this state_dict holds no curvature"):
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


@pytest.mark.parametrize("name", ["damping", "l2"])
def test_groups_with_a_damping_or_penalty_of_their_own_are_refused(name):
    model = mlp()
    with pytest.raises(ValueError, match=f"solved for together, so groups cannot have their own {name}: got"):
        NGD(model, [{"params": model[0].parameters(), name: 1.0}], fisher=ExactFisher(Gaussian()))


def test_a_parameter_of_another_model_is_refused():
    optimizer = NGD(mlp(), fisher=ExactFisher(Gaussian()))
    with pytest.raises(ValueError, match="a parameter that is not one of the model's"):
        optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    assert len(optimizer.param_groups) == 1


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
    before, held = flat(model), [s["momentum_buffer"].clone() for s in optimizer.state.values()]
    optimizer.zero_grad()
    optimizer.observe(model(x)).square().mean().backward()
    model[0].weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert torch.equal(flat(model), before)
    assert all(torch.equal(s["momentum_buffer"], h) for s, h in zip(optimizer.state.values(), held, strict=True))
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
