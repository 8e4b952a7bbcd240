"""Networks that predict the next character: a small GPT and an LSTM.

Both map codes `[B, T]` to logits `[B, T, V]` that see the characters up to their place only. The transformer is GPT-2's in
small (Radford et al. 2019): pre-norm blocks, learned positions, GELU, weights from N(0, 0.02²), those that end a residual
branch smaller by √(2 · depth). Embedding and read-out are not tied. Every parameter lies in a layer with a curvature rule.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_SCALE = 0.02


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each added to its input.

    Args:
        width: features of a position.
        heads: of attention; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.before_perceptron = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.before_attention(x))
        return x + self.narrow(F.gelu(self.wide(self.before_perceptron(x))))

    def _attend(self, x: Tensor) -> Tensor:
        batch, positions, width = x.shape
        parts = self.queries_keys_values(x).reshape(batch, positions, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attended(mixed.transpose(1, 2).reshape(batch, positions, width))


class GPT(nn.Module):
    """A decoder-only transformer.

    Args:
        vocabulary: V, distinct characters.
        length: the longest T.
        width: features of a position.
        heads: of attention.
        depth: blocks.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, vocabulary: int, length: int, *, width: int, heads: int, depth: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width, got {heads} heads for width {width}")
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                ends_branch = name.endswith(("attended.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=INITIAL_SCALE / (math.sqrt(2 * depth) if ends_branch else 1.0))

    def forward(self, codes: Tensor) -> Tensor:
        places = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        x = self.characters(codes) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.logits(self.norm(x))
        return logits


class CharacterLSTM(nn.Module):
    """An LSTM between an embedding and a read-out, with PyTorch's own start; each window begins from a zero state.

    Args:
        vocabulary: V, distinct characters.
        embedded: features of a character.
        width: features of the state.
    """

    def __init__(self, vocabulary: int, *, embedded: int, width: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, embedded)
        self.memory = nn.LSTM(embedded, width, batch_first=True)
        self.logits = nn.Linear(width, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.memory(self.characters(codes))[0])
        return logits


def next_character_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy of logits `[B, T, V]` at the characters that came `[B, T]`, in nats a character."""
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten())


def bits_per_character(logits: Tensor, codes: Tensor) -> Tensor:
    """The same in bits."""
    return next_character_loss(logits, codes) / math.log(2)


def perplexity(logits: Tensor, codes: Tensor) -> Tensor:
    """Its exponential: among how many equally likely characters the model chooses."""
    return next_character_loss(logits, codes).exp()
