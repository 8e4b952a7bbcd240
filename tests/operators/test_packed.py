from __future__ import annotations

import pytest
import torch

from heatbath.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Kronecker,
    Packed,
    exchange,
    from_plain,
    from_triangle,
    lower_triangle,
    mirrored,
    pack,
    to_plain,
    unpack,
)
from tests.laws import assert_equal_trees, noise, saved_and_loaded


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10])
def test_a_triangle_holds_each_entry_once_and_gives_the_matrix_back(n):
    matrix = mirrored(noise(2, 3, n, n))
    triangle = lower_triangle(matrix)
    assert triangle.shape == (2, 3, n * (n + 1) // 2)
    rows, columns = torch.tril_indices(n, n)
    assert torch.equal(triangle.sort(-1).values, matrix[..., rows, columns].sort(-1).values)
    assert torch.equal(from_triangle(triangle), matrix)


@pytest.mark.parametrize("n", [2, 5])
def test_what_stands_above_the_diagonal_is_not_looked_at(n):
    matrix = noise(n, n)
    spoilt = torch.where(torch.ones(n, n).triu(1) > 0, torch.nan, matrix)
    want = torch.where(torch.ones(n, n).tril() > 0, matrix, matrix.mT)
    assert torch.equal(from_triangle(lower_triangle(spoilt)), want)
    assert torch.equal(mirrored(matrix), want)


def test_a_number_that_makes_no_triangle_is_refused():
    with pytest.raises(ValueError, match=r"a triangle holds n\(n \+ 1\)/2 numbers, got 5"):
        from_triangle(torch.zeros(2, 5))


def test_trees_are_packed_and_unpacked_bit_by_bit_through_a_file():
    blocks = BlockDiagonal(mirrored(noise(2, 3, 2, 2, seed=1)), 5)
    for right in (Dense(mirrored(noise(2, 4, 4, seed=2))), Diagonal(noise(2, 4, seed=3)), blocks):
        value = Kronecker(Dense(mirrored(noise(2, 3, 3))), right)
        assert_equal_trees(unpack(from_plain(saved_and_loaded(to_plain(pack(value))))), value)
        assert_equal_trees(unpack(value), value)
    assert isinstance(pack(blocks), Packed)
    assert pack(None) is None


def test_exchange_is_asked_outermost_first_and_reaches_tuples_and_dicts():
    tree = {"a": (Kronecker(Diagonal(torch.ones(1, 2)), Diagonal(torch.ones(1, 3))), 5)}
    found = exchange(tree, lambda node: node.left if isinstance(node, Kronecker) else node)
    assert isinstance(found["a"][0], Diagonal)
    assert found["a"][1] == 5
