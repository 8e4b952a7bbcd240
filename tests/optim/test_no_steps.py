"""Steps that are no steps: nothing captured, nothing finite, a rehearsal, a closure."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.optim import KFAC, Policy, Unclipped
from tests.laws import Scale, batches, network, parameters_of, train
from tests.zoo import PLAIN

NEVER = replace(PLAIN, factor_every=10**6, refresh_every=10**6)  # the first curvature for ever


def backward(model: nn.Module, index: int = 0) -> None:
    x, y = batches(index + 1)[index]
    F.cross_entropy(model(x), y).backward()


def test_a_step_without_a_backward_warns_and_changes_nothing():
    model = network()
    optimizer = KFAC(model, weight_decay=0.1)
    train(model, optimizer, batches(2))
    optimizer.zero_grad()
    before, state = parameters_of(model), copy.deepcopy(optimizer.state_dict())
    with pytest.warns(UserWarning, match=r"step\(\) found no gradients and changed nothing: call loss\.backward\(\) before"):
        assert optimizer.step() is None
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert str(optimizer.state_dict()) == str(state)


def test_gradients_that_were_never_seen_warn_and_use_the_last_curvature():
    """`.grad` written by hand where factors were due."""
    model = network()
    optimizer = KFAC(model, policy=PLAIN)
    backward(model)
    optimizer.step()
    refreshes = optimizer.report()["refreshes"]
    with pytest.warns(UserWarning, match=r"step\(\) found gradients but no captured curvature since the last step"):
        optimizer.step()
    assert optimizer.report()["refreshes"] == refreshes


def test_no_warning_on_steps_that_need_no_factors():
    model = network()
    optimizer = KFAC(model, policy=Policy(factor_every=5, refresh_every=5, patience=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, batches(7))


def test_trap_3_a_step_on_zero_gradients_at_rate_zero_changes_nothing():
    """`torch.distributed.checkpoint` calls `step` on an optimizer that looks empty, with zero gradients and lr 0, to fill its
    state. It must work with nothing captured, fresh or in training, and leave no trace but that state."""
    for steps in (0, 3):
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        optimizer = KFAC(model, weight_decay=0.1)
        train(model, optimizer, batches(steps))
        optimizer.zero_grad()
        before, state, report = parameters_of(model), copy.deepcopy(optimizer.state_dict()), optimizer.report()
        rates = [group["lr"] for group in optimizer.param_groups]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step(closure=None)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        if steps:
            assert str(optimizer.state_dict()) == str(state)
        assert optimizer.steps == steps
        assert optimizer.report() == report


def test_trap_3_the_real_one():
    """`get_optimizer_state_dict` itself."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Scale(5), nn.Linear(5, 3)).double()
    optimizer = KFAC(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_optimizer_state_dict(model, optimizer)
    assert optimizer.report()["refreshes"] == 0
    train(model, optimizer, batches(2))
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    before, report = momentum.clone(), optimizer.report()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_optimizer_state_dict(model, optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], before)
    assert optimizer.report() == report
    assert optimizer.steps == 2


def test_trap_5_a_closure_is_called_once_with_gradients_on():
    model, plain = network(), network()
    optimizer, other = KFAC(model), KFAC(plain)
    calls = []
    for index in range(3):

        def closure():
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            x, y = batches(index + 1)[index]  # noqa: B023
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            calls.append(loss)
            return loss

        with torch.no_grad():
            assert optimizer.step(closure) is calls[-1]
        other.zero_grad()
        backward(plain, index)
        other.step()
    assert len(calls) == 3
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_first_batch_that_is_not_finite_leaves_no_mark():
    """Training then goes on as if it had not been."""
    clean, spoilt = network(), network()
    policy = replace(PLAIN, trust=Unclipped())
    optimizers = [KFAC(m, lr=0.05, policy=policy) for m in (clean, spoilt)]
    x, y = batches(1)[0]
    (F.cross_entropy(spoilt(x), y) * torch.nan).backward()
    optimizers[1].step()
    for model, optimizer in zip((clean, spoilt), optimizers, strict=True):
        optimizer.zero_grad()
        backward(model, 1)
        optimizer.step()
    for (name, p), q in zip(clean.named_parameters(), spoilt.parameters(), strict=True):
        if name != "2.scale":  # AdamW counts a step
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-11)
