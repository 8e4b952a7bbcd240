from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from heatbath.layers import AttentionRule, Call, RandomState, default_rules, rule_for
from tests.layers.truth import along, assert_call_gives_example_gradients, assert_pack_inverts, noise, rule_of

BATCH, QUERIES, KEYS, SIZE, HEADS = 3, 4, 5, 6, 2
PARAMETERS = {
    "plain": {},
    "no bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True},
    "own widths": {"kdim": 3, "vdim": 5},
    "own widths, no bias": {"kdim": 3, "vdim": 5, "bias": False},
}
MASKS = {
    "none": {},
    "causal": {"attn_mask": torch.ones(QUERIES, KEYS).triu(1).bool()},
    "float": {"attn_mask": noise(QUERIES, KEYS, seed=5)},
    "per head": {"attn_mask": noise(BATCH * HEADS, QUERIES, KEYS, seed=5)},
    "padding": {"key_padding_mask": torch.tensor([[0, 0, 0, 1, 1], [0] * 5, [0, 0, 0, 0, 1]]).bool()},
}


def attention(**options):
    layer = nn.MultiheadAttention(SIZE, HEADS, dtype=torch.float64, **options)
    for index, parameter in enumerate(layer.parameters()):  # biases start at zero, where their mistakes would not show
        parameter.data.copy_(0.7 * noise(*parameter.shape, seed=index))
    return layer


def inputs(layer, *, batch_first=False, queries=QUERIES, keys=KEYS):
    shapes = [(queries, BATCH, SIZE), (keys, BATCH, layer.kdim), (keys, BATCH, layer.vdim)]
    tensors = [noise(*shape, seed=10 + i) for i, shape in enumerate(shapes)]
    return tuple(x.transpose(0, 1) if batch_first else x for x in tensors)


def only_output(output):
    return output[:1]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", PARAMETERS)
def test_cross_attention_rows_sum_to_the_gradient_of_each_example(kind, mask, batch_first):
    layer = attention(batch_first=batch_first, **PARAMETERS[kind])
    if "bias_k" in dict(layer.named_parameters()) and layer.bias_k is not None:
        layer.bias_k.requires_grad_(False)
    call = Call(inputs(layer, batch_first=batch_first), {**MASKS[mask], "need_weights": False})
    assert_call_gives_example_gradients(layer, call, only_output, lambda y: along(0 if batch_first else 1, y))


@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention_rows_sum_to_the_gradient_of_each_example(need_weights):
    layer = attention(batch_first=True)
    x = inputs(layer, batch_first=True)[0]
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
    call = Call((x, x, x), {"attn_mask": causal, "is_causal": True, "need_weights": need_weights})
    inner, outer = assert_call_gives_example_gradients(layer, call, only_output, lambda y: along(0, y))
    assert inner.inputs.shape == (3, BATCH, QUERIES, SIZE + 1)
    assert outer.outputs.shape == (1, BATCH, QUERIES, SIZE)
    assert inner.empty == ()


@pytest.mark.parametrize("average", [True, False])
def test_a_loss_on_the_attention_weights_is_seen(average):
    layer = attention(batch_first=True)
    call = Call(inputs(layer, batch_first=True), {"average_attn_weights": average})
    assert_call_gives_example_gradients(layer, call, lambda output: output, lambda y: along(0, y))


def test_a_loss_on_the_attention_weights_alone_leaves_the_output_projection_out():
    layer = attention(batch_first=True)
    q, k, v = inputs(layer, batch_first=True)
    weights = layer(q, k, v)[1]
    g = noise(*weights.shape, seed=2)
    inner, outer = AttentionRule().rows(layer, Call((q, k, v)), (None, g))
    truth = torch.autograd.grad(weights, layer.in_proj_weight, g)[0].reshape(3, SIZE, SIZE)
    assert torch.allclose(torch.einsum("pbso,pbsi->poi", inner.outputs, inner.inputs)[..., :-1], truth, atol=1e-12)
    assert not outer.outputs.any()


def test_an_unbatched_call_is_one_example():
    layer = attention(batch_first=True)
    call = Call(tuple(x[0] for x in inputs(layer, batch_first=True)))
    rows = assert_call_gives_example_gradients(layer, call, only_output, lambda y: torch.zeros(1, 1))
    assert rows[0].inputs.shape == (3, 1, KEYS, SIZE + 1)


