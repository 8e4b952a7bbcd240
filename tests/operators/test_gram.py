"""Gram matrices beside what `test_base.py` asks of every operator."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators import DenseRoot, Gram
from heatbath.operators.gram import Root


def test_a_root_without_two_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"a root is a matrix \[\*stack, m, n\], got shape \(3,\)"):
        DenseRoot(torch.ones(3))


class Chunked(DenseRoot):
    """Rows one at a time."""

    def rows(self):
        yield from self.matrix.split(1, -2)


def test_rows_in_chunks_add_up():
    matrix = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    root: Root = Chunked(matrix)
    gram = Gram(root, torch.tensor(0.5, dtype=torch.float64))
    truth = matrix.T @ matrix + 0.5 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(gram.dense(), truth, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gram.trace(), truth.trace(), rtol=1e-14, atol=1e-14)
