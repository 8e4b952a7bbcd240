from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import Categorical, ExactFisher
from heatbath.machines import Machine
from heatbath.operators import map_tensors, to_plain
from heatbath.optim import KFAC, NGD, KLClip, Policy
from heatbath.solvers import Cholesky, Eigen, Factorwise, Guarded, NewtonSchulz, ThermodynamicSolve
from tests.laws import Scale, batches, network, saved_and_loaded, train
from tests.zoo import EIGHT, IDEAL


def trained(model: nn.Module | None = None, **options) -> KFAC:
    model = network() if model is None else model
    optimizer = KFAC(model, **options)
    train(model, optimizer, batches(2))
    return optimizer


def test_another_kind_of_state_dict_is_refused():
    state = torch.optim.Adam(network().parameters()).state_dict()
    with pytest.raises(ValueError, match="this state_dict holds no curvature: it was not saved by this kind of optimizer"):
        KFAC(network()).load_state_dict(state)


def test_another_model_is_refused_and_the_message_names_the_layers():
    other = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Scale(6), nn.Linear(6, 3)).double()
    optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict())
    message = r"of a model with other layers: 0\[0\]: \(6, 5\) saved, \(5, 5\) here; 3\[0\]: \(3, 7\) saved, \(3, 6\) here$"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(KFAC(other).state_dict())
    assert str(optimizer.state_dict()) == str(before)


def test_a_model_with_more_layers_is_refused():
    deep = nn.Sequential(*[nn.Linear(3, 3) for _ in range(9)])
    with pytest.raises(ValueError, match=r"4\[0\]: \(3, 4\) saved, absent here; .* and 2 more"):
        KFAC(nn.Sequential(*[nn.Linear(3, 3) for _ in range(2)])).load_state_dict(KFAC(deep).state_dict())


def test_the_same_layers_in_other_groups_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    one, two = KFAC(model), KFAC(model, [{"params": model[0].parameters()}])
    with pytest.raises(ValueError, match="the same layers in other parameter groups or another order"):
        one.load_state_dict(two.state_dict())


def alike() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 3)).double()


def by_block(optimizer: KFAC) -> dict[str, list[torch.Tensor]]:
    """Everything that lies in stacks, by the name of the block it belongs to."""
    found = {}
    for stack in optimizer.stacks:
        tensors = [stack.boost]
        for kept in (stack.mean, stack.state, stack.corrected):
            map_tensors(lambda tensor, to=tensors: to.append(tensor) or tensor, kept)
        for name, place in zip(stack.names, stack.places, strict=True):
            found[name] = [*(tensor[place.slice] for tensor in tensors), torch.tensor(stack.ages[place.index])]
    return found


def assert_equal_blocks(one: KFAC, other: KFAC) -> None:
    here, there = by_block(one), by_block(other)
    assert here.keys() == there.keys()
    for name, tensors in here.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, there[name], strict=True)), name


EXACT = Machine(IDEAL.spec, tolerance=0)  # one law for all stacks
SOLVERS = [None, Eigen(), Guarded(NewtonSchulz()), ThermodynamicSolve(EXACT)]


def _text(optimizer: torch.optim.Optimizer) -> str:
    """All of a state, without the serial numbers by which a host tells programmed machines apart."""
    return re.sub(r"'number': \d+", "", str(optimizer.state_dict()))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("cut", [True, False])
def test_a_state_moves_between_staggered_and_not_block_by_block(cut: bool, solver: Any) -> None:
    here, there = alike(), alike()
    options = {"solver": solver, "momentum": 0.9}
    policies = [Policy(20, 20, stagger=stagger) for stagger in (cut, not cut)]
    one = KFAC(here, policy=policies[0], **options)
    train(here, one, batches(3))
    other = KFAC(there, policy=policies[1], **options)
    assert len(one.stacks) != len(other.stacks)
    there.load_state_dict(here.state_dict())
    other.load_state_dict(saved_and_loaded(one.state_dict()))
    assert_equal_blocks(one, other)
    back = KFAC(alike(), policy=policies[0], **options)
    back.load_state_dict(other.state_dict())
    assert _text(back) == _text(one)
    assert_equal_blocks(one, back)
    train(there, other, batches(2))
    assert all(torch.isfinite(p).all() for p in there.parameters())


def test_stacks_of_which_some_have_no_curvature_are_not_joined():
    model = alike()
    cut = KFAC(model, policy=Policy(20, 20, stagger=True))
    train(model, cut, batches(2))
    cut.stacks[0].mean = None
    with pytest.raises(ValueError, match="some of them have no curvature yet: load it with the policy it was saved with"):
        KFAC(model).load_state_dict(cut.state_dict())


def test_machines_emulated_by_different_laws_are_not_joined():
    model = alike()
    cut = KFAC(model, solver=ThermodynamicSolve(IDEAL), policy=Policy(20, 20, stagger=True, trust=KLClip()))
    train(model, cut, batches(3))
    with pytest.raises(ValueError, match="solver states differ in kind, as where machines are emulated by different laws"):
        KFAC(model, solver=ThermodynamicSolve(IDEAL)).load_state_dict(cut.state_dict())


