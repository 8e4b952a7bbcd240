"""How a tensor lies in memory is no business of a rule: rows of a view are those of its copy, bit by bit.

Linear layers and convolutions only move numbers into rows; normalization layers compute with them.
"""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from heatbath.layers import Call
from tests.layers.truth import dense, noise, rule_of

FAMILIES = {
    "linear": (lambda: nn.Linear(4, 6), (3, 2, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (2, 3), padding="same", dilation=2), (2, 4, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 4, 2, groups=4, padding_mode="circular", padding=1), (2, 4, 2, 3, 3)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), (2, 4, 3, 2)),
}


@st.composite
def layouts(draw, dims: int = 5):
    """An order of the dimensions in memory, a step and an offset of each, and which of them are broadcast."""
    order = draw(st.permutations(range(dims)))
    steps = draw(st.tuples(*[st.integers(1, 2)] * dims))
    return order, steps, draw(st.sampled_from([None, *range(dims)]))


def laid_out(x: Tensor, layout: tuple[list[int], tuple[int, ...], int | None]) -> Tensor:
    """A tensor of the same shape that lies as `layout` says; values are x's but along a broadcast dimension."""
    order, steps, broadcast = layout
    order = [d for d in order if d < x.ndim]
    room = x.new_empty([x.shape[d] * steps[d] for d in order])
    view = room.permute([order.index(d) for d in range(x.ndim)])[tuple(slice(None, None, s) for s in steps[: x.ndim])]
    view.copy_(x)
    return view if broadcast is None or broadcast >= x.ndim else view.narrow(broadcast, 0, 1).expand_as(x)


@given(st.sampled_from(sorted(FAMILIES)), layouts(), layouts(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_rows_of_a_view_are_those_of_its_copy(family, of_input, of_grad, dtype):
    make, shape = FAMILIES[family]
    layer = make().to(dtype)
    x = laid_out(noise(*shape).to(dtype), of_input)
    grad = laid_out(torch.ones_like(layer(x)).detach().add(noise(*layer(x).shape).to(dtype)), of_grad)
    rule = rule_of(layer)
    viewed = rule.rows(layer, Call((x,)), grad)
    copied = rule.rows(layer, Call((x.clone(memory_format=torch.contiguous_format),)), grad.contiguous())
    for a, b in zip(viewed, copied, strict=True):
        assert a.outputs.dtype == dense(a).dtype == dtype
        assert torch.equal(dense(a), dense(b))
        assert torch.equal(a.outputs, b.outputs)
