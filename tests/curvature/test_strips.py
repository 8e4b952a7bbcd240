"""Large sums of outer products are filled in strips; what is collected is the whole, symmetric factor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from heatbath.curvature.factors import formats
from heatbath.curvature.factors.formats import strips as strips_of
from heatbath.curvature.factors.formats import takes_halves
from heatbath.curvature.factors.sums import FactorSums, Form
from heatbath.layers import Block, Rows
from heatbath.work import Work, matmul
from tests.curvature.truth import error
from tests.laws import noise

SIZES = [3, 127, 255, 256, 390, 600]


def sums(size: int) -> FactorSums:
    return FactorSums([1], Form(Block(("weight",), 1, (2, size)), torch.float64, torch.device("cpu")))


@pytest.mark.parametrize("size", [*SIZES, 1025, 4097])
def test_strips_cover_every_row_once(size):
    strips = strips_of(size)
    assert [start for start, _ in strips] == [0, *(end for _, end in strips[:-1])]
    assert strips[-1][1] == size
    assert all(end > start for start, end in strips)


@pytest.mark.parametrize("size", SIZES)
def test_a_collected_factor_is_the_mean_outer_product(size):
    rows, total = noise(1, 20, 1, size), sums(size)
    for part in rows.split(10, 1):  # two calls add up
        total.add(0, Rows(part, torch.ones(1, 10, 1, 2, dtype=torch.float64)), pass_number=0)
    factor = total.collect(None)[0].right.dense()
    flat = rows.flatten(0, 2)
    assert error(factor, (flat.unsqueeze(2) * flat.unsqueeze(1)).sum(0)[None] / 20) < 1e-13
    assert error(factor, factor.mT) < 1e-13


def test_strips_take_five_eighths_of_the_operations_and_say_so():
    rows = Rows(noise(1, 4, 1, 1024), torch.ones(1, 4, 1, 2, dtype=torch.float64))
    work = sums(1024).add(0, rows, pass_number=0)
    whole = (Work.of(matmul(1024, 4, 1024)) + Work.of(matmul(2, 4, 2))).flops
    small = Work.of(matmul(2, 4, 2)).flops
    assert (work.flops - small) / (whole - small) == pytest.approx(5 / 8, rel=1e-3)


def test_wide_layers_have_the_factors_of_their_rows():
    """Through a network and its optimizer, where sums lie in aligned rows."""
    from tests.curvature.truth import capture

    model = nn.Linear(300, 70).double()
    x = noise(12, 300)
    block = capture(model, lambda: model(x).square().mean())[""]
    rows = torch.cat((x, torch.ones(12, 1, dtype=torch.float64)), 1)
    assert error(block.right.dense()[0], rows.mT @ rows / 12) < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_dim", [None, 100], ids=["full", "blocks"])
def test_halves_multiplied_as_they_are_give_the_mean_outer_product(dtype, max_dim, monkeypatch):
    """The CUDA path on the CPU: `bmm(out_dtype=float32)`, which has no kernel here, is played by its definition.

    Products of halves are exact in float32, so the factor of 80 rows is off by less than 80 roundings of 6e-8.
    """
    plain_bmm, calls = torch.bmm, []

    def bmm(a, b, *, out_dtype):
        assert a.dtype == b.dtype == dtype
        calls.append(a.shape)
        return plain_bmm(a.to(out_dtype), b.to(out_dtype))

    monkeypatch.setattr(formats, "takes_halves", lambda device, rows, total: rows != total)
    monkeypatch.setattr(torch, "bmm", bmm)
    rows = noise(1, 40, 2, 300, dtype=torch.float32).to(dtype)
    total = FactorSums([1], Form(Block(("weight",), 1, (2, 300)), torch.float32, torch.device("cpu"), max_dim=max_dim))
    for part in rows.split(20, 1):
        total.add(0, Rows(part, torch.ones(1, 20, 2, 2, dtype=dtype)), pass_number=0)
    flat = rows.flatten(0, 2).double()
    truth = flat.mT @ flat / 80
    if max_dim is not None:
        truth = truth * torch.block_diag(*[torch.ones(max_dim, max_dim, dtype=torch.float64)] * 3)
    assert calls
    assert error(total.collect(None)[0].right.dense().double(), truth[None]) < 80 * 6e-8


def test_halves_are_multiplied_as_they_are_on_cuda_only():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for half in (torch.bfloat16, torch.float16):
        assert takes_halves(cuda, half, torch.float32)
        assert not takes_halves(cpu, half, torch.float32)
        assert not takes_halves(cuda, half, torch.float64)
    assert not takes_halves(cuda, torch.float32, torch.float32)


def test_pytorch_has_products_of_halves_with_wide_results():
    """Their signature, by shapes alone; there is no kernel but on CUDA."""
    x = torch.empty(2, 5, 3, dtype=torch.bfloat16, device="meta")
    assert torch.bmm(x.mT, x, out_dtype=torch.float32).dtype == torch.float32