@pytest.mark.parametrize(
    "saved", [{}, {"max_dim": 2, "rank": None}, {"max_dim": 2, "rank": 1}], ids=["whole", "blocks", "rank 1"]
)
@pytest.mark.parametrize(
    "here", [{}, {"max_dim": 2, "rank": None}, {"max_dim": 2, "rank": 1}], ids=["whole", "blocks", "rank 1"]
)
def test_factors_that_are_held_otherwise_are_refused(saved: dict[str, Any], here: dict[str, Any]) -> None:
    model = network()
    one, other = (KFAC(model, policy=Policy(**limits)) for limits in (saved, here))
    train(model, one, batches(2))
    if saved == here:
        other.load_state_dict(one.state_dict())
        return
    with pytest.raises(ValueError, match=r"build it with the Policy\(max_dim=…, rank=…\) it was saved with"):
        other.load_state_dict(one.state_dict())
    assert all(stack.mean is None for stack in other.stacks)


def test_another_solver_is_refused_and_the_message_names_both():
    saved = trained().state_dict()
    message = r"saved with the solver Factorwise\(Cholesky\(\)\), this optimizer has Eigen\(\): build it with the solver"
    with pytest.raises(ValueError, match=message):
        KFAC(network(), solver=Eigen()).load_state_dict(saved)
    machine = r"Factorwise\(Guarded\(ThermodynamicSolve\(\), Cholesky\(\)\)\)"
    with pytest.raises(ValueError, match=rf"this optimizer has {machine}"):
        KFAC(network(), solver=ThermodynamicSolve(IDEAL)).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"this optimizer has Factorwise\(Guarded\(Cholesky\(\), Cholesky\(\)\)\)"):
        KFAC(network(), solver=Guarded(Cholesky())).load_state_dict(saved)


def test_the_same_solver_on_another_machine_is_welcome():
    """What a state looks like does not depend on how good the machine is."""
    saved = trained(solver=ThermodynamicSolve(IDEAL)).state_dict()
    model = network()
    optimizer = KFAC(model, solver=ThermodynamicSolve(EIGHT))
    optimizer.load_state_dict(saved)
    train(model, optimizer, batches(2))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_options_are_those_of_the_checkpoint():
    saved = trained(lr=0.3, damping=0.5, momentum=0.1, weight_decay=0.2).state_dict()
    optimizer = KFAC(network())
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert [group[k] for k in ("lr", "damping", "momentum", "weight_decay")] == [0.3, 0.5, 0.1, 0.2]


def natural(state):
    """The curvature in a state_dict."""
    return state["param_groups"][0]["natural"]


def test_training_after_loading_leaves_the_checkpoint_alone():
    saved = saved_and_loaded(trained().state_dict())
    before = copy.deepcopy(saved)
    model = network()
    optimizer = KFAC(model)
    optimizer.load_state_dict(saved)
    train(model, optimizer, batches(3))
    for a, b in zip(natural(saved)["stacks"], natural(before)["stacks"], strict=True):
        assert str(a) == str(b)


