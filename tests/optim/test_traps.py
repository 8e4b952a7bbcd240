"""Traps that PyTorch lays and that concern a step as a whole; the others are beside the code they concern (docs/laws.md)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from heatbath.curvature import Categorical, ExactFisher, InputOnly
from heatbath.optim import KFAC, Policy
from heatbath.solvers import Cholesky, Eigen
from tests.laws import batches, network, parameters_of, train
from tests.zoo import LAYERS, PLAIN


def all_hooks(model: nn.Module) -> list[object]:
    found: list[object] = []
    for module in model.modules():
        for table in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks):
            found += table.values()
    return found


def test_trap_1_hooks_are_registered_at_once_and_are_no_methods_of_the_optimizer():
    """The compiler skips hooks that are bound methods of an `Optimizer`, and those registered after the first compiled call."""
    model = network()
    optimizer = KFAC(model)
    hooks = all_hooks(model)
    assert len(hooks) == 2 + 2 * len(optimizer.sites)  # two for the model, two before and after each linear layer
    for hook in hooks:
        assert isinstance(hook, partial)
        assert not hasattr(hook.func, "__self__")
        assert not any(isinstance(x, torch.optim.Optimizer) for x in (hook.func, *hook.args))
    train(model, optimizer, batches(12))  # through captures, steps without, refreshes
    assert all_hooks(model) == hooks


@pytest.mark.parametrize("solver", [Cholesky(), Eigen()], ids=lambda s: type(s).__name__)
def test_trap_8_work_counts_the_factorizations_that_flop_counter_mode_takes_for_nothing(solver):
    """Torch's counter is a judge of the products; of Cholesky, inverse and eigh it counts none, work counts all."""
    model = network()
    optimizer = KFAC(model, solver=solver, policy=PLAIN)
    ((x, y),) = batches(1)
    F.cross_entropy(model(x), y).backward()
    before = optimizer.work.flops
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    spent = {kernel: count for kernel, count in optimizer.work.kernels.items() if kernel.name not in ("elementwise",)}
    products = sum(k.flops * n for k, n in spent.items() if k.name == "matmul") - before
    assert products == counter.get_total_flops() > 0
    sizes = [5, 5, 3, 6]  # [W b] of 4 → 5 and of 5 → 3
    cubes = sum(n**3 for n in sizes)
    factorizations = sum(k.flops * n for k, n in spent.items() if k.name != "matmul")
    assert factorizations == pytest.approx(cubes * (9 if isinstance(solver, Eigen) else 1))  # n³/3 + 2n³/3, or 9n³


class NoEigenvectors(TorchDispatchMode):
    """Raises at an eigendecomposition or a singular value decomposition."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in func.__name__ for word in ("eig", "svd")):
            raise AssertionError(f"{func} on the default path")
        return func(*args, **(kwargs or {}))


POLICIES = {
    "default": Policy(),
    "every step": PLAIN,
    "exact": replace(PLAIN, fisher=ExactFisher(Categorical())),
    "input only": replace(PLAIN, fisher=InputOnly()),
    "blocks": replace(PLAIN, max_dim=2),
    "sketches": replace(PLAIN, max_dim=2, rank=1),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_trap_9_no_step_and_no_refresh_of_the_default_solver_calls_eigh(policy):
    """Batched `eigh` is slow on accelerators. A batch that is not finite, and factors of rank one, need none either."""
    model = network()
    optimizer = KFAC(model, policy=policy)
    with NoEigenvectors():
        for index, (x, y) in enumerate(batches(12, examples=1)):
            optimizer.zero_grad()
            loss = F.cross_entropy(optimizer.observe(model(x)), y)
            (loss * float("nan") if index == 3 else loss).backward()
            optimizer.step()
    assert optimizer.report()["refreshes"] > 0


@pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS.keys())
def test_trap_9_no_layer_needs_eigh(row):
    model = row.model()
    optimizer = KFAC(model)
    before = parameters_of(model)
    with NoEigenvectors():
        model(row.batch(3)).square().mean().backward()
        optimizer.step()
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_trap_9_the_detector_detects():
    model = network()
    optimizer = KFAC(model, solver=Eigen())
    ((x, y),) = batches(1)
    with NoEigenvectors(), pytest.raises(AssertionError, match="eigh"):
        train(model, optimizer, [(x, y)])
    with NoEigenvectors(), pytest.raises(AssertionError, match="svd"):
        torch.linalg.svd(torch.eye(2))
