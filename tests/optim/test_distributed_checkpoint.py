"""`torch.distributed.checkpoint` keeps curvature (trap 3): a fresh optimizer has every key that a saved one is loaded into."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from heatbath.curvature import InputOnly
from heatbath.optim import KFAC, Policy
from heatbath.solvers import Eigen, Guarded, ThermodynamicSolve
from tests.laws import batches, fresh, network, parameters_of, train
from tests.zoo import IDEAL, LONG

POLICY = Policy(factor_every=2, refresh_every=3, patience=0)
OPTIONS = {
    "default": {"policy": POLICY},
    "no momentum": {"policy": POLICY, "momentum": 0.0},
    "eigen, corrected": {"policy": Policy(2, 3, 0, corrected=True), "solver": Eigen()},
    "blocks": {"policy": Policy(2, 3, 0, max_dim=2)},
    "sketches": {"policy": Policy(2, 3, 0, max_dim=2, rank=1)},
    "input only": {"policy": Policy(2, 3, 0, fisher=InputOnly())},
    "machine": {"policy": POLICY, "solver": Guarded(ThermodynamicSolve(IDEAL, LONG))},
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about being alone
        yield


def pair(seed: int = 0, **options) -> tuple[nn.Module, KFAC]:
    model = network(seed)
    return model, KFAC(model, lr=0.1, generator=fresh(4), **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("through_files", [True, False], ids=["dcp.save", "full state_dict"])
def test_trap_3_a_run_saved_in_mid_interval_goes_on_bit_equal(options, through_files, tmp_path: Path):
    data = batches(10)
    model, optimizer = pair(**options)
    train(model, optimizer, data[:4])
    full = StateDictOptions(full_state_dict=True)
    weights, state = get_state_dict(model, optimizer, options=None if through_files else full)
    other, resumed = pair(seed=1, **options)
    if through_files:
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path)
        weights, state = get_state_dict(other, resumed)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=tmp_path)
        set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=state)
    else:
        weights, state = copy.deepcopy((weights, state))  # torch hands out, and takes over, the very tensors
        set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=state, options=full)
    train(model, optimizer, data[4:])
    train(other, resumed, data[4:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert resumed.steps == 10


def test_trap_3_looking_at_the_state_of_a_fresh_optimizer_changes_no_trajectory():
    """All state is allocated, nothing counts as done, no random number is drawn."""
    runs = []
    for looked in (False, True):
        model, optimizer = pair(policy=POLICY, solver=ThermodynamicSolve(IDEAL, LONG))
        before, random = parameters_of(model), optimizer.generator.get_state()
        if looked:
            get_state_dict(model, optimizer)
            assert all(stack.mean is not None and stack.state is not None for stack in optimizer.stacks)
            assert optimizer.steps == 0
            assert optimizer.report()["refreshes"] == 0
            assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
            assert torch.equal(random, optimizer.generator.get_state())
        train(model, optimizer, batches(6))
        runs.append(parameters_of(model))
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


def test_the_state_is_under_names_of_parameters():
    model, optimizer = pair(policy=POLICY)
    train(model, optimizer, batches(2))
    _, state = get_state_dict(model, optimizer)
    assert set(state["state"]) == {name for name, _ in model.named_parameters()}
    assert "natural" in state["param_groups"][0]
