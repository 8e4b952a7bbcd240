"""Products into aligned rows."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators.aligned import ROW, SHORT, product


@pytest.mark.parametrize("lead", [(), (2,), (3, 2)], ids=["one row", "rows", "stack of rows"])
def test_a_product_is_that_of_torch_whatever_the_width_and_without_resizing(lead: tuple[int, ...]) -> None:
    for width in (SHORT - 1, SHORT + ROW - 1 + SHORT % ROW, 2 * SHORT + 1):
        a, b = torch.randn(*lead, 4, dtype=torch.float64), torch.randn(4, width, dtype=torch.float64)
        torch.testing.assert_close(product(a, b), a @ b, rtol=1e-13, atol=1e-13)
