"""Damaged checkpoints, records and results of tuning, for `fuzz.py`.

Damage: one bit flipped, a stretch of zeros, the end cut off, bytes replaced or inserted. Each file is
refused by name, or what is read is what was written. A record whose end is missing is one of a run
that was killed: what is read is then a beginning of what was written, and does not say "finished".
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fuzz_cases import Case

from heatbath.experiments import choose
from heatbath.experiments.checkpoint import load_checkpoint, save_checkpoint
from heatbath.experiments.records import RecordWriter, read_record
from heatbath.experiments.tuned import RESULT, pick, tuned_choice, write_result
from heatbath.recipes import digits_small

HEADER = {
    "experiment": "digits-small",
    **dict.fromkeys(("summary", "title", "command", "started"), "made for this test"),
    "versions": {"torch": torch.__version__},
    "host": {"cores": 1},
    "parameters": 1000,
    "choice": {"optimizer": "kfac"},
    "dataset": {"name": "digits", "source": "made here", "train": 100, "test": 10},
    "target": {"metric": "accuracy", "value": 0.5, "higher": True},
    "seed": 0,
    "steps": 39,
    "batch_size": 10,
}


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
    """As many damaged files as asked for: half of them checkpoints, the rest records and results of tuning."""
    dice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        readers = [_checkpoint(Path(folder), generator), _record(Path(folder)), _tuned(Path(folder))]
        wholes = [path.read_bytes() for path, _ in readers]
        for number in range(count):
            which = (0, 1, 0, 2)[number % 4]
            path, read = readers[which]
            words, content = damaged(wholes[which], dice)

            def run(path: Path = path, content: bytes = content, read: Callable[[], bool] = read) -> bool:
                path.write_bytes(content)
                return read()

            yield Case(f"{number}: {path.name}, {words}", run, mention=path.name)


def _checkpoint(folder: Path, generator: torch.Generator) -> tuple[Path, Callable[[], bool]]:
    """A file, and whether what is read is what was written."""
    path = folder / "run.pt"
    state = {
        "step": 7,
        "model": {f"{i}.weight": torch.randn(9, 9, generator=generator) for i in range(8)},
        "optimizer": {"state": {0: {"average": torch.randn(64, generator=generator)}}, "lr": 0.1},
    }
    save_checkpoint(path, state)
    saved = load_checkpoint(path)
    return path, lambda: equal(load_checkpoint(path), saved)


def _record(folder: Path) -> tuple[Path, Callable[[], bool]]:
    path = folder / "run.jsonl"
    writer = RecordWriter(path, HEADER)
    for step in range(40):
        writer.write([{"step": step, "loss": 2.0 / (step + 1), "seconds": 0.01 * step, "metrics": {"accuracy": step / 50}}])
    writer.write([{"event": "finished", "step": 39, "message": "after 39 steps"}])
    writer.close()
    written = read_record(path)

    def read() -> bool:
        record = read_record(path)
        same = record.header == written.header and record.rows == written.rows[: len(record.rows)]
        return same and (record.events == written.events or record.ended == "running or killed")

    return path, read


def _tuned(folder: Path) -> tuple[Path, Callable[[], bool]]:
    path, record = folder / RESULT, read_record(folder / "run.jsonl")
    choice = choose(digits_small(), "kfac", lr=0.0123, damping=0.00456)
    write_result(path, [pick([choice], [record], lambda hyper: ())], records=[record], seed=0)
    return path, lambda: tuned_choice(path, HEADER["experiment"], choose(digits_small(), "kfac")) == choice
