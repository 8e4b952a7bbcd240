from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from heatbath.layers import Call, ConvRule
from tests.layers.truth import (
    assert_close,
    assert_pack_inverts,
    assert_rows_are_example_gradients,
    dense,
    noise,
    outer_sums,
    rule_of,
)

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ["zeros", "reflect", "replicate", "circular"]


@st.composite
def convolutions(draw):
    """A convolution and the spatial shape of an input that it accepts."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.tuples(*[st.integers(0, 2)] * dims)))
    layer = KINDS[dims](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        draw(each),
        stride=1 if padding == "same" else draw(each),
        padding=padding,
        dilation=draw(each),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(MODES)),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
    )
    space = draw(st.tuples(*[st.integers(3, 7 if dims < 3 else 5)] * dims))
    extra = [0 if isinstance(padding, str) else 2 * p for p in (padding if isinstance(padding, tuple) else (0,) * dims)]
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    assume(padding == "same" or all(s + e >= r for s, e, r in zip(space, extra, reach, strict=True)))
    half = [d * (k - 1) - d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    assume(layer.padding_mode == "zeros" or padding != "same" or all(h < s for h, s in zip(half, space, strict=True)))
    return layer, space


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(convolutions(), st.integers(1, 3))
def test_rows_sum_to_the_gradient_of_each_example(case, batch):
    layer, space = case
    x = noise(batch, layer.in_channels, *space, dtype=layer.weight.dtype)
    (rows,) = assert_rows_are_example_gradients(layer, x)
    assert rows.outputs.shape[0] == layer.groups


@given(convolutions())
def test_unpack_inverts_pack(case):
    assert_pack_inverts(case[0])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding,stride", [((2, 1), (2, 3)), ("same", 1), ("valid", (1, 2))])
def test_conv2d_is_a_linear_layer_on_patches(padding, stride, mode):
    """Law 6: the packed weight times the rows is the convolution, also for 'same' padding of an even kernel."""
    layer = nn.Conv2d(3, 4, (4, 2), stride, padding, dilation=(1, 3), padding_mode=mode, dtype=torch.float64)
    x = noise(2, 3, 9, 8)
    output = layer(x)
    rule = rule_of(layer)
    (rows,) = rule.rows(layer, Call((x,)), torch.ones_like(output))
    (packed,) = rule.pack(layer, dict(layer.named_parameters()))
    product = torch.einsum("poi,pbsi->bspo", packed, dense(rows))
    assert_close(product.flatten(2).transpose(1, 2).unflatten(-1, output.shape[2:]), output)


def test_conv2d_rows_are_those_of_torch_unfold():
    """Law 6 against another im2col."""
    layer, x = nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2, bias=False, dtype=torch.float64), noise(2, 2, 8, 9)
    (rows,) = ConvRule().rows(layer, Call((x,)), torch.zeros_like(layer(x)))
    assert torch.equal(rows.inputs[0], F.unfold(x, 3, dilation=2, padding=1, stride=2).mT)


def test_grouped_conv_is_one_linear_layer_per_group():
    """Law 7: each place has the rows of that group's own convolution, so the factors are per group too."""
    layer, x = nn.Conv2d(6, 4, 3, groups=2, dtype=torch.float64), noise(2, 6, 5, 5)
    g = noise(*layer(x).shape, seed=1)
    rule = rule_of(layer)
    (rows,) = rule.rows(layer, Call((x,)), g)
    (packed,) = rule.pack(layer, dict(layer.named_parameters()))
    for place in range(2):
        single = nn.Conv2d(3, 2, 3, dtype=torch.float64)
        channels, outputs = slice(3 * place, 3 * place + 3), slice(2 * place, 2 * place + 2)
        with torch.no_grad():
            single.weight.copy_(layer.weight[outputs])
            single.bias.copy_(layer.bias[outputs])
        (own,) = rule.rows(single, Call((x[:, channels],)), g[:, outputs])
        assert torch.equal(own.inputs[0], rows.inputs[place])
        assert torch.equal(own.outputs[0], rows.outputs[place])
        assert torch.equal(rule.pack(single, dict(single.named_parameters()))[0][0], packed[place])


