from __future__ import annotations

import pytest
import torch

from heatbath.operators import Diagonal


def test_a_single_number_is_refused():
    with pytest.raises(ValueError, match=r"a Diagonal operator needs diagonals \[\*stack, n\], got a single number"):
        Diagonal(torch.tensor(1.0))


def test_a_diagonal_is_never_written_out_by_a_product():
    n = 10**6  # n × n would take 4 TB
    operator = Diagonal(torch.full((n,), 2.0)).shift(1.0)
    assert torch.equal(operator @ torch.ones(n), torch.full((n,), 3.0))
