"""Weights of any dtype; curvature in float32 at least."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from heatbath.optim import KFAC
from tests.laws import batches, network, saved_and_loaded


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
        assert {stack.mean.left.matrix.dtype, stack.mean.right.matrix.dtype, stack.momentum.dtype} == {wide}
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
        assert b.mean.left.matrix.dtype == b.momentum.dtype == torch.float32
        assert torch.equal(a.mean.left.matrix, b.mean.left.matrix)
        assert torch.equal(a.momentum, b.momentum)
