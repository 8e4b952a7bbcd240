"""Fine-tune low-rank adapters of a small character transformer with Adam, TNGD and TNGD-Adam.

A transformer is trained for a while on four fifths of tiny Shakespeare, then frozen. Rank-one adapters on its attention layers
(n = 512 numbers, so 512 cells) are fine-tuned on most of the rest and judged on the end of it. At each step TNGD programs the
machine with a sampled Fisher matrix and reads it after `--taus` time constants, before it has settled.

    python examples/tngd_lora.py --taus 20 --steps 100      # text: $HEATBATH_DATA/tinyshakespeare/input.txt, or --text FILE
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heatbath as hb

CONTEXT, WIDTH, HEADS, LAYERS = 64, 64, 4, 2
MACHINE = hb.Machine(hb.load_machine("tngd-2024"))  # 16 bits, τ = 1 µs
FISHER = hb.SampledFisher(hb.Categorical(class_dim=-1), samples=4)


class Adapted(nn.Module):
    """A frozen linear layer plus b aᵀ, which is zero at first (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        rows, columns = inner.weight.shape
        self.a, self.b = nn.Parameter(torch.randn(columns) / columns**0.5), nn.Parameter(torch.zeros(rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + (x @ self.a).unsqueeze(-1) * self.b


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv: nn.Module = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    """Characters in, logits of the next character out."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, WIDTH), nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.token(x) + self.place))


def sample(text: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows of text, and the same one character on."""
    starts = torch.randint(len(text) - CONTEXT - 1, (batch, 1), generator=generator)
    window = text[starts + torch.arange(CONTEXT + 1)]
    return window[:, :-1], window[:, 1:]


def nats(model: nn.Module, text: Tensor) -> float:
    """Cross-entropy per character over all of a text."""
    windows = text[: (len(text) - 1) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    targets = text[1 : windows.numel() + 1].view(-1, CONTEXT)
    with torch.no_grad():
        return F.cross_entropy(model(windows).flatten(0, 1), targets.flatten()).item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, text: Tensor, steps: int, seed: int = 0) -> None:
    """An ordinary loop; `observe` is the one line that TNGD needs."""
    observe: Callable[[Tensor], Tensor] = getattr(optimizer, "observe", lambda outputs: outputs)
    generator = torch.Generator().manual_seed(1 + seed)
    for _ in range(steps):
        x, y = sample(text, 32, generator)
        optimizer.zero_grad()
        F.cross_entropy(observe(model(x)).flatten(0, 1), y.flatten()).backward()
        optimizer.step()


def adapted(weights: dict[str, Tensor], characters: int, seed: int) -> Transformer:
    """The pretrained transformer, frozen, with fresh adapters."""
    model = Transformer(characters).requires_grad_(False)
    model.load_state_dict(weights)
    torch.manual_seed(seed)
    for block in model.blocks:
        block.qkv = Adapted(block.qkv)
    return model


def methods(taus: float, seed: int) -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    """Optimizers of the adapters; learning rates and damping are the best of the grids in docs/natural_gradient.md."""
    seconds = taus * MACHINE.spec.time_constant

    def tngd(model: nn.Module, lr: float, damping: float, adam: bool) -> torch.optim.Optimizer:
        known = {"machine": MACHINE, "fisher": FISHER, "time": seconds, "generator": torch.Generator().manual_seed(seed)}
        return hb.TNGD(model, lr=lr, damping=damping, policy=hb.TNGDPolicy(adam=adam), **known)

    return {
        "Adam": lambda m: torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr=3e-2),
        "TNGD": lambda m: tngd(m, 0.1, 3e-3, adam=False),
        "TNGD-Adam": lambda m: tngd(m, 3e-2, 1e-2, adam=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(os.environ.get("HEATBATH_DATA", "data"))
    parser.add_argument("--text", type=Path, default=folder / "tinyshakespeare" / "input.txt")
    parser.add_argument("--taus", type=float, default=20.0, help="analog time of a step in units of τ")
    parser.add_argument("--pretrain", type=int, default=600, help="steps of pretraining")
    parser.add_argument("--steps", type=int, default=100, help="steps of fine-tuning")
    parser.add_argument("--seed", type=int, default=0, help="of adapters, batches and noise in fine-tuning")
    options = parser.parse_args()
    raw = options.text.read_text()
    symbols = {symbol: i for i, symbol in enumerate(sorted(set(raw)))}
    text = torch.tensor([symbols[symbol] for symbol in raw])
    old, new, judge = (text[len(text) * a // 100 : len(text) * b // 100] for a, b in ((0, 80), (80, 98), (98, 100)))
    torch.manual_seed(0)
    model = Transformer(len(symbols))
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), old, options.pretrain)
    print(f"pretrained for {options.pretrain} steps: {nats(model, judge):.4f} nats a character on the end of the text")
    for name, make in methods(options.taus, options.seed).items():
        tuned = adapted(model.state_dict(), len(symbols), options.seed)
        optimizer, begin = make(tuned), time.process_time()
        train(tuned, optimizer, new, options.steps, options.seed)
        line = f"{name:10} {options.steps} steps: {nats(tuned, judge):.4f} nats, {time.process_time() - begin:.0f} s of CPU"
        if isinstance(optimizer, hb.TNGD):
            line += f", {1e3 * optimizer.work.analog_seconds:.1f} ms on the machine"
        print(line, flush=True)


if __name__ == "__main__":
    main()