@pytest.mark.parametrize("queries,keys,empty", [(4, 5, (BATCH, 0, 0)), (5, 3, (0, 2 * BATCH, 2 * BATCH))])
def test_shorter_sequences_are_filled_up_with_zeros(queries, keys, empty):
    layer = attention()
    call = Call(inputs(layer, queries=queries, keys=keys))
    inner, _ = assert_call_gives_example_gradients(layer, call, only_output, lambda y: along(1, y))
    assert inner.empty == empty
    for place, filled in enumerate(empty):
        assert int((inner.inputs[place] == 0).all(-1).sum()) == filled
        assert int((inner.outputs[place] == 0).all(-1).sum()) == filled


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_is_repeated_from_the_random_state_of_the_call(need_weights):
    layer = attention(dropout=0.5, batch_first=True)
    assert AttentionRule().draws(layer)
    call = Call(inputs(layer, batch_first=True), {"need_weights": need_weights}, random=RandomState.now(torch.device("cpu")))
    assert_call_gives_example_gradients(layer, call, only_output, lambda y: along(0, y))
    after = torch.get_rng_state()
    AttentionRule().rows(layer, call, (noise(BATCH, QUERIES, SIZE),))
    assert torch.equal(torch.get_rng_state(), after)


def test_without_a_random_state_the_rows_are_those_without_dropout():
    layer, plain = attention(dropout=0.5), attention()
    g = noise(QUERIES, BATCH, SIZE)
    dropped, kept = (AttentionRule().rows(m, Call(inputs(m)), (g,)) for m in (layer, plain))
    assert all(
        torch.equal(a.outputs, b.outputs) and torch.equal(a.inputs, b.inputs) for a, b in zip(dropped, kept, strict=True)
    )
    assert not AttentionRule().draws(plain)


def test_the_mode_of_the_call_counts_for_dropout():
    layer, state = attention(dropout=0.5), RandomState.now(torch.device("cpu"))
    g = noise(QUERIES, BATCH, SIZE)
    evaluated = AttentionRule().rows(layer, Call(inputs(layer), training=False, random=state), (g,))
    plain = AttentionRule().rows(attention(), Call(inputs(layer)), (g,))
    assert torch.equal(evaluated[0].outputs, plain[0].outputs)


@pytest.mark.parametrize("kind", PARAMETERS)
def test_unpack_inverts_pack(kind):
    assert_pack_inverts(attention(**PARAMETERS[kind]).float())


@pytest.mark.parametrize("frozen", ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"])
def test_a_frozen_parameter_leaves_its_block(frozen):
    layer = attention(batch_first=True)
    layer.get_parameter(frozen).requires_grad_(False)
    treated = [name for block in rule_of(layer).blocks(layer) for name in block.parameters]
    assert sorted(treated) == sorted(n for n, p in layer.named_parameters() if p.requires_grad)
    call = Call(inputs(layer, batch_first=True))
    assert_call_gives_example_gradients(layer, call, only_output, lambda y: along(0, y))


@pytest.mark.parametrize("kind", PARAMETERS)
def test_each_parameter_is_in_at_most_one_block_and_only_bias_kv_is_left_over(kind):
    layer = attention(**PARAMETERS[kind])
    treated = [name for block in rule_of(layer).blocks(layer) for name in block.parameters]
    assert len(treated) == len(set(treated))
    left = {name for name, _ in layer.named_parameters()} - set(treated)
    assert left == ({"bias_k", "bias_v"} if kind == "bias_kv" else set())


def test_the_output_projection_is_not_treated_a_second_time():
    layer = attention()
    assert rule_for(layer.out_proj, default_rules()) is None
    assert rule_of(layer).blocks(layer)[-1].parameters == ("out_proj.weight", "out_proj.bias")


@pytest.mark.parametrize("training", [True, False])
def test_encoder_layers_call_their_children_while_gradients_flow(training, monkeypatch):
    """The fused inference path would hide the children from hooks; it is only taken where nothing needs a gradient."""
    layer = nn.TransformerEncoderLayer(SIZE, HEADS, 8, batch_first=True, dtype=torch.float64).train(training)
    treated = [name for name, module in layer.named_modules() if rule_for(module, default_rules())]
    assert treated == ["self_attn", "linear1", "linear2", "norm1", "norm2"]
    called = []
    for name in treated:  # no hooks here: hooks alone would already switch the fused path off
        child = layer.get_submodule(name)
        monkeypatch.setattr(child, "forward", partial(_note, called, name, child.forward))
    layer(noise(BATCH, QUERIES, SIZE))
    assert sorted(called) == sorted(treated)


def _note(called, name, forward, *args, **kwargs):
    called.append(name)
    return forward(*args, **kwargs)


def test_a_gradient_of_another_call_is_refused():
    layer = attention()
    with pytest.raises(ValueError, match=r"output of MultiheadAttention should have shape \[4, 3, 6\], got \[4, 2, 6\]"):
        AttentionRule().rows(layer, Call(inputs(layer)), (noise(4, 2, 6),))


def test_attention_weights_of_another_call_are_refused():
    layer = attention()
    with pytest.raises(ValueError, match=r"a gradient at an output of shape \[3, 4, 5\] has shape \[3, 5, 4\]: pair each call"):
        AttentionRule().rows(layer, Call(inputs(layer)), (None, noise(3, 5, 4)))


def test_a_parametrized_projection_is_not_supported():
    layer = attention()
    parametrizations.weight_norm(layer.out_proj)
    assert not AttentionRule().supports(layer)
