"""Weights of any dtype; curvature in float32 at least."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import Categorical, ExactFisher, Gaussian
from heatbath.operators import random_basis
from heatbath.optim import KFAC
from heatbath.solvers import Eigen
from tests.laws import batches, network, noise, saved_and_loaded
from tests.zoo import PLAIN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_factors_are_at_least_float32_whatever_the_weights_are(dtype):
    model = network(dtype=dtype)
    optimizer = KFAC(model)
    for x, y in batches(3, dtype=dtype):
        optimizer.zero_grad()
        F.cross_entropy(model(x).float(), y).backward()
        optimizer.step()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for stack in optimizer.stacks:
        assert {stack.mean.left.matrix.dtype, stack.mean.right.matrix.dtype} == {wide}
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in model.parameters())


def test_trap_2_loading_keeps_float32_factors_of_bfloat16_weights():
    """torch casts floating state to the parameter's dtype."""
    model = network(dtype=torch.bfloat16)
    optimizer = KFAC(model)
    for x, y in batches(2, dtype=torch.bfloat16):
        optimizer.zero_grad()
        F.cross_entropy(model(x).float(), y).backward()
        optimizer.step()
    other = KFAC(network(dtype=torch.bfloat16))
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for a, b in zip(optimizer.stacks, other.stacks, strict=True):
        assert b.mean.left.matrix.dtype == torch.float32
        assert torch.equal(a.mean.left.matrix, b.mean.left.matrix)


@pytest.mark.parametrize("max_dim", [None, 20], ids=["whole", "sketch"])
def test_factors_are_not_rounded_where_outputs_are_observed_under_autocast(max_dim):
    """Autocast would multiply in bfloat16 whatever runs during the pass; the rows of the first layer are float32."""
    x, model = noise(10, 40, dtype=torch.float32), nn.Linear(40, 3)
    policy = replace(PLAIN, max_dim=max_dim, rank=12, fisher=ExactFisher(Gaussian()))
    optimizer = KFAC(model, policy=policy)
    with torch.autocast("cpu", torch.bfloat16):
        optimizer.observe(model(x)).square().mean().backward()
    optimizer.step()
    rows = torch.cat((x, torch.ones(10, 1)), 1).double()
    truth, side = rows.mT @ rows / 10, optimizer.stacks[0].mean.right
    if max_dim is None:
        torch.testing.assert_close(side.matrix[0].double(), truth, rtol=1e-5, atol=1e-5)
    else:
        omega = random_basis(41, 12, torch.float64, torch.device("cpu"))
        torch.testing.assert_close(side.sketch[0].double(), truth @ omega, rtol=1e-5, atol=1e-5)


def test_eigenvalues_are_corrected_under_autocast():
    model = network(dtype=torch.float32)
    policy = replace(PLAIN, corrected=True, fisher=ExactFisher(Categorical()))
    optimizer = KFAC(model, solver=Eigen(), policy=policy)
    for x, y in batches(3, dtype=torch.float32):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            F.cross_entropy(optimizer.observe(model(x)), y).backward()
        optimizer.step()
    assert all(torch.isfinite(stack.corrected.values).all() for stack in optimizer.stacks)
