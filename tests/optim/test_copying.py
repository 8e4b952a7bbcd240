"""Copies of model and optimizer, together and apart, by deepcopy and pickle; hooks of optimizers that are gone."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from heatbath.curvature import ExactFisher, Gaussian
from heatbath.machines import Machine, load_machine, with_bits
from heatbath.optim import KFAC, Policy
from heatbath.solvers import Eigen, ThermodynamicSolve
from tests.laws import batches, fresh, network, noise, parameters_of, train

POLICY = Policy(factor_every=2, refresh_every=3, patience=0)
MACHINE = Machine(with_bits(load_machine("tngd-2024"), matrix=8, drive=8, read=8))
OPTIONS = {
    "cholesky": lambda: {"policy": POLICY},
    "eigen, corrected": lambda: {"policy": Policy(2, 3, 0, corrected=True), "solver": Eigen()},
    "machine": lambda: {"policy": POLICY, "solver": ThermodynamicSolve(MACHINE), "generator": fresh(3)},
    "exact Fisher": lambda: {"policy": Policy(2, 3, 0, fisher=ExactFisher(Gaussian()), reduction=None)},
}
COPIES: dict[str, Callable] = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


def learn(model: nn.Module, optimizer: KFAC, data) -> None:
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(optimizer.observe(model(x)), y).backward()
        optimizer.step()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("steps", [0, 3])
def test_a_copied_pair_goes_on_bit_equal_and_apart(options, copied, steps):
    """In mid-interval and fresh; the original does not notice what happens to the copy."""
    model = network()
    optimizer = KFAC(model, lr=0.1, **options())
    data = batches(steps + 6)
    learn(model, optimizer, data[:steps])
    other, twin = copied((model, optimizer))
    before = parameters_of(model)
    learn(other, twin, data[steps:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert optimizer.steps == steps
    learn(model, optimizer, data[steps:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert not any(p is q for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert twin.report() == optimizer.report()


def test_a_pair_with_a_layer_that_was_frozen_meanwhile_is_copied():
    model = network()
    optimizer = KFAC(model, policy=POLICY)
    train(model, optimizer, batches(2))
    model[0].requires_grad_(False)
    other, twin = copy.deepcopy((model, optimizer))
    other[0].requires_grad_(True)
    learn(other, twin, batches(4))
    assert min(age for stack in twin.stacks for age in stack.ages) > max(age for s in optimizer.stacks for age in s.ages)


def test_an_optimizer_copied_alone_has_a_model_of_its_own():
    model = network()
    optimizer = KFAC(model)
    twin = copy.deepcopy(optimizer)
    assert twin.model is not model
    train(twin.model, twin, batches(2))
    assert twin.steps == 2
    assert optimizer.steps == 0


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
def test_a_model_copied_alone_is_watched_by_nobody_and_carries_no_factors(copied):
    """As an average of weights is (`torch.optim.swa_utils`)."""
    model = network()
    optimizer = KFAC(model)
    train(model, optimizer, batches(2))
    twin = copied(model)
    nn.functional.cross_entropy(twin(batches(1)[0][0]), batches(1)[0][1]).backward()
    assert not any(stack.sums.filled for stack in optimizer.stacks)
    assert len(pickle.dumps(model)) < len(pickle.dumps((model, optimizer))) / 2
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert torch.isfinite(average(noise(2, 4))).all()


def test_an_optimizer_that_is_gone_takes_its_hooks_along():
    """Sweeps build many optimizers on one model."""
    model = network()
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    for _ in range(3):
        optimizer = KFAC(model)
        train(model, optimizer, batches(1))
        gone = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert gone() is None
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == before


def test_two_optimizers_on_one_model_see_the_same():
    model = network()
    one, two = KFAC(model, lr=0.0, damping=1.0), KFAC(model, lr=0.0, damping=1.0)
    x, y = batches(1)[0]
    nn.functional.cross_entropy(model(x), y).backward()
    for a, b in zip(one.stacks, two.stacks, strict=True):
        assert torch.equal(a.sums.hold()[0], b.sums.hold()[0])


def test_functional_calls_with_other_parameters_are_not_captured():
    """Meta-learning and ensembles run the module with tensors that are not its own."""
    model = network()
    optimizer = KFAC(model)
    lent = {name: (2 * p).detach().requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, lent, (noise(3, 4),)).sum().backward()
    assert not any(stack.sums.filled for stack in optimizer.stacks)
    gradients = torch.func.vmap(torch.func.grad(lambda p, x: torch.func.functional_call(model, p, (x,)).sum()), (None, 0))
    assert gradients(dict(model.named_parameters()), noise(3, 4))["0.weight"].shape == (3, 5, 4)
    assert not any(stack.sums.filled for stack in optimizer.stacks)


# --- other tools on a watched model ---------------------------------------------------------------------------------------


def watched() -> tuple[nn.Module, KFAC]:
    model = network().float()
    optimizer = KFAC(model, policy=POLICY)
    train(model, optimizer, [(x.float(), y) for x, y in batches(2)])
    return model, optimizer


def quantized(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy], ids=["watched", "copy"])
def test_a_watched_model_is_quantized_as_one_that_is_not(copied):
    model, optimizer = watched()
    x = noise(5, 4).float()
    found = quantized(copied(model))(x)
    optimizer.detach()
    assert torch.equal(found, quantized(copy.deepcopy(model))(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_watched_model_is_traced(requires_grad):
    model, _ = watched()
    x = noise(5, 4).float().requires_grad_(requires_grad)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_is_scripted_between_detaching_and_going_on():
    model, optimizer = watched()
    x, y = noise(5, 4).float(), torch.arange(5) % 3
    optimizer.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(torch.jit.script(copy.deepcopy(model))(x), model(x))
    ages = [age for stack in optimizer.stacks for age in stack.ages]
    optimizer.refresh_layout()
    for _ in range(2):
        train(model, optimizer, [(x, y)])
    assert all(new > old for new, old in zip([a for s in optimizer.stacks for a in s.ages], ages, strict=True))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_left_to_adamw_with_a_word():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    optimizer = KFAC(model, policy=POLICY)
    ragged = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(5, 4)], layout=torch.jagged)
    before = parameters_of(model)
    with pytest.warns(UserWarning, match="0 was called with nested tensors, which have no curvature: AdamW trains it"):
        outputs = model(ragged)
    outputs.values().square().mean().backward()
    with pytest.warns(UserWarning, match=r"its layers were called with nested tensors.*There is no curvature yet"):
        optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_an_optimizer_of_a_compiled_model_is_copied_with_it():
    """Hooks lie on the module that was compiled, not on its wrapper; names are those of the module."""
    model = network()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = KFAC(compiled, lr=0.1, policy=POLICY)
    data = batches(6)
    learn(compiled, optimizer, data[:3])
    other, twin = copy.deepcopy((compiled, optimizer))
    learn(other, twin, data[3:])
    learn(compiled, optimizer, data[3:])
    assert twin.report()["refreshes"] == optimizer.report()["refreshes"] == 2
    assert all(torch.equal(p, q) for p, q in zip(compiled.parameters(), other.parameters(), strict=True))
    assert [site.name for site in twin.sites] == ["0", "3"]
