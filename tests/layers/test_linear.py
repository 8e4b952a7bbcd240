from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from heatbath.layers import Call, LinearRule
from tests.layers.truth import assert_close, assert_pack_inverts, assert_rows_are_example_gradients, noise, rule_of

sizes = st.integers(1, 4)


@given(st.lists(sizes, min_size=0, max_size=3), sizes, sizes, st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_rows_sum_to_the_gradient_of_each_example(leading, inputs, outputs, bias, dtype):
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    x = noise(*leading, inputs, dtype=dtype)
    (rows,) = assert_rows_are_example_gradients(layer, x, batched=bool(leading))
    batch, positions = (leading[0], x[0].numel() // inputs) if leading else (1, 1)
    assert rows.inputs.shape == (1, batch, positions, inputs + bias)
    assert rows.outputs.shape == (1, batch, positions, outputs)


@given(sizes, sizes, st.booleans())
def test_unpack_inverts_pack(inputs, outputs, bias):
    assert_pack_inverts(nn.Linear(inputs, outputs, bias=bias))


def test_non_contiguous_input_is_read_in_order():
    x = noise(5, 3, 4).transpose(0, 1)
    assert not x.is_contiguous()
    assert_rows_are_example_gradients(nn.Linear(4, 2, dtype=torch.float64), x)


def test_an_empty_batch_gives_no_rows():
    (rows,) = LinearRule().rows(nn.Linear(3, 2), Call((torch.zeros(0, 5, 3),)), torch.zeros(0, 5, 2))
    assert rows.inputs.shape == (1, 0, 5, 4)
    assert rows.outputs.shape == (1, 0, 5, 2)


def test_input_may_be_given_by_name():
    layer, x, g = nn.Linear(3, 2), torch.ones(4, 3), torch.ones(4, 2)
    by_name = LinearRule().rows(layer, Call((), {"input": x}), g)[0]
    by_place = LinearRule().rows(layer, Call((x,)), g)[0]
    assert torch.equal(by_name.inputs, by_place.inputs)


def test_joint_bias_is_the_homogeneous_coordinate():
    """Law 9: a layer with bias is a layer without one on [x; 1]."""
    layer, x = nn.Linear(3, 2, dtype=torch.float64), noise(6, 3)
    rule = rule_of(layer)
    wide = nn.Linear(4, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        wide.weight.copy_(rule.pack(layer, dict(layer.named_parameters()))[0][0])
    lifted = torch.cat((x, torch.ones(6, 1, dtype=torch.float64)), dim=-1)
    assert_close(wide(lifted), layer(x))
    g = noise(6, 2, seed=1)
    assert torch.equal(rule.rows(layer, Call((x,)), g)[0].inputs, rule.rows(wide, Call((lifted,)), g)[0].inputs)


@pytest.mark.parametrize("frozen,width,names", [("weight", 1, ("bias",)), ("bias", 3, ("weight",))])
def test_a_frozen_parameter_leaves_the_block(frozen, width, names):
    layer = nn.Linear(3, 2, dtype=torch.float64)
    layer.get_parameter(frozen).requires_grad_(False)
    (block,) = rule_of(layer).blocks(layer)
    assert block.parameters == names
    assert block.domain == (2, width)
    assert_rows_are_example_gradients(layer, noise(4, 5, 3))
    assert_pack_inverts(layer)


def test_a_frozen_layer_has_no_blocks():
    layer = nn.Linear(3, 2).requires_grad_(False)
    rule = rule_of(layer)
    assert rule.blocks(layer) == rule.pack(layer, {}) == ()
    assert rule.rows(layer, Call((torch.ones(1, 3),)), torch.ones(1, 2)) == ()
    assert rule.unpack(layer, ()) == {}


def test_a_missing_gradient_counts_as_zeros():
    layer = nn.Linear(3, 2)
    (packed,) = rule_of(layer).pack(layer, {"weight": torch.ones(2, 3)})
    assert torch.equal(packed, torch.tensor([[[1.0, 1, 1, 0], [1, 1, 1, 0]]]))
    assert not packed.requires_grad


def test_rows_carry_no_graph():
    x = torch.ones(2, 3, requires_grad=True) * 1.0
    (rows,) = LinearRule().rows(nn.Linear(3, 2), Call((x,)), torch.ones(2, 2))
    assert not rows.inputs.requires_grad


class _Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class _Named(nn.Linear):
    pass


@pytest.mark.parametrize(
    "layer",
    [
        _Scaled(2, 2),
        nn.LazyLinear(2),
        nn.Linear(2, 2, dtype=torch.complex64),
        parametrizations.weight_norm(nn.Linear(2, 2)),
        prune.random_unstructured(nn.Linear(2, 2), "weight", 0.5),
        nn.MultiheadAttention(4, 2).out_proj,
        nn.ReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_is_not_exactly_linear_is_not_supported(layer):
    assert not LinearRule().supports(layer)


def test_a_subclass_that_computes_the_same_is_supported():
    assert LinearRule().supports(_Named(2, 2))


def test_a_gradient_of_another_call_is_refused():
    with pytest.raises(ValueError, match=r"should have shape \[4, 2\], got \[3, 2\]: pair each call"):
        LinearRule().rows(nn.Linear(3, 2), Call((torch.ones(4, 3),)), torch.ones(3, 2))
