"""The networks and batches of `step.py` (transformers, a perceptron, a CNN, an autoencoder), and those of `gpu.py`.

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
    """Self-attention by one projection in and one out."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.inner(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=self.causal)
        out: Tensor = self.outer(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """A transformer block with norms in front."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
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


class VisionTransformer(nn.Module):
    """Classes of images from a mean over patches."""

    def __init__(self, depth: int, width: int, heads: int, *, size: int = 224, patch: int = 16, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
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


def _text(count: int = 16, length: int = 128, vocabulary: int = 256) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(vocabulary, (count, length + 1), generator=generator)
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
GPU_WORKLOADS: dict[str, Workload] = {
    "gpt": Workload(
        "GPT-2-small shape: 12 blocks, d = 768, 50257 tokens, 16×512 of them",
        lambda: Transformer(12, 768, 12, 512, 50257),
        lambda: _text(16, 512, 50257),
        next_byte,
        1.15,
        largest=50257,
    ),
    "vit": Workload(
        "ViT-S shape: 12 blocks, d = 384, 128 images of 224×224",
        lambda: VisionTransformer(12, 384, 6),
        lambda: _classes(128, 3, 224, 224),
        goal=1.15,
        largest=1537,
    ),
    "mlp": Workload("MLP 6×4096, batch 4096", lambda: mlp((4096,) * 7), lambda: _classes(4096, 4096), largest=4097),
}
TINY_WORKLOADS: dict[str, Workload] = {  # the same in small, to see that scripts run
    "gpt": Workload("tiny GPT", lambda: Transformer(2, 16, 2, 8, 32), lambda: _text(2, 8, 32), next_byte),
    "vit": Workload("tiny ViT", lambda: VisionTransformer(2, 16, 2, size=8, patch=4), lambda: _classes(4, 3, 8, 8)),
    "mlp": Workload("tiny MLP", lambda: mlp((16,) * 7), lambda: _classes(16, 16)),
}
