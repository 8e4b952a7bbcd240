"""How far does a reader of one training step have to travel through the files of heatbath?

    python benchmarks/hops.py

Traces forward, backward, `step` and `zero_grad` of one plain steady step of K-FAC on two linear layers, factors and inverses
at every step, by `sys.setprofile`. A *hop* is a call of a function of heatbath in another file than the call before it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import heatbath as hb

ROOT = str(Path(hb.__file__).parent)


def trace(run: Callable[[], object]) -> tuple[set[str], int]:
    """Files of heatbath that a call enters, and hops between them."""
    files: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:  # Any: the profiler's own
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(ROOT):
            files.append(name)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return set(files), sum(a != b for a, b in pairwise(files))


def measure() -> dict[str, tuple[set[str], int]]:
    """Files and hops of each phase of a steady step, and of all of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = hb.KFAC(model, policy=hb.Policy(factor_every=1, refresh_every=1))
    x, losses = torch.randn(8, 4), []
    phases: dict[str, Callable[[], object]] = {
        "forward": lambda: losses.append(model(x).square().mean()),
        "backward": lambda: losses[-1].backward(),
        "step": optimizer.step,
        "zero_grad": optimizer.zero_grad,
    }
    for run in (*phases.values(), *phases.values()):
        run()
    found = {name: trace(run) for name, run in phases.items()}
    files, hops = zip(*found.values(), strict=True)
    return {**found, "all": (set.union(*files), sum(hops))}


if __name__ == "__main__":
    for phase, (files, hops) in measure().items():
        print(f"{phase:10} {len(files):3} files {hops:4} hops")
