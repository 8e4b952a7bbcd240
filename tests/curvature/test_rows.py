"""The master law through capture: the rows that arrive make up `.grad`, Σ g aᵀ = ∂L/∂W, for every layer, however called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from heatbath.curvature import Site
from heatbath.layers import Rows
from heatbath.optim import KFAC
from tests.curvature.truth import fill
from tests.laws import example_losses, noise
from tests.layers.truth import outer_sums
from tests.zoo import LAYERS


class Collector:
    """Adds up Σ g aᵀ of each block."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int], Tensor] = {}

    def sink(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        for index, row in enumerate(rows):
            key = (id(site), index)
            self.sums[key] = self.sums.get(key, 0) + outer_sums(row).sum(1)


def check(model: nn.Module, run: Callable[[], Tensor]) -> None:
    optimizer = KFAC(model)
    collector = Collector()
    optimizer.capture.connect(collector.sink)
    run().backward()
    for site in optimizer.sites:
        packed = site.rule.pack(site.module, {name: p.grad for name, p in site.parameters().items()})
        for index, block in enumerate(packed):
            torch.testing.assert_close(collector.sums[id(site), index], block, rtol=1e-8, atol=1e-11)
    assert optimizer.sites


@pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS.keys())
def test_every_layer(row):
    model = fill(row.model())
    check(model, lambda: example_losses(model, row.batch(4)).mean())


class Twice(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        if tied:
            self.second.weight, self.second.bias = self.first.weight, self.first.bias
        else:
            self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "reused"])
def test_weights_used_twice(tied):
    model = fill(Twice(tied))
    check(model, lambda: model(noise(5, 4)).sin().mean())


class Attending(nn.Module):
    """Attention whose weights are dropped at random."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.attend = nn.Dropout(0.3), nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.attend(x, x, x, need_weights=False)[0] + self.attend(x, x.flip(1), x)[0]


def test_a_layer_that_draws_is_run_again_with_the_same_random_numbers():
    model = fill(Attending())
    torch.manual_seed(3)
    check(model, lambda: model(noise(5, 6, 4)).sin().mean())


def test_running_it_again_draws_nothing_from_the_users_stream():
    states = []
    for watched in (True, False):
        model = fill(Attending())
        optimizer = KFAC(model) if watched else None
        torch.manual_seed(3)
        model(noise(5, 6, 4)).sin().mean().backward()
        states.append(torch.get_rng_state())
        del optimizer
    assert torch.equal(*states)


def test_arguments_by_name():
    model = fill(nn.Linear(4, 3))
    check(model, lambda: model(input=noise(5, 4)).sin().mean())
