"""What does a training step cost under each optimizer, beside AdamW, and how near is K-FAC to the least it can cost?

    python benchmarks/step.py                                what is installed, about 8 minutes on two idle cores
    python benchmarks/step.py --only b --contestants "AdamW, foreach" hb.KFAC --minutes 1
    python benchmarks/step.py --kfac-pytorch path/to/kfac-pytorch --write

The peers come by `pip install pytorch_optimizer singd einconv`, Shampoo from a clone of github.com/facebookresearch/optimizers,
kfac-pytorch from a clone of github.com/gpauloski/kfac-pytorch. A step is zero_grad, forward, loss, backward and update, in
float32. Contestants take turns of two steps, so that a busy machine hits all alike. A round is a whole cycle of everybody's
intervals, and every contestant is set against AdamW (foreach) of the same round. Each contestant gets about the same time in
all: a slow one takes part in fewer rounds, and one without a cycle takes one step of a round. On a machine that is not idle
`--clock cpu --threads 1` is steadier. Columns:

    ratio      mean step of a cycle over AdamW's, median over rounds
    median     median step over AdamW's median step; a step that refreshes is no median
    p99        99th percentile of a contestant's steps over its own median
    floor      least arithmetic of K-FAC with such intervals over that of a plain step (`step_floor.py`), and ratio/floor
    state      bytes held beside parameters and gradients
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from step_contestants import (
    CONTESTANTS,
    PACKAGES,
    Contestant,
    Trainer,
    arguments,
    read_arguments,
    state_bytes,
    version_of,
    write,
)
from step_floor import count
from step_workloads import WORKLOADS, Workload

import heatbath as hb
from heatbath.experiments.environment import host, versions

RESULTS = Path(__file__).parent / "results" / "step.json"
BASELINE = "AdamW, foreach"
ROUND, TURN = 10, 2  # steps
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Record = dict[str, Any]  # Any: JSON values


@dataclass(eq=False)
class Runner:
    """One contestant on one workload.

    Args:
        contestant: the contestant.
        workload: the workload.
        clock: seconds since any time.
        rounds: seconds of each step, by number of the round.
        warm: seconds of the second step, which counts for nothing.
    """

    contestant: Contestant
    workload: Workload
    clock: Callable[[], float]
    rounds: dict[int, list[float]] = field(default_factory=dict)
    warm: float = 0.0

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = self.workload.model()
        self.x, self.y = self.workload.batch()
        self.trainer: Trainer = self.contestant.build(self.model)
        self.step()  # whatever starts at a first step; any whole cycle after it has one refresh
        self.warm = self.step()

    def step(self) -> float:
        """Seconds of one step."""
        start = self.clock()
        self.model.zero_grad()
        self.workload.loss(self.model(self.x), self.y).backward()
        self.trainer.update()
        return self.clock() - start

    def turn(self, number: int, of: int) -> None:
        """A few steps of round `number`; a slow contestant without a cycle sits out all turns but the first."""
        slow = self.contestant.cycle == 1 and self.warm > 1.0
        if of == 0 or not slow:
            self.rounds.setdefault(number, []).extend(self.step() for _ in range(1 if slow else TURN))

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(map(sum, self.rounds.values()))


def race(workload: Workload, wanted: Sequence[str], seconds: float, clock: str, console: Console) -> dict[str, Runner]:
    """All contestants on one workload for about so many seconds; those that raise are left out, with a word."""
    runners: dict[str, Runner] = {}
    began = time.perf_counter()
    for name in wanted:
        try:
            runners[name] = Runner(CONTESTANTS[name], workload, CLOCKS[clock])
        except Exception as error:  # any peer's failure is a result
            console.print(f"{name}: {type(error).__name__}: {str(error)[:200]}", highlight=False)
    number = 0
    while number == 0 or time.perf_counter() - began < seconds:
        most = 2 * min(runner.seconds for runner in runners.values()) + seconds / 50
        present = [r for name, r in runners.items() if number == 0 or name == BASELINE or r.seconds <= most]
        for of in range(ROUND // TURN):
            for runner in present:
                runner.turn(number, of)
        number += 1
    return runners


def judge(runners: dict[str, Runner], workload: Workload) -> dict[str, Record]:
    """One row for each contestant."""
    base = runners[BASELINE].rounds
    base_median = statistics.median(t for steps in base.values() for t in steps)
    limits = {(r.contestant.max_dim, r.contestant.rank) for r in runners.values()}
    floors = {(m, rank): count(workload, hb.Policy(max_dim=m, rank=rank)) for m, rank in limits}
    rows = {}
    for name, runner in runners.items():
        contestant, steps = runner.contestant, [t for block in runner.rounds.values() for t in block]
        ratio = statistics.median(statistics.mean(t) / statistics.mean(base[n]) for n, t in runner.rounds.items())
        median = statistics.median(steps)
        floor = None
        if contestant.intervals is not None:
            floor = floors[contestant.max_dim, contestant.rank].ratio(*contestant.intervals)
        ordered = sorted(steps)
        rows[name] = {
            "ratio": ratio,
            "median": median / base_median,
            "p99": ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))] / median,
            "floor": floor,
            "state_bytes": state_bytes(runner.trainer, runner.model),
            "rounds": len(runner.rounds),
            "steps": len(steps),
            "milliseconds": 1e3 * median,
            "settings": contestant.settings,
            "preconditions": contestant.preconditions,
        }
    return rows


def draw(title: str, record: Record) -> Table:
    """The table for a terminal."""
    table = Table(title=f"{title}. {record['title']}", title_justify="left")
    for head in ("", "ratio", "median", "p99", "floor", "ratio/floor", "state MiB", "ms", "steps"):
        table.add_column(head, justify="left" if not head else "right")
    for name, row in record["rows"].items():
        table.add_row(name, *cells(row), str(row["steps"]))
    return table


def cells(row: Record) -> list[str]:
    """The columns of a row as text."""
    floor = row["floor"]
    bounds = ["–", "–"] if floor is None else [f"{floor:.2f}", f"{row['ratio'] / floor:.2f}"]
    state, ms = f"{row['state_bytes'] / 2**20:.1f}", f"{row['milliseconds']:.1f}"
    return [f"{row['ratio']:.2f}", f"{row['median']:.2f}", f"{row['p99']:.1f}", *bounds, state, ms]


def main() -> None:
    parser = arguments((__doc__ or "").split("\n", 1)[0], WORKLOADS, CONTESTANTS, RESULTS)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all workloads together")
    parser.add_argument("--all", action="store_true", help="also contestants whose steps take minutes on a workload")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options, console = read_arguments(parser), Console()
    torch.set_num_threads(options.threads)
    wanted = [BASELINE, *(name for name in options.contestants if name != BASELINE)]
    absent = [name for name in wanted if not CONTESTANTS[name].is_there()]
    if absent:
        console.print(f"not installed, left out: {'; '.join(absent)}", highlight=False)
    wanted = [name for name in wanted if name not in absent]
    record: Record = json.loads(options.out.read_text(encoding="utf-8")) if options.write and options.out.exists() else {}
    record |= {
        "question": (__doc__ or "").split("\n", 1)[0],
        "date": date.today().isoformat(),
        "clock": options.clock,
        "environment": {**host(torch.device("cpu")), "packages": versions()},
        "peers": {
            CONTESTANTS[n].package: version_of(str(CONTESTANTS[n].package))
            for n in wanted
            if CONTESTANTS[n].package in PACKAGES
        },
    }
    weights = sum(WORKLOADS[key].weight for key in options.only)
    for key in options.only:
        workload = WORKLOADS[key]
        present = [name for name in wanted if options.all or CONTESTANTS[name].largest >= workload.largest]
        if len(present) < len(wanted):
            slow = "; ".join(name for name in wanted if name not in present)
            console.print(f"{key}: left out, a factor of {workload.largest} takes too long (--all): {slow}", highlight=False)
        runners = race(workload, present, 60 * options.minutes * workload.weight / weights, options.clock, console)
        found = {"title": workload.title, "goal": workload.goal, "rows": judge(runners, workload)}
        record["workloads"] = dict(sorted({**record.get("workloads", {}), key: found}.items()))
        console.print(draw(key, found))
        if options.write:
            write(record, options.out)  # what was not measured is kept


if __name__ == "__main__":
    main()
