"""Damaged checkpoints, for `fuzz.py`: each is refused by name, or loads what was saved.

Damage: one bit flipped, a stretch of zeros, the end cut off, bytes replaced or inserted.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fuzz_cases import Case

from heatbath.experiments.checkpoint import load_checkpoint, save_checkpoint


def damaged(content: bytes, dice: random.Random) -> tuple[str, bytes]:
    """Damage in words, and the content with it."""
    kind = dice.choice(("flip", "zeros", "cut", "replace", "insert"))
    at, length = dice.randrange(len(content)), dice.choice((1, 16, 512, 4096))
    match kind:
        case "flip":
            bit = dice.randrange(8)
            return f"bit {bit} of byte {at}", content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        case "zeros":
            end = min(at + length, len(content))
            return f"{length} zeros at {at}", content[:at] + bytes(end - at) + content[end:]
        case "cut":
            return f"cut at {at}", content[:at]
        case "replace":
            return f"{length} bytes at {at}", content[:at] + dice.randbytes(length) + content[at + length :]
        case _:
            return f"{length} bytes inserted at {at}", content[:at] + dice.randbytes(length) + content[at:]


def equal(a: Any, b: Any) -> bool:  # trees of tensors and plain values
    """Whether two states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def cases(count: int, seed: int) -> Iterator[Case]:
    """As many damaged files as asked for."""
    dice = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    state = {
        "step": 7,
        "model": {f"{i}.weight": torch.randn(9, 9, generator=generator) for i in range(8)},
        "optimizer": {"state": {0: {"average": torch.randn(64, generator=generator)}}, "lr": 0.1},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pt"
        save_checkpoint(path, state)
        whole, saved = path.read_bytes(), load_checkpoint(path)
        for number in range(count):
            words, content = damaged(whole, dice)

            def run(content: bytes = content) -> bool:
                path.write_bytes(content)
                return equal(load_checkpoint(path), saved)

            yield Case(f"{number}: {words}", run, mention=path.name)
