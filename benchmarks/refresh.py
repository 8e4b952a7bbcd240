"""Is any step an outlier? Processor seconds of single steps with refreshes all at once, staggered, triggered and warm-started.

    OMP_NUM_THREADS=1 python benchmarks/refresh.py               # about 15 minutes; writes benchmarks/results/refresh.json
    OMP_NUM_THREADS=1 python benchmarks/refresh.py --only d --steps 40

Two workloads in float32: (a) six transformer blocks of width 192 on 16 × 128 tokens, (d) the autoencoder
784-1000-500-250-30 and back on 1,000 images. Both intervals are ten steps. A step is forward, loss, backward and update.
Contestants take turns step by step. Time is that of the process on its processors, so that other programs on the machine
disturb it little; intervals have their full length from the start (`patience=0`), and the first two intervals are not counted.
Columns, over all counted steps:

    median, p99, worst     milliseconds, and the last two over the median
    mean                   over the mean step of "all at once"
    refreshed              matrices inverted for each step
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import heatbath as hb
from heatbath.experiments.environment import host, versions
from heatbath.experiments.models import autoencoder
from heatbath.solvers import Cholesky, Solver

RESULTS = Path(__file__).parent / "results" / "refresh.json"
EVERY = 10


@dataclass(frozen=True)
class Contestant:
    """How refreshes are done."""

    title: str
    solver: Solver[Any]  # Any: any state
    options: dict[str, Any]  # Any: of a policy

    def build(self, model: nn.Module) -> hb.KFAC:
        policy = hb.Policy(factor_every=EVERY, refresh_every=EVERY, patience=0, **self.options)
        return hb.KFAC(
            model, lr=1e-3, damping=1e-2, solver=self.solver, policy=policy, generator=torch.Generator().manual_seed(0)
        )


CONTESTANTS = [
    Contestant("all at once", Cholesky(), {}),
    Contestant("staggered", Cholesky(), {"stagger": True}),
]


class Block(nn.Module):
    """A transformer block of width 192 with norms in front."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (6, -1)).transpose(1, 2) for part in self.inner(self.first(x)).chunk(3, -1))
        x = x + self.outer(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.second(x))
        return out


def transformer() -> nn.Module:
    """Six blocks between an embedding of bytes and logits of bytes."""
    return nn.Sequential(nn.Embedding(256, 192), *(Block() for _ in range(6)), nn.LayerNorm(192), nn.Linear(192, 256))


def text(step: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(256, (16, 129), generator=torch.Generator().manual_seed(step))
    return tokens[:, :-1], tokens[:, 1:].flatten()


def images(step: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(1000, 784, generator=torch.Generator().manual_seed(step))
    return x, x


WORKLOADS: dict[
    str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, Tensor]], Callable[[Tensor, Tensor], Tensor]]
] = {
    "a": (transformer, text, lambda z, y: F.cross_entropy(z.flatten(0, 1), y)),
    "d": (autoencoder, images, lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(z)),
}


def measure(name: str, steps: int) -> list[dict[str, Any]]:  # Any: JSON values
    """Rows of one workload."""
    build, batch, loss_of = WORKLOADS[name]
    runs = []
    for contestant in CONTESTANTS:
        torch.manual_seed(0)
        model = build()
        runs.append((contestant, model, contestant.build(model), []))
    for step in range(2 * EVERY + steps):
        x, y = batch(step)
        for _, model, optimizer, seconds in runs:
            start = time.process_time()
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
            seconds.append(time.process_time() - start)
    plain = statistics.mean(runs[0][3][2 * EVERY :])
    return [row(name, contestant, optimizer, seconds[2 * EVERY :], plain) for contestant, _, optimizer, seconds in runs]


def row(
    name: str, contestant: Contestant, optimizer: hb.KFAC, seconds: list[float], plain: float
) -> dict[str, Any]:  # Any: JSON
    """What the steps of one contestant tell."""
    median, ordered = statistics.median(seconds), sorted(seconds)
    report = optimizer.report()
    inverted = sum(float(v) for k, v in report.items() if k.startswith("prepare."))
    return {
        "workload": name,
        "contestant": contestant.title,
        "steps": len(seconds),
        "median_ms": 1e3 * median,
        "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "worst_ms": 1e3 * ordered[-1],
        "mean_over_all_at_once": statistics.mean(seconds) / plain,
        "refreshed_per_step": inverted / optimizer.steps,
        "not_arrived": sum(float(report.get(f"prepare.{kind}", 0)) for kind in ("inaccurate", "indefinite", "nonfinite")),
        "stacks": len(optimizer.stacks),
        "state_mib": optimizer.coverage().state_bytes / 2**20,
    }


def show(rows: list[dict[str, Any]]) -> None:  # Any: JSON values
    """A table for people."""
    table = Table("workload", "contestant", "median", "p99", "worst", "p99/median", "mean", "refreshed", "not arrived")
    for r in rows:
        figures = [f"{r[key]:.0f}" for key in ("median_ms", "p99_ms", "worst_ms")]
        ratios = [f"{r['p99_ms'] / r['median_ms']:.2f}", f"{r['mean_over_all_at_once']:.2f}"]
        counts = [f"{r['refreshed_per_step']:.2f}", f"{r['not_arrived']:.0f}"]
        table.add_row(r["workload"], r["contestant"], *figures, *ratios, *counts)
    Console(width=128).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(WORKLOADS), help="one workload; nothing is written then")
    parser.add_argument("--steps", type=int, default=200, help="counted steps of each contestant")
    chosen = parser.parse_args()
    rows = [r for name in WORKLOADS if chosen.only in (None, name) for r in measure(name, chosen.steps)]
    show(rows)
    if chosen.only is None:
        record = {"threads": torch.get_num_threads(), "host": host(torch.device("cpu")), "versions": versions(), "rows": rows}
        RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
