from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from heatbath.layers import Call, RecurrentCellRule, RecurrentRule
from tests.layers.truth import (
    along,
    assert_call_gives_example_gradients,
    assert_close,
    assert_pack_inverts,
    assert_rows_are_example_gradients,
    noise,
    outer_sums,
    rule_of,
)

STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 2, 3
KINDS = {
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
}
SHAPES = {
    "one layer": {},
    "no bias": {"bias": False},
    "stacked": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "stacked both ways, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
CELLS = {"tanh": nn.RNNCell, "relu": nn.RNNCell, "gru": nn.GRUCell}  # one output each; the LSTM's has tests of its own


def recurrent(kind, **options):
    make, more = KINDS[kind]
    layer = make(INPUTS, HIDDEN, dtype=torch.float64, **more, **options)
    for index, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(0.8 * noise(*parameter.shape, seed=index))
    return layer


def cell(kind, **options):
    more = KINDS[kind][1]
    layer = {**CELLS, "lstm": nn.LSTMCell}[kind](INPUTS, HIDDEN, dtype=torch.float64, **more, **options)
    for index, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(0.8 * noise(*parameter.shape, seed=index))
    return layer


def start(layer, *, batch=BATCH):
    """An initial state that is not zero."""
    shape = (layer.num_layers * (1 + layer.bidirectional), batch, HIDDEN)
    return (noise(*shape, seed=30), noise(*shape, seed=31)) if isinstance(layer, nn.LSTM) else noise(*shape, seed=30)


def everything(output):
    """The sequence and all last states."""
    sequence, last = output
    sequence = sequence.data if isinstance(sequence, PackedSequence) else sequence
    return (sequence, *(last if isinstance(last, tuple) else (last,)))


def sequences(layer):
    x = noise(STEPS, BATCH, INPUTS, seed=20)
    return x.transpose(0, 1) if layer.batch_first else x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_sum_to_the_gradient_of_each_example(kind, shape):
    """Law 18, with gradients at the sequence and at the last states."""
    layer = recurrent(kind, **SHAPES[shape])

    def owners(y):
        return along(0 if layer.batch_first and y.shape[1] == STEPS else 1, y)

    call = Call((sequences(layer), start(layer)))
    rows = assert_call_gives_example_gradients(layer, call, everything, owners)
    assert all(row.inputs.shape[:3] == (1, BATCH, STEPS) for row in rows)
    assert all(row.empty == () for row in rows)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_give_the_gradient_of_each_example(kind, enforce_sorted):
    """Lengths 4, 3 and 1 in and out of order, both directions, two layers."""
    layer = recurrent(kind, num_layers=2, bidirectional=True)
    lengths = torch.tensor([4, 3, 1] if enforce_sorted else [3, 1, 4])
    packed = pack_padded_sequence(noise(STEPS, BATCH, INPUTS), lengths, enforce_sorted=enforce_sorted)
    order = torch.arange(BATCH).expand(STEPS, -1)
    owner = pack_padded_sequence(order, lengths, enforce_sorted=enforce_sorted).data[:, None]

    def owners(y):
        return owner if y.ndim == 2 else along(1, y)

    rows = assert_call_gives_example_gradients(layer, Call((packed, start(layer))), everything, owners)
    for row in rows:
        assert row.empty == (BATCH * STEPS - 8,)
        filled = torch.arange(STEPS) >= lengths[:, None]
        assert not row.inputs[0][filled].any()
        assert not row.outputs[0][filled].any()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_lengths_packed_give_the_rows_of_the_padded_batch(kind):
    layer = recurrent(kind)
    x = noise(STEPS, BATCH, INPUTS)
    packed = pack_padded_sequence(x, torch.tensor([STEPS] * BATCH))
    g = noise(STEPS, BATCH, HIDDEN, seed=1)
    of_packed = RecurrentRule().rows(layer, Call((packed,)), (g.reshape(-1, HIDDEN), None))
    of_padded = RecurrentRule().rows(layer, Call((x,)), (g, None))
    for a, b in zip(of_packed, of_padded, strict=True):
        assert_close(a.inputs, b.inputs)
        assert_close(a.outputs, b.outputs)
        assert a.empty == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_on_the_last_state_alone_is_seen(kind):
    """What a classifier on h_n does: no gradient reaches the sequence."""
    layer, x = recurrent(kind), noise(STEPS, BATCH, INPUTS)
    outputs = everything(layer(x))
    g = noise(*outputs[1].shape, seed=1)
    truth = torch.autograd.grad(outputs[1], list(layer.parameters()), g)
    names = [name for name, _ in layer.named_parameters()]
    packed = rule_of(layer).pack(layer, dict(zip(names, truth, strict=True)))
    rows = RecurrentRule().rows(layer, Call((x,)), (None, g, None))
    for row, expected in zip(rows, packed, strict=True):
        assert_close(outer_sums(row).sum(1), expected)


def test_a_loss_on_no_output_gives_gradients_of_zero():
    layer = recurrent("lstm")
    rows = RecurrentRule().rows(layer, Call((sequences(layer),)), (None, None, None))
    assert not any(row.outputs.any() for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unbatched_sequence_is_one_example(kind):
    layer = recurrent(kind, bidirectional=True, batch_first=True)
    begin = start(layer, batch=1)
    begin = tuple(s[:, 0] for s in begin) if isinstance(begin, tuple) else begin[:, 0]
    call = Call((noise(STEPS, INPUTS), begin))
    rows = assert_call_gives_example_gradients(layer, call, everything, lambda y: torch.zeros(1, 1))
    assert rows[0].inputs.shape == (1, 1, STEPS, INPUTS + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_input_weights_are_those_of_a_linear_layer_over_time(kind):
    """Law 18: the inputs are [x_t; 1] in order of time, and those of the states start with the initial state."""
    layer, x = recurrent(kind), noise(STEPS, BATCH, INPUTS)
    h = start(layer)
    at_inputs, at_states = RecurrentRule().rows(layer, Call((x, h)), (noise(STEPS, BATCH, HIDDEN), None))
    assert torch.equal(at_inputs.inputs[0, ..., :-1], x.transpose(0, 1))
    assert torch.equal(at_inputs.inputs[..., -1], torch.ones(1, BATCH, STEPS, dtype=torch.float64))
    assert torch.equal(at_states.inputs[0, :, 0, :-1], (h[0] if isinstance(h, tuple) else h)[0])
    assert_close(at_states.inputs[0, :, 1:, :-1], layer(x, h)[0].transpose(0, 1)[:, :-1].detach())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_unpack_inverts_pack(kind, shape):
    layer = recurrent(kind, **SHAPES[shape]).float()
    assert_pack_inverts(layer)
    treated = [name for block in rule_of(layer).blocks(layer) for name in block.parameters]
    assert sorted(treated) == sorted(name for name, _ in layer.named_parameters())


def test_frozen_parameters_leave_their_blocks():
    layer = recurrent("lstm", num_layers=2)
    for name in ("weight_ih_l0", "bias_hh_l0", "weight_hh_l1", "bias_hh_l1"):
        layer.get_parameter(name).requires_grad_(False)
    blocks = rule_of(layer).blocks(layer)
    assert [b.parameters for b in blocks] == [("bias_ih_l0",), ("weight_hh_l0",), ("weight_ih_l1", "bias_ih_l1")]
    call = Call((sequences(layer),))
    assert_call_gives_example_gradients(layer, call, everything, lambda y: along(1, y))


def test_dropout_between_layers_is_left_out_of_the_second_run():
    x, g = noise(STEPS, BATCH, INPUTS), noise(STEPS, BATCH, HIDDEN, seed=1)
    dropped, plain = recurrent("gru", num_layers=2, dropout=0.5), recurrent("gru", num_layers=2)
    both = [RecurrentRule().rows(layer, Call((x,)), (g, None)) for layer in (dropped, plain)]
    for a, b in zip(*both, strict=True):
        assert torch.equal(a.outputs, b.outputs)
        assert torch.equal(a.inputs, b.inputs)


def test_outputs_are_the_sequence_and_the_states():
    layer, packed = recurrent("lstm"), pack_padded_sequence(noise(STEPS, BATCH, INPUTS), torch.tensor([4, 2, 1]))
    output = layer(packed)
    assert [y.shape for y in RecurrentRule().outputs(layer, output)] == [(7, HIDDEN), (1, BATCH, HIDDEN), (1, BATCH, HIDDEN)]
    assert pad_packed_sequence(output[0])[0].shape == (STEPS, BATCH, HIDDEN)
    layer = recurrent("gru")
    assert len(RecurrentRule().outputs(layer, layer(sequences(layer)))) == 2


@pytest.mark.parametrize("layer", [prune.identity(nn.GRU(2, 3), "weight_hh_l0"), nn.Linear(2, 2)])
def test_what_is_not_exactly_a_recurrent_layer_is_not_supported(layer):
    assert not RecurrentRule().supports(layer)


def test_a_gradient_of_another_call_is_refused():
    layer = recurrent("gru")
    with pytest.raises(ValueError, match=r"at an output of shape \[4, 3, 3\] has shape \[4, 2, 3\]: pair each call"):
        RecurrentRule().rows(layer, Call((sequences(layer),)), (noise(STEPS, 2, HIDDEN), None))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_rows_of_a_cell_sum_to_the_gradient_of_each_example(kind, bias):
    layer = cell(kind, bias=bias)
    (at_inputs, _) = assert_rows_are_example_gradients(layer, noise(BATCH, INPUTS), noise(BATCH, HIDDEN, seed=1))
    assert at_inputs.inputs.shape == (1, BATCH, 1, INPUTS + bias)
    assert_pack_inverts(layer.float())


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_starts_from_zeros_and_takes_one_example(kind):
    (_, at_states) = assert_rows_are_example_gradients(cell(kind), noise(INPUTS), batched=False)
    assert not at_states.inputs[..., :-1].any()


@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_over_a_cell_gives_the_rows_of_the_recurrent_layer(kind):
    """Laws 17 and 18: calls of a cell are uses of one weight; their rows together are the layer's rows over time."""
    layer, step = recurrent(kind), cell(kind)
    step.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    x, g = noise(STEPS, BATCH, INPUTS), noise(STEPS, BATCH, HIDDEN, seed=1)
    state, calls, outputs = None, [], []
    for t in range(STEPS):
        calls.append(Call((x[t], state)))
        state = step(x[t], state)
        outputs.append(state)
    whole = RecurrentRule().rows(layer, Call((x,)), (g, None))
    for t, arrived in enumerate(torch.autograd.grad(outputs, outputs, list(g))):  # what a hook on h_t would see
        for a, b in zip(RecurrentCellRule().rows(step, calls[t], arrived), whole, strict=True):
            assert_close(a.inputs[:, :, 0].detach(), b.inputs[:, :, t])
            assert_close(a.outputs[:, :, 0], b.outputs[:, :, t])


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_a_projected_lstm_sum_to_the_gradient_of_each_example(shape):
    layer = recurrent("lstm", proj_size=2, **SHAPES[shape])
    places = layer.num_layers * (1 + layer.bidirectional)
    begin = (noise(places, BATCH, 2, seed=30), noise(places, BATCH, HIDDEN, seed=31))

    def owners(y):
        return along(0 if layer.batch_first and y.shape[1] == STEPS else 1, y)

    for call in (Call((sequences(layer), begin)), Call((sequences(layer),))):
        rows = assert_call_gives_example_gradients(layer, call, everything, owners)
        assert [row.inputs.shape[-1] for row in rows[1:3]] == [2 + layer.bias, HIDDEN]
    assert_pack_inverts(layer.float())


def test_packed_sequences_of_a_projected_lstm_give_the_gradient_of_each_example():
    layer, lengths = recurrent("lstm", proj_size=2, bidirectional=True), torch.tensor([3, 1, 4])
    packed = pack_padded_sequence(noise(STEPS, BATCH, INPUTS), lengths, enforce_sorted=False)
    owner = pack_padded_sequence(torch.arange(BATCH).expand(STEPS, -1), lengths, enforce_sorted=False).data[:, None]
    rows = assert_call_gives_example_gradients(
        layer, Call((packed,)), everything, lambda y: owner if y.ndim == 2 else along(1, y)
    )
    assert not rows[2].inputs[0][torch.arange(STEPS) >= lengths[:, None]].any()


@pytest.mark.parametrize("given", ["state", "zeros", "one example"])
def test_rows_of_an_lstm_cell_sum_to_the_gradient_of_each_example(given):
    """With gradients at h and c that leave each other out, as a fused kernel's arrive."""
    layer = cell("lstm")
    shape = (INPUTS,) if given == "one example" else (BATCH, INPUTS)
    state = (noise(BATCH, HIDDEN, seed=1), noise(BATCH, HIDDEN, seed=2))
    call = Call((noise(*shape), state) if given == "state" else (noise(*shape),))
    owners = (lambda y: torch.zeros(1)) if given == "one example" else (lambda y: along(0, y))
    assert_call_gives_example_gradients(layer, call, lambda output: output, owners)
    assert_pack_inverts(layer.float())


def test_a_gradient_at_c_that_includes_what_flows_through_h_is_counted_once():
    """PyTorch's composed LSTM cell makes h of c: a hook at c sees both paths."""
    layer, x = cell("lstm"), noise(BATCH, INPUTS)
    h, c = layer(x)
    assert h.grad_fn is not c.grad_fn
    loss = (noise(BATCH, HIDDEN, seed=1) * h).sum() + (noise(BATCH, HIDDEN, seed=2) * c.sin()).sum()
    names = [name for name, _ in layer.named_parameters()]
    *arrived, a, b, d, e = torch.autograd.grad(loss, [h, c, *layer.parameters()])
    truth = rule_of(layer).pack(layer, dict(zip(names, (a, b, d, e), strict=True)))
    for row, expected in zip(RecurrentCellRule().rows(layer, Call((x,), chained=True), tuple(arrived)), truth, strict=True):
        assert_close(outer_sums(row).sum(1), expected)
