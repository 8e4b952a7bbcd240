"""Machine files of ordinary, extreme and impossible values, for `fuzz.py`.

A file is refused by name, or read to a specification that its own TOML gives back; a machine of it then
solves a small system, and what it calls solved is finite and within the stated error.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import torch
from fuzz_cases import Case
from fuzz_solves import holds

import heatbath as hb
from heatbath.machines import MachineSpec, load_machine, machine_toml

EXTREME = ["nan", "inf", "-inf", "0", "-1", "5e-324", "1e-200", "1e200", "1.8e308", "true", '"1 us"', "[]", "9" * 400]
BASE = {"name": '"m"', "tau": "1e-6"}


def value(field: str, kind: type, low: float, high: float, dice: random.Random) -> str:
    """A legal value mostly, else one that is not, as TOML writes it."""
    if dice.random() < 0.06:
        return dice.choice(EXTREME)
    if kind is bool:
        return dice.choice(("true", "false"))
    if kind is str:
        return json.dumps("capacitive" if field == "coupling" else dice.choice(("a", "µ\u2028", "", "x" * 300)))
    if kind is int:
        return str(dice.choice((low, low + 1, 8, 12, min(high, 32))))
    if math.isfinite(high):
        return repr(low + (high - low) * dice.random() ** 4)
    return repr(10 ** dice.uniform(-12, 4))


def text(dice: random.Random) -> str:
    """One machine file."""
    known = [f for f in fields(MachineSpec) if f.name not in ("name", "tau")]
    entries = dict(BASE)
    if dice.random() < 0.1:
        entries["tau"] = dice.choice(EXTREME)
    if dice.random() < 0.02:
        del entries[dice.choice(("name", "tau"))]
    for f in dice.sample(known, dice.choice((0, 1, 3, 3, 6, 12))):
        low, high = f.metadata.get("low", 0.0), f.metadata.get("high", math.inf)
        entries[f.name] = value(f.name, f.metadata["kind"], low, high, dice)
    if dice.random() < 0.02:
        entries["tua"] = "1e-6"
    lines = [f"{name} = {written}" for name, written in entries.items()]
    return "\n".join([*lines[: dice.randrange(len(lines) + 1)], "= ="] if dice.random() < 0.01 else lines)


def used(content: str, seed: int) -> Callable[[], bool]:
    """Reads a file and solves with the machine."""

    def run() -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path, again = Path(folder, "fuzzed.toml"), Path(folder, "again.toml")
            path.write_text(content, encoding="utf-8")
            spec = load_machine(path)
            again.write_text(machine_toml(spec), encoding="utf-8")
            if load_machine(again) != spec:
                return False
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        matrix, rhs = root @ root.mT + torch.eye(4), torch.randn(2, 4, generator=generator, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hb.linalg.InaccuracyWarning)
            result = hb.linalg.solve(matrix, rhs, machine=hb.Machine(spec), generator=generator)
        return holds(result, matrix, torch.linalg.solve(matrix, rhs.mT).mT)

    return run


def cases(count: int, seed: int) -> Iterator[Case]:
    """Machine files."""
    dice = random.Random(seed)
    for k in range(count):
        content = text(dice)
        yield Case(f"file {k}: {' | '.join(content.splitlines())[:300]}", used(content, k))
