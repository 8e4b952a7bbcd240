"""Nothing in a training step waits for a device: no number, no truth value and no copy is read from a tensor."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from heatbath.curvature import Reduction
from heatbath.optim import KFAC, Policy
from heatbath.solvers import Cholesky, Eigen, Factorwise, Guarded, NewtonSchulz, ThermodynamicInverse
from tests.laws import Scale, batches, noise
from tests.zoo import IDEAL

READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "allclose"}


def slow(value):
    """A parameter for `make test-slow` alone."""
    return pytest.param(value, marks=pytest.mark.slow)


class NoReads(TorchDispatchMode):
    """Raises where an operation would bring a number from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        copies = name in ("_to_copy", "copy_", "set_") and any(
            isinstance(a, torch.device) for a in (*args, *(kwargs or {}).values())
        )
        masks = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READS or copies or masks:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_detector_detects():
    x = torch.ones(3)
    for read in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: float(x[0]), lambda: x.nonzero(), lambda: x[x > 0]):
        with NoReads(), pytest.raises(AssertionError, match="waits for the device"):
            read()


class Everything(nn.Module):
    """A convolution with groups, an embedding, norms, linear layers and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, groups=2, padding=1)
        self.norm = nn.LayerNorm(6)
        self.table = nn.Embedding(5, 6)
        self.first, self.last, self.idle = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 6)
        self.scale = Scale(6)

    def forward(self, x, tokens):
        h = self.norm(self.conv(x)).mean(1) + self.table(tokens)
        return self.last(self.scale(self.first(h).tanh()))


WAYS = {
    "default": (None, {}),
    "double": (Cholesky(double=True), {}),
    "eigen": (Eigen(), {}),
    "sketches": (None, {"max_dim": 2, "rank": 1}),
}


@pytest.mark.parametrize("solver,options", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("reduction", Reduction, ids=lambda r: r.name)
def test_no_step_waits_for_the_device(solver, options, reduction):
    """Steps with and without factors and refreshes, ordinary, clipped and skipped ones."""
    model = Everything()
    policy = Policy(factor_every=2, refresh_every=3, patience=0, reduction=reduction, **options)
    optimizer = KFAC(model, solver=solver, weight_decay=0.1, policy=policy)
    kinds = set()
    for index, (_, y) in enumerate(batches(8)):
        optimizer.zero_grad()
        x, tokens = noise(8, 4, 6, seed=index, dtype=torch.float32), torch.arange(8) % 5
        with NoReads():  # capture does not wait either
            loss = F.cross_entropy(model(x, tokens), y) * (float("nan") if index == 4 else 1.0)
            loss.backward()
        captured, refreshes = any(c.rows for s in optimizer.stacks for c in s.sums.counts), optimizer._tally.refreshes
        with NoReads():
            optimizer.step()
        kinds.add((captured, optimizer._tally.refreshes > refreshes))
    assert kinds == {(True, True), (True, False), (False, False)}
    assert optimizer.report()["skipped_steps"] == 1


@pytest.mark.parametrize("solver", [None, Factorwise(NewtonSchulz(2, warm_steps=2)), slow(Eigen())], ids=["c", "n", "e"])
def test_steps_need_no_data_at_all(solver):
    """On tensors that have shapes and no numbers, where whatever reads one raises: refreshes included."""
    model = Everything()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, p in module._parameters.items():
                module._parameters[name] = None if p is None else nn.Parameter(torch.empty(p.shape, device="meta"))
        policy = Policy(factor_every=2, refresh_every=3, patience=0)
        optimizer = KFAC(model, solver=solver, weight_decay=0.1, policy=policy)
        for _ in range(5):
            optimizer.zero_grad()
            x, tokens = torch.empty(8, 4, 6, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
            F.cross_entropy(model(x, tokens), tokens).backward()
            optimizer.step()
    assert optimizer._tally.refreshes == 2


@pytest.mark.parametrize("solver", [Guarded(Cholesky()), NewtonSchulz(), ThermodynamicInverse(IDEAL)], ids=["c", "n", "t"])
def test_a_guarded_inverse_reads_at_refreshes_and_nowhere_else(solver):
    """The exception, documented in `solvers/guarded.py`: one flag per refresh. Applying the inverse reads nothing."""
    model = nn.Linear(4, 3)
    optimizer = KFAC(model, solver=solver, policy=Policy(factor_every=1, refresh_every=2, patience=0))
    for index, (x, y) in enumerate(batches(4, dtype=torch.float32)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with NoReads() if index % 2 else contextlib.nullcontext():
            optimizer.step()
    assert optimizer._tally.refreshes == 2
    F.cross_entropy(model(x), y).backward()
    with NoReads(), pytest.raises(AssertionError, match="waits for the device"):
        optimizer.step()
