"""Every family at once, as capture meets them: hooks on a real backward pass, the parameters' own gradients as the judge."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map

from heatbath.layers import Call, LinearRule, RandomState, default_rules, rule_for
from tests.layers.truth import assert_close, fresh, noise, outer_sums, rule_of

TOKENS = torch.randint(7, (3, 4), generator=fresh())
QUERY, KEY = noise(3, 4, 6), noise(3, 5, 6, seed=1)
PACKED = pack_padded_sequence(noise(4, 3, 2), torch.tensor([2, 4, 1]), enforce_sorted=False)
ZOO = {
    "linear": (lambda: nn.Linear(6, 5), (QUERY,), {}),
    "conv1d": (lambda: nn.Conv1d(4, 2, 3, stride=2, groups=2), (QUERY,), {}),
    "conv2d": (lambda: nn.Conv2d(2, 4, (3, 2), padding=1, dilation=2, padding_mode="circular"), (noise(3, 2, 6, 5),), {}),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, padding="valid", groups=2), (noise(3, 2, 4, 3, 3),), {}),
    "conv_transpose": (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, groups=2), (noise(3, 2, 4, 3),), {}),
    "embedding": (lambda: nn.Embedding(7, 3, padding_idx=0), (TOKENS,), {}),
    "embedding_bag": (lambda: nn.EmbeddingBag(7, 3), (TOKENS.flatten(), torch.tensor([0, 5, 5])), {}),
    "layer_norm": (lambda: nn.LayerNorm(6), (QUERY,), {}),
    "rms_norm": (lambda: nn.RMSNorm(6), (QUERY,), {}),
    "batch_norm": (lambda: nn.BatchNorm1d(4), (QUERY,), {}),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (QUERY,), {}),
    "attention": (lambda: nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True), (QUERY, KEY, KEY), {}),
    "attention_heads": (
        lambda: nn.MultiheadAttention(6, 2, batch_first=True),
        (QUERY, KEY, KEY),
        {"average_attn_weights": False},
    ),
    "attention_fused": (lambda: nn.MultiheadAttention(6, 2, dropout=0.5), (QUERY,) * 3, {"need_weights": False}),
    "rnn": (lambda: nn.RNN(6, 3, bidirectional=True, batch_first=True), (QUERY,), {}),
    "lstm": (lambda: nn.LSTM(6, 3, num_layers=2), (QUERY,), {}),
    "lstm_packed": (lambda: nn.LSTM(2, 3, num_layers=2, bidirectional=True), (PACKED,), {}),
    "gru": (lambda: nn.GRU(6, 3, num_layers=2), (QUERY, noise(2, 4, 3)), {}),
    "gru_cell": (lambda: nn.GRUCell(6, 3), (QUERY[0],), {}),
    "lstm_projected": (lambda: nn.LSTM(6, 3, proj_size=2, bidirectional=True), (QUERY,), {}),
    "lstm_cell": (lambda: nn.LSTMCell(6, 3), (QUERY[0],), {}),
    "rnn_cell": (lambda: nn.RNNCell(6, 3), (QUERY[0],), {}),
}


def _detached(value):
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, value)


@pytest.mark.parametrize("family", ZOO)
def test_rows_of_a_real_backward_sum_to_the_gradient_of_the_parameters(family):
    make, args, kwargs = ZOO[family]
    module = make().double()
    for index, parameter in enumerate(module.parameters()):
        parameter.data.copy_(0.7 * noise(*parameter.shape, seed=index))
    rule, found, states = rule_of(module), [], []

    def before(module, args):
        states.append(RandomState.now(torch.device("cpu")) if rule.draws(module) else None)

    def after(module, args, kwargs, output):
        target = rule.outputs(module, output)
        chained = isinstance(target, tuple) and len({y.grad_fn for y in target}) > 1
        call = Call(_detached(args), _detached(kwargs), None, module.training, states[-1], chained)
        deliver = lambda grad: found.append(torch.no_grad()(rule.rows)(module, call, _detached(grad)))  # noqa: E731
        if isinstance(target, Tensor):
            target.register_hook(deliver)
        else:
            torch.autograd.graph.register_multi_grad_hook(target, deliver)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, with_kwargs=True)
    output = module(*args, **kwargs)
    leaves = [y for y in tree_leaves(output) if isinstance(y, Tensor) and y.requires_grad]
    sum((noise(*y.shape, seed=i) * y.sin()).sum() for i, y in enumerate(leaves)).backward()
    (rows,) = found
    packed = rule.pack(module, {name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    treated = {name for block in rule.blocks(module) for name in block.parameters}
    assert treated == {name for name, _ in module.named_parameters()}
    for row, block, truth in zip(rows, rule.blocks(module), packed, strict=True):
        assert row.outputs.shape[0] == block.places
        assert_close(outer_sums(row).sum(1), truth)


@pytest.mark.parametrize("family", ZOO)
def test_rules_are_plain_values(family):
    """Rules and what they say can be copied, pickled and compared."""
    rule = rule_of(ZOO[family][0]())
    assert copy.deepcopy(rule) == pickle.loads(pickle.dumps(rule)) == rule


def test_the_first_rule_that_supports_a_module_treats_it():
    first, second = LinearRule(), LinearRule()
    assert rule_for(nn.Linear(1, 1), (first, second)) is first


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential(nn.Linear(1, 1)), nn.Bilinear(1, 1, 1)])
def test_a_module_without_a_rule_has_none(module):
    assert rule_for(module, default_rules()) is None


def test_a_class_in_place_of_a_rule_is_refused():
    with pytest.raises(TypeError, match=r"rules must be LayerRule objects, got <class .*LinearRule'>: pass an instance"):
        rule_for(nn.Linear(1, 1), [LinearRule])
