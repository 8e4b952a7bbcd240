"""Traps that PyTorch lays and that concern a step as a whole; the others are beside the code they concern (docs/laws.md)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
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
    assert len(hooks) == 2 + len(optimizer.sites)
    for hook in hooks:
        assert isinstance(hook, partial)
        assert not hasattr(hook.func, "__self__")
        assert not any(isinstance(x, torch.optim.Optimizer) for x in (hook.func, *hook.args))
    train(model, optimizer, batches(12))  # through captures, steps without, refreshes
    assert all_hooks(model) == hooks


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about being alone
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "sharded,scale",  # torch's scaler refuses a mix of sharded and whole gradients
    [(("0",), None), (("0", "2", "3"), None), (("0", "2", "3"), 2.0**8)],
    ids=["one layer", "every layer", "every layer, scaled"],
)
@pytest.mark.filterwarnings("ignore:no layer of this model has a curvature rule")
def test_trap_7_sharded_layers_are_left_to_adamw_and_said(alone, sharded, scale):
    """FSDP2 keeps parameters and gradients as sharded DTensors, while activations in hooks are plain tensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, twin = network(), network()
    for name in sharded:
        fully_shard(model.get_submodule(name), mesh=init_device_mesh("cpu", (1,)))
    with pytest.warns(UserWarning, match=r"parameters of 0.* are sharded \(DTensor\), and curvature needs whole layers: AdamW"):
        optimizer = KFAC(model, lr=0.1, policy=replace(PLAIN, l2=0.01))
    assert [site.name for site in optimizer.sites] == [name for name in ("0", "3") if name not in sharded]
    other = KFAC(twin, lr=0.1, policy=replace(PLAIN, l2=0.01, skip=lambda name, module: name in sharded))
    for network_, step in ((model, optimizer), (twin, other)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for index, (x, y) in enumerate(batches(4)):
            step.zero_grad()
            loss = F.cross_entropy(network_(x), y) * (float("nan") if index == 2 and scale is None else 1.0)
            scaler.scale(loss).backward()
            scaler.step(step)
            scaler.update()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        assert torch.isfinite(q).all()
        torch.testing.assert_close(whole, q, rtol=1e-10, atol=1e-12)


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
