from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heatbath.layers import Call, EmbeddingBagRule, EmbeddingRule, OneHot
from tests.layers.truth import (
    assert_close,
    assert_pack_inverts,
    assert_rows_are_example_gradients,
    dense,
    fresh,
    noise,
    rule_of,
)


def words(*shape, vocabulary=7, seed=0):
    return torch.randint(vocabulary, shape, generator=fresh(seed))


@given(st.lists(st.integers(1, 4), max_size=3), st.sampled_from([None, 2, -1]), st.sampled_from([torch.float32, torch.float64]))
def test_rows_sum_to_the_gradient_of_each_example(shape, padding_idx, dtype):
    layer = nn.Embedding(7, 3, padding_idx=padding_idx, dtype=dtype)
    assert_rows_are_example_gradients(layer, words(*shape), batched=bool(shape))
    assert_pack_inverts(layer)


def test_embedding_is_a_linear_layer_on_one_hot_rows():
    """Law 8: the same output, rows and gradient as a Linear, and a diagonal factor of counts."""
    layer, index = nn.Embedding(7, 3, dtype=torch.float64), words(4, 5)
    linear = nn.Linear(7, 3, bias=False, dtype=torch.float64)
    linear.weight.data.copy_(layer.weight.detach().T)
    hot = F.one_hot(index, 7).double()
    assert_close(linear(hot), layer(index))
    g = noise(4, 5, 3, seed=1)
    (ours,) = rule_of(layer).rows(layer, Call((index,)), g)
    (theirs,) = rule_of(linear).rows(linear, Call((hot,)), g)
    assert torch.equal(dense(ours), theirs.inputs)
    assert torch.equal(ours.outputs, theirs.outputs)
    factor = torch.einsum("pbsi,pbsj->ij", theirs.inputs, theirs.inputs)
    assert torch.equal(factor, torch.diag(torch.bincount(index.flatten(), minlength=7).double()))


def test_padding_is_a_row_of_zeros():
    layer = nn.Embedding(5, 2, padding_idx=1)
    (rows,) = EmbeddingRule().rows(layer, Call((torch.tensor([[0, 1, 4]]),)), torch.ones(1, 3, 2))
    assert isinstance(rows.inputs, OneHot)
    assert rows.inputs.indices.tolist() == [[[0, -1, 4]]]
    assert rows.inputs.size == 5
    assert torch.equal(rows.outputs[0, 0], torch.tensor([[1.0, 1], [0, 0], [1, 1]]))


def test_a_bag_is_a_linear_layer_on_the_sum_of_its_one_hot_rows():
    """Law 8 for bags: the output is the packed table times Σ_s w_s e_{i_s}."""
    bag, index, weights = nn.EmbeddingBag(7, 3, mode="sum", dtype=torch.float64), words(4, 5), noise(4, 5)
    (packed,) = rule_of(bag).pack(bag, dict(bag.named_parameters()))
    hot = (F.one_hot(index, 7) * weights[..., None]).sum(1)
    assert_close(hot @ packed[0].T, bag(index, per_sample_weights=weights))


def test_a_sparse_gradient_is_packed_as_a_dense_one():
    layer = nn.Embedding(7, 3, sparse=True)
    layer(words(4)).sum().backward()
    assert layer.weight.grad.is_sparse
    (packed,) = rule_of(layer).pack(layer, {"weight": layer.weight.grad})
    assert torch.equal(packed[0].T, layer.weight.grad.to_dense())


def test_int32_indices_are_accepted():
    layer = nn.Embedding(7, 3, dtype=torch.float64)
    assert_rows_are_example_gradients(layer, words(4, 2).int())


def test_frozen_tables_have_no_rows():
    table, bag = nn.Embedding(3, 2).requires_grad_(False), nn.EmbeddingBag(3, 2).requires_grad_(False)
    assert EmbeddingRule().rows(table, Call((words(2),)), torch.ones(2, 2)) == EmbeddingRule().blocks(table) == ()
    assert EmbeddingBagRule().rows(bag, Call((words(2, 2),)), torch.ones(2, 2)) == EmbeddingBagRule().blocks(bag) == ()


def test_a_gradient_counted_by_frequency_is_not_supported():
    assert not EmbeddingRule().supports(nn.Embedding(3, 2, scale_grad_by_freq=True))
    assert not EmbeddingBagRule().supports(nn.EmbeddingBag(3, 2, scale_grad_by_freq=True))


def test_bags_of_maxima_are_not_supported():
    assert not EmbeddingBagRule().supports(nn.EmbeddingBag(3, 2, mode="max"))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_rows_sum_to_the_gradient_of_each_bag(mode, padding_idx):
    bag = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=padding_idx, dtype=torch.float64)
    assert_rows_are_example_gradients(bag, words(5, 4))
    assert_pack_inverts(bag)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("include_last", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_rows_sum_to_the_gradient_of_each_bag_given_by_offsets(mode, include_last, padding_idx):
    """Bags of lengths 3, 0, 1, 6, the empty one included."""
    options = {"mode": mode, "padding_idx": padding_idx, "include_last_offset": include_last}
    bag = nn.EmbeddingBag(7, 3, dtype=torch.float64, **options)
    offsets = torch.tensor([0, 3, 3, 4, 10] if include_last else [0, 3, 3, 4])
    (rows,) = assert_rows_are_example_gradients(bag, words(10), offsets)
    assert rows.outputs.shape == (1, 4, 6, 3)
    assert rows.empty == (14,)
    assert int((rows.outputs == 0).all(-1).sum()) >= 14


def test_weighted_members_scale_the_gradient():
    bag = nn.EmbeddingBag(7, 3, mode="sum", dtype=torch.float64)
    assert_rows_are_example_gradients(bag, words(5, 4), None, noise(5, 4, seed=2))
    assert_rows_are_example_gradients(bag, words(6), torch.tensor([0, 2]), noise(6, seed=2))


def test_no_members_give_no_rows():
    (rows,) = EmbeddingBagRule().rows(
        nn.EmbeddingBag(7, 3), Call((words(0), torch.zeros(2, dtype=torch.long))), torch.zeros(2, 3)
    )
    assert rows.outputs.shape == (1, 2, 0, 3)


@pytest.mark.parametrize(
    "layer,call", [(nn.Embedding(3, 2), (words(4, 2, vocabulary=3),)), (nn.EmbeddingBag(3, 2), (words(4, 2),))]
)
def test_a_gradient_of_another_call_is_refused(layer, call):
    with pytest.raises(ValueError, match=r"should have shape \[4, .*2\], got \[4, 3\]: pair each call"):
        rule_of(layer).rows(layer, Call(call), torch.ones(4, 3))
