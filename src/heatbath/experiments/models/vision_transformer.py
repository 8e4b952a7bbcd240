"""A plain vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), in the form of Beyer et al. 2022 (arXiv 2205.01580).

An image is cut into patches, each patch becomes a token of width d, and depth times

    x ← x + attention(norm(x)),        x ← x + mlp(norm(x)).

Tokens know their place by fixed sines and cosines, and the mean over tokens goes to the head: all parameters are those of
linear layers, a convolution and layer norms, so K-FAC leaves none to its fallback.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WAVELENGTHS = 10_000.0  # longest over shortest (Vaswani et al. 2017, arXiv 1706.03762)


class Attention(nn.Module):
    """Self-attention of several heads on tokens `[B, T, width]`.

    Args:
        width: of a token.
        heads: of width / heads each.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)  # queries, keys and values
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[B, T, width]` to tokens."""
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, ·]
        return self.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention and a multilayer perceptron, each normalized before and added after.

    Args:
        width: of a token.
        heads: of the attention.
        hidden: units of the perceptron.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[B, T, width]` to tokens."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class VisionTransformer(nn.Module):
    """Square colour images `[B, 3, size, size]` to logits `[B, classes]`; width 384, depth 12, heads 6, hidden 1536 is ViT-S.

    Args:
        size: of the image, a multiple of `patch`.
        patch: pixels a side.
        width: of a token, a multiple of 4 and of `heads`.
        depth: blocks.
        heads: of each attention.
        hidden: units of each perceptron.
        classes: logits.

    Raises:
        ValueError: sizes that do not divide.
    """

    positions: Tensor

    def __init__(self, *, size: int, patch: int, width: int, depth: int, heads: int, hidden: int, classes: int) -> None:
        super().__init__()
        if size % patch or width % 4 or width % heads:
            raise ValueError(
                f"a vision transformer needs a size that is a multiple of its patch, and a width that is one of 4 and of its "
                f"heads, got size {size}, patch {patch}, width {width}, heads {heads}"
            )
        self.embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.register_buffer("positions", sine_positions(size // patch, width), persistent=False)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.embedding(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def sine_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column at width/4 wavelengths, for a square of tokens, `[side², width]`."""
    rates = WAVELENGTHS ** (-torch.arange(width // 4) / max(1, width // 4 - 1))
    angles = torch.arange(side).unsqueeze(1) * rates  # [side, width / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves.unsqueeze(1).expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=-1).flatten(0, 1)


def _initialize(module: nn.Module) -> None:
    """Xavier for linear layers, variance 1/inputs for the embedding, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        assert module.bias is not None
        nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        nn.init.zeros_(module.bias)
