"""What does a training step cost on a GPU under each optimizer, beside fused AdamW? This script was never run on a GPU.

    python benchmarks/gpu.py --write                      all three workloads, on cuda
    python benchmarks/gpu.py --only gpt --contestants hb.KFAC "hb.KFAC, staggered"
    python benchmarks/gpu.py --device cpu --tiny          that it runs at all

Peers come as for `step.py`. Each contestant takes turns of one cycle (ten steps) with AdamW, and each of its cycles is set
against AdamW's of the same turn. Steps are timed by events in the device's own queue, never waited for one by one. Columns:

    ratio      mean step over AdamW's, median over turns
    median     median step over AdamW's median step; a step that refreshes is no median
    p99        99th percentile of a contestant's steps over its own median
    host       what the host takes to queue a step, over what the device takes: near 1 and above, launches are what is timed
    state      bytes held beside parameters and gradients
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from step_contestants import (
    CONTESTANTS,
    LR,
    STEADY,
    Contestant,
    Trainer,
    arguments,
    read_arguments,
    several,
    state_bytes,
    write,
)
from step_workloads import GPU_WORKLOADS, TINY_WORKLOADS, Workload
from torch import nn

import heatbath as hb
from heatbath.experiments.environment import host, versions
from heatbath.solvers import Solver

RESULTS = Path(__file__).parent / "results" / "gpu.json"
BASELINE = "AdamW, fused"
CYCLE = 10  # steps

Record = dict[str, Any]  # Any: JSON values


def kfac(model: nn.Module, *, solver: Solver[Any] | None = None, **options: Any) -> Trainer:
    """hb.KFAC in its steady state, with options of its policy."""
    optimizer = hb.KFAC(model, lr=LR, solver=solver, policy=hb.Policy(factor_every=10, refresh_every=10, **options))
    optimizer.steps = STEADY
    optimizer.capture.enabled = True
    return several(optimizer)


OWN: dict[str, Contestant] = {
    "hb.KFAC": Contestant("as it comes: Cholesky, intervals 10/10", kfac),
    "hb.KFAC, staggered": Contestant("Policy(stagger=True)", partial(kfac, stagger=True)),
}
PEERS = ("Muon + AdamW", "SOAP", "Shampoo, 10", "SINGD", "kfac-pytorch, 10/10")
ALL = {BASELINE: CONTESTANTS[BASELINE], **OWN, **{name: CONTESTANTS[name] for name in PEERS}}


@dataclass(eq=False)
class Runner:
    """One contestant on one workload.

    Args:
        contestant: the contestant.
        workload: the workload.
        device: where it runs.
        precision: of products in the network: "bf16" (autocast) or "tf32".
        cycles: milliseconds of each step, by cycle.
        queued: milliseconds that the host took for each cycle.
    """

    contestant: Contestant
    workload: Workload
    device: torch.device
    precision: str
    cycles: list[list[float]] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = self.workload.model().to(self.device)
        self.x, self.y = (t.to(self.device) for t in self.workload.batch())
        self.trainer: Trainer = self.contestant.build(self.model)
        for _ in range(CYCLE + 2):  # whatever starts at a first step, and one refresh
            self.step()

    def step(self) -> None:
        """One step, queued."""
        self.model.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.workload.loss(self.model(self.x), self.y)
        loss.backward()
        self.trainer.update()

    def cycle(self) -> None:
        """Ten steps, timed in the device's queue."""
        stamp, between = clock(self.device)
        _wait(self.device)
        began, stamps = time.perf_counter(), [stamp()]
        for _ in range(CYCLE):
            self.step()
            stamps.append(stamp())
        self.queued.append(1e3 * (time.perf_counter() - began))
        _wait(self.device)
        self.cycles.append([between(a, b) for a, b in pairwise(stamps)])


def clock(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any, Any], float]]:  # Any: events, or seconds
    """How to stamp a place in a device's queue, and the milliseconds between two stamps."""
    if device.type != "cuda":
        return time.perf_counter, lambda a, b: 1e3 * (b - a)

    def stamp() -> Any:  # Any: an event
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return stamp, lambda a, b: a.elapsed_time(b)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def judge(name: str, runner: Runner, base: Runner) -> Record:
    """One row."""
    steps, plain = [t for c in runner.cycles for t in c], [t for c in base.cycles for t in c]
    ratios = [statistics.mean(own) / statistics.mean(theirs) for own, theirs in zip(runner.cycles, base.cycles, strict=True)]
    ordered, median = sorted(steps), statistics.median(steps)
    return {
        "name": name,
        "ratio": statistics.median(ratios),
        "median": median / statistics.median(plain),
        "p99": ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))] / median,
        "host": sum(runner.queued) / sum(steps),
        "milliseconds": median,
        "state_bytes": state_bytes(runner.trainer, runner.model),
        "steps": len(steps),
        "settings": runner.contestant.settings,
    }


def race(workload: Workload, wanted: Sequence[str], options: argparse.Namespace, console: Console) -> list[Record]:
    """All contestants on one workload, one at a time beside AdamW; those that raise are left out, with a word."""
    device, rows = torch.device(options.device), []
    for name in wanted:
        try:
            base = Runner(ALL[BASELINE], workload, device, options.precision)
            runner = Runner(ALL[name], workload, device, options.precision)
            for _ in range(options.cycles):
                base.cycle()
                runner.cycle()
            rows.append(judge(name, runner, base))
        except Exception as error:  # any peer's failure is a result
            console.print(f"{name}: {type(error).__name__}: {str(error)[:200]}", highlight=False)
    return rows


def draw(key: str, title: str, rows: Sequence[Record]) -> Table:
    """The table for a terminal."""
    table = Table(title=f"{key}. {title}", title_justify="left")
    for head in ("", "ratio", "median", "p99", "host", "state MiB", "ms", "steps"):
        table.add_column(head, justify="left" if not head else "right")
    for row in rows:
        ratios = [f"{row[column]:.2f}" for column in ("ratio", "median", "p99", "host")]
        table.add_row(
            row["name"], *ratios, f"{row['state_bytes'] / 2**20:.1f}", f"{row['milliseconds']:.2f}", str(row["steps"])
        )
    return table


def main() -> None:
    parser = arguments((__doc__ or "").split("\n", 1)[0], GPU_WORKLOADS, ALL, RESULTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=["bf16", "tf32"], default="bf16", help="of products in the network")
    parser.add_argument("--cycles", type=int, default=20, help="of ten steps, for each contestant")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand parameters")
    options, console = read_arguments(parser), Console()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device is here: --device cpu --tiny shows that the script runs, and measures nothing")
    if options.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    workloads = TINY_WORKLOADS if options.tiny else GPU_WORKLOADS
    wanted = [name for name in options.contestants if ALL[name].is_there()]
    record: Record = {
        "question": (__doc__ or "").split("?", 1)[0] + "?",
        "date": date.today().isoformat(),
        "precision": options.precision,
        "environment": {**host(torch.device(options.device)), "packages": versions()},
        "workloads": {},
    }
    for key in options.only:
        rows = race(workloads[key], wanted, options, console)
        record["workloads"][key] = {"title": workloads[key].title, "goal": workloads[key].goal, "rows": rows}
        console.print(draw(key, workloads[key].title, rows))
    if options.write:
        write(record, options.out)


if __name__ == "__main__":
    main()
