from __future__ import annotations

import pytest
import torch

from heatbath.operators import Dense


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 3, 2)])
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match=r"a Dense operator needs square matrices \[\*stack, n, n\], got shape"):
        Dense(torch.zeros(shape))


def test_a_matrix_is_held_and_not_copied():
    matrix = torch.eye(2)
    assert Dense(matrix).dense() is matrix
