from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from heatbath.layers import Call, ConvTransposeRule
from tests.layers.truth import assert_close, assert_pack_inverts, assert_rows_are_example_gradients, dense, noise, rule_of

KINDS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def transposed_convolutions(draw):
    """A transposed convolution and the spatial shape of an input that leaves it an output."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    stride, dilation, kernel = draw(each), draw(each), draw(each)
    padding = draw(st.tuples(*[st.integers(0, 2)] * dims))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    space = draw(st.tuples(*[st.integers(1, 4)] * dims))
    lengths = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(space, stride, padding, dilation, kernel, extra, strict=True)
    ]
    assume(all(length > 0 for length in lengths))
    channels = (groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    layer = KINDS[dims](*channels, kernel, stride, padding, extra, groups, draw(st.booleans()), dilation, dtype=dtype)
    return layer, space


@given(transposed_convolutions(), st.integers(1, 3))
def test_rows_sum_to_the_gradient_of_each_example(case, batch):
    layer, space = case
    x = noise(batch, layer.in_channels, *space, dtype=layer.weight.dtype)
    (rows,) = assert_rows_are_example_gradients(layer, x)
    assert rows.outputs.shape[0] == layer.groups


@given(transposed_convolutions())
def test_unpack_inverts_pack(case):
    assert_pack_inverts(case[0])


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_conv_is_a_linear_layer_on_patches(groups):
    """Law 6 for the transposed kind: the packed weight times the rows is the output, positions turned round."""
    layer = nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=groups, dilation=(2, 1), dtype=torch.float64)
    x = noise(2, 4, 3, 4)
    output = layer(x)
    rule = rule_of(layer)
    (rows,) = rule.rows(layer, Call((x,)), torch.ones_like(output))
    (packed,) = rule.pack(layer, dict(layer.named_parameters()))
    product = torch.einsum("poi,pbsi->bpos", packed, dense(rows))
    assert_close(product.reshape(output.shape).flip(2, 3), output)


def test_an_output_size_is_read_from_the_gradient():
    layer, x = nn.ConvTranspose2d(2, 3, 3, stride=3, dtype=torch.float64), noise(2, 2, 3, 3)
    assert_rows_are_example_gradients(layer, x, [11, 10])


def test_an_unbatched_input_is_one_example():
    layer = nn.ConvTranspose1d(2, 3, 2, stride=2, dtype=torch.float64)
    (rows,) = assert_rows_are_example_gradients(layer, noise(2, 4), batched=False)
    assert rows.inputs.shape == (1, 1, 8, 5)


def test_a_frozen_weight_leaves_the_bias():
    layer = nn.ConvTranspose2d(4, 4, 2, groups=2, dtype=torch.float64)
    layer.weight.requires_grad_(False)
    assert rule_of(layer).blocks(layer)[0].domain == (2, 1)
    assert_rows_are_example_gradients(layer, noise(2, 4, 3, 3))
    assert_pack_inverts(layer)


def test_a_gradient_of_another_call_is_refused():
    layer = nn.ConvTranspose1d(2, 3, 3, stride=2)
    with pytest.raises(ValueError, match=r"output of ConvTranspose1d should have shape \[1, 3, 8\], got \[1, 3, 9\]"):
        ConvTransposeRule().rows(layer, Call((torch.ones(1, 2, 3),)), torch.ones(1, 3, 9))
