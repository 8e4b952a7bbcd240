"""Models that are cast or moved after their optimizer was built."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from heatbath.optim import KFAC
from tests.laws import batches, network, train
from tests.zoo import PLAIN


def test_a_model_cast_to_bfloat16_after_the_optimizer_was_built_is_still_seen():
    """The cast gives every parameter another end in the autograd graph; factors stay float32."""
    model = network(dtype=torch.float32)
    optimizer = KFAC(model, policy=PLAIN)
    model.bfloat16()
    train(model, optimizer, batches(2, dtype=torch.bfloat16))
    assert [stack.ages for stack in optimizer.stacks] == [[2], [2]]
    assert {stack.mean.left.matrix.dtype for stack in optimizer.stacks} == {torch.float32}


def test_a_model_made_double_afterwards_is_refused_until_the_layout_is_renewed():
    model = network(dtype=torch.float32)
    optimizer = KFAC(model, policy=PLAIN)
    model.double()
    ((x, y),) = batches(1)
    with pytest.raises(ValueError, match=r"0 became torch\.float64 on cpu after the optimizer was built"):
        model(x)
    optimizer.refresh_layout()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert {stack.mean.left.matrix.dtype for stack in optimizer.stacks} == {torch.float64}
