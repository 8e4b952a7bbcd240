"""Block-diagonal operators against their dense matrices."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators import BlockDiagonal, from_plain, join_features, split_features, to_plain
from tests.laws import noise
from tests.zoo import spd


def operator(count: int, size: int, length: int, *stack: int) -> BlockDiagonal:
    blocks = torch.stack([spd(*stack, n=size, seed=k) for k in range(count)], dim=-3)
    padding = count * size - length
    if padding:
        blocks[..., -1, -padding:, :] = 0
        blocks[..., -1, :, -padding:] = 0
    return BlockDiagonal(blocks, length)


SHAPES = [(1, 4, 4), (3, 2, 6), (3, 4, 10), (2, 3, 4)]


@pytest.mark.parametrize("count,size,length", SHAPES)
@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
def test_products_traces_and_shifts_are_those_of_the_dense_matrix(count, size, length, stack):
    op = operator(count, size, length, *stack)
    dense = op.dense()
    assert op.domain == (length,)
    assert op.stack == stack
    assert dense.shape == (*stack, length, length)
    x = noise(*stack, 5, length)
    torch.testing.assert_close(op @ x, x @ dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(op.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-12, atol=0)
    eye = torch.eye(length, dtype=torch.float64)
    torch.testing.assert_close(op.shift(0.5).dense(), dense + 0.5 * eye, rtol=0, atol=1e-14)
    amount = noise(*stack, 1)[..., 0].abs()
    torch.testing.assert_close(op.shift(amount).dense(), dense + amount[..., None, None] * eye, rtol=0, atol=1e-14)


@pytest.mark.parametrize("count,size,length", SHAPES)
def test_splitting_and_joining_vectors_is_the_identity(count, size, length):
    x = noise(2, 5, length)
    pieces = split_features(x, count, size)
    assert pieces.shape == (2, count, 5, size)
    assert torch.equal(join_features(pieces, length), x)
    assert torch.equal(pieces[:, 0], x[..., :size])


def test_filled_blocks_are_definite_and_do_not_touch_the_rest():
    op = operator(3, 4, 10, 2)
    filled = op.filled().matrix
    assert (torch.linalg.eigvalsh(filled) > 0).all()
    whole = torch.stack([torch.block_diag(*member)[:10, :10] for member in filled])
    assert torch.equal(whole, op.dense())
    torch.testing.assert_close(filled[:, -1, -1, -1], op.trace() / 10)
    assert operator(3, 2, 6).filled().matrix.shape == (3, 2, 2)


def test_it_survives_a_checkpoint():
    op = operator(3, 4, 10)
    again = from_plain(to_plain(op))
    assert again.length == 10
    assert torch.equal(again.blocks, op.blocks)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"needs blocks \[\*stack, K, m, m\], got shape \(2, 3, 4\)"):
        BlockDiagonal(torch.ones(2, 3, 4), 6)
    with pytest.raises(ValueError, match="2 blocks of 3 do not make a matrix of size 7"):
        BlockDiagonal(torch.ones(2, 3, 3), 7)
    with pytest.raises(ValueError, match="2 blocks of 3 do not make a matrix of size 3"):
        BlockDiagonal(torch.ones(2, 3, 3), 3)
