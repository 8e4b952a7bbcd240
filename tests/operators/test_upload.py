from __future__ import annotations

import pytest
import torch

from heatbath.operators import scalar, upload


class Pinned(torch.Tensor):
    """A tensor that says it is pinned instead of asking a device for such memory."""

    asked = 0

    def pin_memory(self, device=None):
        Pinned.asked += 1
        return self

    def to(self, *args, **options):
        assert options["non_blocking"]
        return self


@pytest.mark.parametrize("kind,pins", [("cuda", 1), ("cpu", 0)])
def test_only_copies_to_a_gpu_start_from_pinned_memory(kind, pins):
    Pinned.asked = 0
    values = torch.ones(3).as_subclass(Pinned)
    assert torch.equal(upload(values, torch.device(kind)).as_subclass(torch.Tensor), torch.ones(3))
    assert Pinned.asked == pins


def test_numbers_take_the_dtype_asked_for():
    assert upload([1, 2], torch.device("cpu"), torch.float64).dtype == torch.float64
    assert upload([True, False], torch.device("cpu")).dtype == torch.bool


def test_a_scalar_is_alike_whether_it_was_a_number_or_a_tensor():
    like = torch.ones(2, dtype=torch.float64)
    for value in (0.25, torch.tensor(0.25)):
        found = scalar(value, like)
        assert found.shape == ()
        assert found.dtype == torch.float64
        assert found == 0.25