def test_an_empty_batch_gives_no_rows():
    layer = nn.Conv2d(2, 3, 3)
    (rows,) = ConvRule().rows(layer, Call((torch.zeros(0, 2, 5, 5),)), torch.zeros(0, 3, 3, 3))
    assert rows.inputs.shape == (1, 0, 9, 19)
    assert rows.outputs.shape == (1, 0, 9, 3)


def test_depthwise_conv_has_one_place_per_channel():
    layer = nn.Conv2d(5, 5, 3, groups=5, dtype=torch.float64)
    (block,) = rule_of(layer).blocks(layer)
    assert (block.places, block.domain) == (5, (1, 10))
    assert_rows_are_example_gradients(layer, noise(2, 5, 4, 4))


def test_channels_last_and_strided_inputs_give_the_same_rows():
    layer, x = nn.Conv2d(4, 4, 3, padding=1, groups=2, dtype=torch.float64), noise(2, 4, 5, 6)
    g = noise(2, 4, 5, 6, seed=1)
    (plain,) = ConvRule().rows(layer, Call((x,)), g)
    strided = torch.stack((x, x), dim=-1)[..., 0]
    assert not strided.is_contiguous()
    for other in (x.to(memory_format=torch.channels_last), strided):
        (rows,) = ConvRule().rows(layer, Call((other,)), g.to(memory_format=torch.channels_last))
        assert torch.equal(rows.inputs, plain.inputs)
        assert torch.equal(rows.outputs, plain.outputs)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_unbatched_input_is_one_example(dims):
    layer = KINDS[dims](2, 3, 2, dtype=torch.float64)
    (rows,) = assert_rows_are_example_gradients(layer, noise(2, *[4] * dims), batched=False)
    assert rows.outputs.shape == (1, 1, 3**dims, 3)


@pytest.mark.parametrize("frozen,width,names", [("weight", 1, ("bias",)), ("bias", 8, ("weight",))])
def test_a_frozen_parameter_leaves_the_block(frozen, width, names):
    layer = nn.Conv2d(4, 4, 2, groups=2, dtype=torch.float64)
    layer.get_parameter(frozen).requires_grad_(False)
    (block,) = rule_of(layer).blocks(layer)
    assert (block.parameters, block.domain) == (names, (2, width))
    assert_rows_are_example_gradients(layer, noise(2, 4, 3, 3))
    assert_pack_inverts(layer)


def test_1x1_conv_is_the_linear_layer_of_its_channels():
    layer, x = nn.Conv2d(3, 2, 1, dtype=torch.float64), noise(2, 3, 2, 2)
    linear = nn.Linear(3, 2, dtype=torch.float64)
    g = noise(2, 2, 2, 2, seed=1)
    (conv,) = rule_of(layer).rows(layer, Call((x,)), g)
    (flat,) = rule_of(linear).rows(linear, Call((x.movedim(1, -1),)), g.movedim(1, -1))
    assert_close(outer_sums(conv), outer_sums(flat))
    assert torch.equal(conv.inputs, flat.inputs)


class _Scaled(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return 2 * super()._conv_forward(input, weight, bias)


@pytest.mark.parametrize("layer", [_Scaled(1, 1, 1), nn.LazyConv2d(1, 1), nn.Linear(1, 1)], ids=lambda m: type(m).__name__)
def test_a_layer_that_is_not_exactly_a_conv_is_not_supported(layer):
    assert not ConvRule().supports(layer)


def test_a_gradient_of_another_call_is_refused():
    layer = nn.Conv2d(2, 3, 3)
    with pytest.raises(ValueError, match=r"output of Conv2d should have shape \[1, 3, 3, 3\], got \[1, 3, 4, 3\]"):
        ConvRule().rows(layer, Call((torch.ones(1, 2, 5, 5),)), torch.ones(1, 3, 4, 3))
