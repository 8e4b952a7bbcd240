"""The networks and batches of `step.py`: two depths of a transformer, a perceptron, a convolutional network, an autoencoder.

Data are random numbers, since only time is asked for; targets are fixed, so that every contestant trains the same task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.experiments.models import autoencoder, mlp

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    """A network, a batch and a loss.

    Args:
        title: for tables.
        model: makes the network.
        batch: makes inputs and targets.
        loss: of outputs and targets.
        goal: ratio to AdamW that the project set itself.
        weight: share of the benchmark's time.
        largest: the largest factor.
    """

    title: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    loss: Loss = F.cross_entropy
    goal: float | None = None
    weight: float = 1.0
    largest: int = 1025


class Attention(nn.Module):
    """Causal self-attention by one projection in and one out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.inner(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        out: Tensor = self.outer(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """A transformer block with norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        out: Tensor = x + self.mlp(self.second(x))
        return out


class Transformer(nn.Module):
    """A causal language model over bytes."""

    def __init__(self, depth: int, width: int = 192, heads: int = 6, length: int = 128, vocabulary: int = 256) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))
        return out


def convolutional() -> nn.Module:
    """Two convolutions of 3×3 on 32×32 images, and one linear layer of 4096 → 10."""
    halves = [
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*halves, nn.Flatten(), nn.Linear(4096, 10))


def next_byte(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy at every position."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def reconstruction(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, summed over pixels and averaged over images."""
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(outputs)


def _text(count: int = 16, length: int = 128) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(256, (count, length + 1), generator=generator)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def _classes(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randint(10, shape[:1], generator=generator)


def _images(count: int = 1000) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 784, generator=torch.Generator().manual_seed(0))
    return x, x


WORKLOADS: dict[str, Workload] = {
    "a2": Workload("2 transformer blocks, d = 192, 16×128 tokens", lambda: Transformer(2), _text, next_byte, 1.35, 0.8),
    "a6": Workload("6 transformer blocks, d = 192, 16×128 tokens", lambda: Transformer(6), _text, next_byte, 1.35, 1.8),
    "b": Workload(
        "MLP 784-1024-1024-10, batch 1024", lambda: mlp((784, 1024, 1024, 10)), lambda: _classes(1024, 784), goal=2.0
    ),
    "c": Workload(
        "CNN with a layer 4096→10, batch 64", convolutional, lambda: _classes(64, 3, 32, 32), goal=1.5, weight=0.6, largest=4097
    ),
    "d": Workload("autoencoder 784-1000-500-250-30 and back, batch 1000", autoencoder, _images, reconstruction, 2.0),
}
