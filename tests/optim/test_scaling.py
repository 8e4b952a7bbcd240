"""GradScaler has no effect (trap 4): scales are powers of two, so trajectories must be equal bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import Categorical, EmpiricalFisher, ExactFisher, InputOnly, Reduction
from heatbath.optim import KFAC, Policy, preconditioned
from heatbath.solvers import Eigen
from tests.laws import batches, network, noise, parameters_of

POLICY = Policy(factor_every=2, refresh_every=2, patience=0)
Step = Callable[[torch.amp.GradScaler, KFAC, nn.Module], None]


def run(policy: Policy, *, step: Step | None, overflow: int | None = None, **options) -> tuple[nn.Module, KFAC, list[float]]:
    """Six steps, scaled or not, clipped to a norm in either case; with an infinite loss at one step."""
    model = network()
    optimizer = KFAC(model, lr=0.1, policy=policy, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3, enabled=step is not None)
    scales = []
    for index, (x, y) in enumerate(batches(6)):
        if step is None and index == overflow:
            continue
        optimizer.zero_grad()
        outputs = optimizer.observe(model(x))
        reduction = "sum" if policy.reduction is Reduction.SUM else "mean"
        loss = F.cross_entropy(outputs, y, reduction=reduction) * (float("inf") if index == overflow else 1.0)
        scaler.scale(loss).backward()
        if step is None:
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
        else:
            step(scaler, optimizer, model)
        scales.append(scaler.get_scale())
        scaler.update()
    return model, optimizer, scales


def clipped(scaler: torch.amp.GradScaler, optimizer: KFAC, model: nn.Module) -> None:
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.3)
    scaler.step(optimizer)


@pytest.mark.parametrize("fisher", [EmpiricalFisher(), ExactFisher(Categorical()), InputOnly()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("reduction", [None, Reduction.SUM], ids=str)
def test_trap_4_unscaling_and_clipping_by_hand_changes_nothing(fisher, reduction):
    policy = replace(POLICY, fisher=fisher, reduction=reduction)
    plain, _, _ = run(policy, step=None)
    scaled, _, scales = run(policy, step=clipped)
    assert scales == [2.0**12] * 3 + [2.0**13] * 3  # the scale itself moves
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), scaled.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"solver": Eigen()}], ids=["cholesky", "eigen"])
def test_trap_4_a_scaler_that_unscales_for_us_changes_nothing(options):
    models = []
    for scaled in (False, True):
        model = network()
        optimizer = KFAC(model, lr=0.1, policy=POLICY, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2, enabled=scaled)
        for x, y in batches(6):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            assert scaler.step(optimizer) is None
            scaler.update()
        models.append(model)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_normalization_layers_are_unscaled_too():
    """Their gradients sit on the input side of the factor."""
    models = []
    for scaled in (False, True):
        model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).double()
        model[1].weight.data.copy_(noise(3, 4))
        model[1].bias.data.zero_()
        optimizer = KFAC(model, lr=0.1, policy=POLICY)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        for x, y in batches(3):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        models.append(model)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize("index", [0, 3])
@pytest.mark.parametrize("by_hand", [True, False], ids=["unscaled by hand", "unscaled by step"])
def test_a_step_that_overflows_is_left_out_as_if_it_had_not_been(index, by_hand):
    """Weights, momentum, AdamW, averages and counters; the scale falls."""

    def left_to_step(scaler, optimizer, model):
        scaler.step(optimizer)

    if by_hand:
        plain, one, _ = run(POLICY, step=None, overflow=index)
        scaled, other, scales = run(POLICY, step=clipped, overflow=index)
        assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), scaled.parameters(), strict=True))
        assert one.steps == other.steps == 5
        assert [s.ages for s in one.stacks] == [s.ages for s in other.stacks]
    else:
        scaled, other, scales = run(POLICY, step=left_to_step, overflow=index)
        assert other.steps == 5
        assert all(torch.isfinite(p).all() for p in scaled.parameters())
    assert scales[index + 1] == scales[index] / 2
    assert other.report()["skipped_steps"] == 1


def test_micro_batches_under_a_scaler_are_one_batch():
    ((x, y),) = batches(1)
    models = []
    for scale in (1.0, 2.0**10):
        model = network()
        optimizer = KFAC(model, lr=0.1, policy=POLICY)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        for part, wanted in zip(x.chunk(2), y.chunk(2), strict=True):
            scaler.scale(F.cross_entropy(model(part), wanted) / 2).backward()
        scaler.step(optimizer)
        models.append(model)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_trap_4_a_closure_under_a_scaler_is_refused_by_torch():
    model = network()
    optimizer, scaler = KFAC(model), torch.amp.GradScaler("cpu")
    ((x, y),) = batches(1)
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: None)


def test_unscaling_by_a_stranger_is_said():
    """Something that speaks the protocol and is no GradScaler, so that the scale cannot be found."""
    model = network()
    optimizer = KFAC(model)
    ((x, y),) = batches(1)
    F.cross_entropy(model(x), y).backward()
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), None
    before = parameters_of(model)
    with pytest.warns(UserWarning, match=r"gradients were unscaled by something that is no torch\.amp\.GradScaler"):
        optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_half_precision_weights_train_under_a_scaler():
    """float16 gradients of a small loss would vanish without it."""
    model = network(dtype=torch.float32)
    optimizer, scaler = KFAC(model, lr=0.1), torch.amp.GradScaler("cpu")
    losses = []
    for x, y in batches(1, examples=16, dtype=torch.float32) * 15:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert {s.mean.left.matrix.dtype for s in optimizer.stacks} == {torch.float32}


class Wrapper:
    """An optimizer around another one, as frameworks have them; it does not speak the scaler's protocol."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self) -> None:
        self.inner.step()


@pytest.mark.parametrize("how", ["wrapped", "told", "told and preconditioned"])
def test_a_step_that_is_called_by_something_else_knows_the_scale(how):
    """Through a wrapper the scaler is found; where the user unscales and steps alone, it has to be told."""
    models = []
    for scaled in (False, True):
        model = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2, enabled=scaled)
        if how == "told and preconditioned":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            curved = preconditioned(optimizer, model, policy=POLICY)
        else:
            optimizer = curved = KFAC(model, lr=0.1, policy=POLICY)
        if how != "wrapped":
            curved.scaler = scaler
        wrapper = Wrapper(optimizer)
        for x, y in batches(4):
            model.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            if how == "wrapped":
                scaler.step(wrapper)
            else:
                scaler.unscale_(optimizer)
                optimizer.step()
            scaler.update()
        models.append(model)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_scaler_far_up_the_stack_that_is_not_stepping_plays_no_part():
    """Something of its class that calls a training loop: only `GradScaler.step` itself counts."""

    class Trainer(torch.amp.GradScaler):
        def fit(self, model: nn.Module) -> None:
            optimizer = KFAC(model, lr=0.1, policy=POLICY)
            self.scale(torch.ones(()))  # it has a scale now
            ((x, y),) = batches(1)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    model, other = network(), network()
    Trainer("cpu").fit(model)
    optimizer = KFAC(other, lr=0.1, policy=POLICY)
    ((x, y),) = batches(1)
    F.cross_entropy(other(x), y).backward()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
