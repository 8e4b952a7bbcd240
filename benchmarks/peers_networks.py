"""Small networks with one layer under test, and the data for them, for `peers.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peers_adapters import Batch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASSES = 3


class Net(nn.Module):
    """A layer under test, something nonlinear, and a linear head.

    Args:
        layer: the layer, called `layer`.
        use: how it is called.
        features: what it leaves for the head.
        others: further modules, by name.
    """

    def __init__(self, layer: nn.Module, features: int, use: Callable[[Net, Tensor], Tensor], **others: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        for name, module in others.items():
            self.add_module(name, module)
        self.head = nn.Linear(features, CLASSES)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.use(self, x).flatten(1))
        return outputs


def convolved(self: Net, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(self.layer(x).tanh(), 2)


def conv_net(**options: Any) -> Net:
    return Net(nn.Conv2d(4, 4, 3, bias=False, **options), 16, convolved)


def plain(self: Net, x: Tensor) -> Tensor:
    return self.layer(x).tanh()


def twice(self: Net, x: Tensor) -> Tensor:
    return self.layer(self.layer(x).tanh()).tanh()


def in_place(self: Net, x: Tensor) -> Tensor:
    return F.relu(self.layer(x), inplace=True)


def checkpointed(self: Net, x: Tensor) -> Tensor:
    outputs: Tensor = checkpoint(self.layer, x, use_reentrant=False)
    return outputs.tanh()


def transposed(self: Net, x: Tensor) -> Tensor:
    return self.layer(x.transpose(1, 2)).tanh().mean(1)


def normed(self: Net, x: Tensor) -> Tensor:
    return self.layer(self.first(x)).tanh()


def looked_up(self: Net, x: Tensor) -> Tensor:
    return self.layer(x[:, :3].abs().mul(3).long().clamp_max(4)).mean(1)


def attended(self: Net, x: Tensor) -> Tensor:
    positions = x.view(len(x), 2, 4)
    return self.layer(positions, positions, positions, need_weights=False)[0].mean(1)


def in_halves(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(half) for half in x.chunk(2)])


class Shifted(nn.Module):
    """A network with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.full((8,), 0.1))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head((x + self.offset).tanh())
        return outputs


def mlp() -> Net:
    return Net(nn.Linear(8, 6), 6, plain)


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """The same network each time."""
    torch.manual_seed(seed)
    return make().to(dtype)


def batch(dtype: torch.dtype, *shape: int, seed: int = 0) -> Batch:
    """Eight examples and their classes."""
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(8, *shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(CLASSES, (8,), generator=generator)


def unused() -> Net:
    return Net(nn.Linear(8, 6), 6, plain, idle=nn.Linear(8, 6))


def deeper() -> Net:
    return Net(nn.Linear(8, 6), 6, normed, first=nn.Linear(8, 8))


def freeze(model: nn.Module) -> None:
    for p in model.first.parameters():
        p.requires_grad_(False)
        p.grad = None


def frozen() -> Net:
    net = deeper()
    freeze(net)
    return net


def all_but(name: str) -> Callable[[str], bool]:
    return lambda parameter: not parameter.startswith(name)
