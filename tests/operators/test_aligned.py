"""Aligned rows hold the same numbers; only their addresses differ."""

from __future__ import annotations

import pytest
import torch

from heatbath.operators import empty_aligned, lies_alike, product
from heatbath.operators.aligned import ROW, SHORT
from tests.laws import noise


@pytest.mark.parametrize("width", [1, 63, 64, 65, 80, 193])
def test_rows_start_at_multiples_and_are_as_wide_as_asked(width):
    tensor = empty_aligned(3, 5, width, dtype=torch.float32, device="cpu")
    assert tensor.shape == (3, 5, width)
    assert tensor.stride(-2) == width if width < 64 else tensor.stride(-2) % ROW == 0
    assert tensor.stride(-2) < width + ROW


@pytest.mark.parametrize("width", [5, 64, 65, 193])
def test_a_product_in_aligned_rows_is_the_sum_over_the_inner_index(width):
    a, b = noise(2, 7, 9), noise(2, 9, width, seed=1)
    truth = (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)
    torch.testing.assert_close(product(a, b), truth, rtol=1e-13, atol=1e-13)


def test_autograd_follows_a_product():
    a, b = noise(1, 3, 70).requires_grad_(), noise(1, 70, 65, seed=1)
    product(a, b).sum().backward()
    torch.testing.assert_close(a.grad, b.sum(-1).unsqueeze(-2).expand_as(a), rtol=1e-13, atol=1e-13)


def test_lying_alike_is_a_matter_of_strides_and_start():
    model = empty_aligned(1, 4, 65, dtype=torch.float32, device="meta")
    same, plain = empty_aligned(1, 4, 65, dtype=torch.float32, device="cpu"), torch.empty(1, 4, 65)
    shifted = empty_aligned(2, 4, 65, dtype=torch.float32, device="cpu")[1:]
    assert lies_alike(same, model)
    assert not lies_alike(plain, model)
    assert not lies_alike(shifted, model)


@pytest.mark.parametrize("lead", [(), (2,), (3, 2)], ids=["one row", "rows", "stack of rows"])
def test_a_product_is_that_of_torch_whatever_the_width_and_without_resizing(lead: tuple[int, ...]) -> None:
    for width in (SHORT - 1, SHORT + ROW - 1 + SHORT % ROW, 2 * SHORT + 1):
        a, b = torch.randn(*lead, 4, dtype=torch.float64), torch.randn(4, width, dtype=torch.float64)
        torch.testing.assert_close(product(a, b), a @ b, rtol=1e-13, atol=1e-13)
