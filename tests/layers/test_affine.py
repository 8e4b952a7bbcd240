from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.layers.truth import rule_of


def test_pack_refuses_a_tensor_of_another_shape():
    layer = nn.Linear(3, 2)
    with pytest.raises(
        ValueError, match=r"weight of Linear has shape \[2, 3\], got a tensor \[3, 2\]: pack takes tensors shaped like"
    ):
        rule_of(layer).pack(layer, {"weight": torch.ones(3, 2)})


def test_unpack_refuses_a_block_of_another_shape():
    layer = nn.Linear(3, 2)
    with pytest.raises(
        ValueError, match=r"block of \('weight', 'bias'\) in Linear has shape \[P, O, I\] = \[1, 2, 4\], got \[2, 4\]"
    ):
        rule_of(layer).unpack(layer, [torch.ones(2, 4)])


def test_unpack_refuses_a_wrong_number_of_blocks():
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="Linear has 1 blocks, got 0 packed tensors: give one per block"):
        rule_of(layer).unpack(layer, [])


def test_pack_keeps_dtype_and_places_the_bias_last():
    layer = nn.Linear(3, 2, dtype=torch.float64)
    (packed,) = rule_of(layer).pack(layer, dict(layer.named_parameters()))
    assert packed.dtype == torch.float64
    assert torch.equal(packed[0, :, :3], layer.weight)
    assert torch.equal(packed[0, :, 3], layer.bias)