def test_momentum_of_version_0_1_is_read_which_kept_it_by_stack():
    model, other = network(), network()
    policy = Policy(trust=KLClip())
    optimizer = trained(model, policy=policy)
    saved = saved_and_loaded(optimizer.state_dict())
    states = zip(model.parameters(), saved["state"].values(), strict=True)
    buffers = {p: state.pop("momentum_buffer") for p, state in states if "momentum_buffer" in state}
    for i, tensor in optimizer.layout.packing.gather(buffers).items():
        natural(saved)["stacks"][i]["momentum"] = tensor.contiguous()
    other.load_state_dict(model.state_dict())
    resumed = KFAC(other, policy=policy)
    resumed.load_state_dict(saved)
    for net, each in ((model, optimizer), (other, resumed)):
        train(net, each, batches(6)[4:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_fresh_optimizer_can_be_saved_and_loaded():
    model, other = network(), network()
    optimizer, plain = KFAC(model), KFAC(other)
    optimizer.load_state_dict(saved_and_loaded(KFAC(network()).state_dict()))
    train(model, optimizer, batches(2))
    train(other, plain, batches(2))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_the_state_of_the_generator_travels():
    generator = torch.Generator().manual_seed(3)
    saved = saved_and_loaded(KFAC(network(), generator=generator).state_dict())
    torch.randn(5, generator=generator)
    other = torch.Generator().manual_seed(9)
    KFAC(network(), generator=other).load_state_dict(saved)
    assert torch.equal(other.get_state(), torch.Generator().manual_seed(3).get_state())


# --- triangles ------------------------------------------------------------------------------------------------------------


def size_of(plain: Any) -> int:
    """Numbers in all tensors of a checkpoint."""
    if isinstance(plain, torch.Tensor):
        return plain.numel()
    parts = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else []
    return sum(size_of(part) for part in parts)


def test_factors_and_inverses_are_saved_as_triangles():
    """n(n + 1)/2 numbers for each factor and each inverse, and what the stacks count."""
    stacks = natural(trained().state_dict())["stacks"]
    for stack, (out, inputs) in zip(stacks, ((5, 5), (3, 6)), strict=True):
        triangles = out * (out + 1) // 2 + inputs * (inputs + 1) // 2
        assert size_of(stack["mean"]) == triangles
        assert size_of(stack["state"]) == triangles + 2  # and two outcomes


def test_inverses_that_no_symmetry_is_known_of_are_saved_in_full():
    stacks = natural(trained(solver=Factorwise(NewtonSchulz())).state_dict())["stacks"]
    assert size_of(stacks[0]["state"]) == 5 * 5 + 5 * 5 + 4  # outcomes and residuals


def test_a_checkpoint_in_full_is_read_as_well():
    """As those before triangles: the same trees with whole matrices."""
    model, other = network(), network()
    optimizer, resumed = trained(model), KFAC(other)
    saved = saved_and_loaded(optimizer.state_dict())
    for plain, stack in zip(natural(saved)["stacks"], optimizer.stacks, strict=True):
        plain["mean"], plain["state"] = to_plain(stack.mean), to_plain(stack.state)
        for side in plain["state"]["fields"].values():
            del side["fields"]["symmetric"]
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(saved)
    for m, o in ((model, optimizer), (other, resumed)):
        train(m, o, batches(12))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_factors_that_rounding_left_unsymmetric_are_the_same_in_both_runs():
    """A solver that reads both triangles (Newton–Schulz) goes on alike with and without the checkpoint in between."""
    model, other = network(), network()
    optimizer = trained(model, solver=NewtonSchulz())
    for stack in optimizer.stacks:
        stack.mean.left.matrix.add_(1e-9 * torch.ones_like(stack.mean.left.matrix).triu(1))
    saved = saved_and_loaded(optimizer.state_dict())
    other.load_state_dict(model.state_dict())
    resumed = KFAC(other, solver=NewtonSchulz())
    resumed.load_state_dict(saved)
    for m, o in ((model, optimizer), (other, resumed)):
        train(m, o, batches(3))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_format_of_a_later_version_is_refused():
    optimizer = trained()
    saved = optimizer.state_dict()
    past = json.loads(natural(saved)["past"])
    assert past["format"] == 2
    natural(saved)["past"] = json.dumps({**past, "format": 3})
    with pytest.raises(ValueError, match="has format 3, this version of heatbath reads formats up to 2: update it"):
        KFAC(network()).load_state_dict(saved)


# --- the contract of torch.optim.Optimizer ----------------------------------------------------------

OPTIMIZERS = {
    "KFAC": lambda model: KFAC(model),
    "NGD": lambda model: NGD(model, fisher=ExactFisher(Categorical()), damping=0.1),
}


def observed(model: nn.Module, optimizer: KFAC | NGD, count: int) -> None:
    for x, y in batches(count):
        optimizer.zero_grad()
        F.cross_entropy(optimizer.observe(model(x.to(model[0].weight.dtype))), y).backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_hooks_of_a_state_dict_see_all_of_it(make):
    model = network()
    optimizer = make(model)
    observed(model, optimizer, 3)
    seen = []
    optimizer.register_state_dict_post_hook(lambda o, s: seen.append(o.KEY in s["param_groups"][0]), prepend=True)
    state = saved_and_loaded(optimizer.state_dict())
    loaded = make(network())
    loaded.register_load_state_dict_pre_hook(lambda o, s: seen.append(o.KEY in s["param_groups"][0]))
    loaded.register_load_state_dict_post_hook(lambda o: seen.append(o.steps), prepend=True)
    loaded.load_state_dict(state)
    assert seen == [True, True, 3]
    assert optimizer.KEY in state["param_groups"][0]  # as it was given


def test_a_hook_may_change_the_curvature_that_is_loaded():
    model = network()
    optimizer = KFAC(model)
    observed(model, optimizer, 2)

    def raise_boost(_, state):
        for stack in state["param_groups"][0]["natural"]["stacks"]:
            stack["boost"] = 4 * stack["boost"]

    loaded = KFAC(network())
    loaded.register_load_state_dict_pre_hook(raise_boost)
    loaded.load_state_dict(optimizer.state_dict())
    assert all((stack.boost == 4).all() for stack in loaded.stacks)


@pytest.mark.parametrize("solver", [Cholesky(), Eigen(), NewtonSchulz()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("there,here", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_a_state_of_another_precision_is_cast(solver, there, here):
    model, other = network(dtype=there), network(dtype=here)
    optimizer, loaded = KFAC(model, solver=solver), KFAC(other, solver=solver)
    observed(model, optimizer, 5)
    other.load_state_dict(model.state_dict())
    loaded.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert all(stack.mean.left.matrix.dtype == here for stack in loaded.stacks)
    observed(model, optimizer, 6)
    observed(other, loaded, 6)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q.double(), rtol=1e-3, atol=1e-4)
    assert loaded.report()["skipped_steps"] == 0
