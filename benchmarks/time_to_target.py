"""How many steps and seconds does each optimizer take to where AdamW gets?

    python benchmarks/time_to_target.py                                   every task, every contestant; hours on two cores
    python benchmarks/time_to_target.py --task char-gpt --contestant AdamW Muon hb.KFAC
    python benchmarks/time_to_target.py --table                           the tables of what was run, as Markdown

For everybody: the same initial weights, order of data, warm-up over 5 % of the steps, then a cosine to 10 %, decoupled weight
decay 0.01, and a few learning rates, of which the best by the final score on held-out data counts. A run is a process of its
own with one thread; its clock is that process's processor time, measuring aside. Runs that are in the results already are not
made again. Peers come by `pip install pytorch_optimizer`; who is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from targets_contestants import CONTESTANTS
from targets_tasks import TASKS_BY_NAME, load

from heatbath.experiments.environment import versions

RESULTS = Path(__file__).parent / "results" / "time_to_target.jsonl"
WARM_UP, LAST = 0.05, 0.1  # share of steps; share of the learning rate at the end
LEVELS = (0.6, 0.8, 1.0)  # of AdamW's steps: where AdamW is then is what is to be reached

Record = dict[str, Any]


def scheduled(step: int, steps: int) -> float:
    """The factor on the learning rate at a step: linear warm-up, then a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * progress))


def train(task_name: str, contestant: str, lr: float, *, seed: int = 0, batch_size: int | None = None) -> Record:
    """One run.

    Args:
        task_name: the task.
        contestant: the optimizer.
        lr: its largest learning rate.
        seed: of the initial weights, and of what the model draws.
        batch_size: examples a step; None: the task's.

    Returns:
        Rows `[steps, seconds, score]`, and what was run.
    """
    torch.set_num_threads(1)
    task = load(task_name)
    torch.manual_seed(seed)
    model = task.model()
    optimizer = CONTESTANTS[contestant][0](model, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: scheduled(step, task.steps))
    batches = task.batches(batch_size or task.batch_size)
    seconds, rows = 0.0, []
    for step in range(1, task.steps + 1):
        batch = next(batches)
        start = time.process_time()
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - start
        schedule.step()
        if step % task.every == 0 or step == task.steps:
            model.eval()
            with torch.no_grad():
                rows.append([step, seconds, task.score(model)])
            model.train()
            if not math.isfinite(rows[-1][2]):
                break
    return {
        "task": task_name,
        "contestant": contestant,
        "lr": lr,
        "seed": seed,
        "batch_size": batch_size or task.batch_size,
        "rows": rows,
        "versions": versions(),
    }


def key(record: Record) -> tuple[Any, ...]:
    """What makes a run the same run."""
    return record["task"], record["contestant"], record["lr"], record["seed"], record["batch_size"]


def read(path: Path) -> list[Record]:
    """What was run before."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def better(a: float, b: float, higher: bool) -> bool:
    """Whether score a is at least as good as b; what is no number is not."""
    return math.isfinite(a) and (a >= b if higher else a <= b)


def reached(rows: list[list[float]], level: float, higher: bool) -> list[float] | None:
    """The first row at or beyond a level."""
    return next((row for row in rows if better(row[2], level, higher)), None)


def best(records: list[Record], higher: bool) -> Record | None:
    """The run with the best final score that is a number."""
    finished = [r for r in records if math.isfinite(r["rows"][-1][2])]
    if not finished:
        return None
    return (max if higher else min)(finished, key=lambda r: r["rows"][-1][2])


def table(records: list[Record]) -> str:
    """One table a task: final score by rate, steps and seconds to AdamW's levels."""
    parts = []
    for name in TASKS_BY_NAME:
        of_task = [r for r in records if r["task"] == name and r["seed"] == 0]
        adamw = [r for r in of_task if r["contestant"] == "AdamW"]
        if not adamw:
            continue
        higher = HIGHER[name]
        reference = best(adamw, higher)
        assert reference is not None
        rows = reference["rows"]
        levels = [min(rows, key=lambda row: abs(row[0] - share * rows[-1][0]))[2] for share in LEVELS]
        head = "| | score by learning rate | best | ms a step | " + " | ".join(f"to {level:.4g}" for level in levels) + " |"
        lines = [f"\n### {name} ({'higher' if higher else 'lower'} is better)\n", head, "|" + "---|" * (4 + len(levels))]
        for contestant in dict.fromkeys(r["contestant"] for r in of_task):
            own = sorted((r for r in of_task if r["contestant"] == contestant), key=lambda r: r["lr"])
            top = best(own, higher)
            scores = ", ".join(f"{r['lr']:g}: {r['rows'][-1][2]:.4g}" for r in own)
            if top is None:
                lines.append(f"| {contestant} | {scores} | – | – |" + " – |" * len(levels))
                continue
            cells = []
            for level in levels:
                row = reached(top["rows"], level, higher)
                cells.append("not reached" if row is None else f"{row[0]} steps, {row[1]:.3g} s")
            last = top["rows"][-1]
            lines.append(f"| {contestant} | {scores} | {last[2]:.4g} | {1e3 * last[1] / last[0]:.3g} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n".join(parts)


HIGHER = {
    "mnist-autoencoder": False,
    "char-gpt": False,
    "char-lstm": False,
    "cifar-vit": True,
    "cifar-cnn": True,
    "molecules-gin": True,
    "vae": False,
    "poisson": False,
    "bandit-policy": True,
}


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="*", default=list(TASKS_BY_NAME), choices=list(TASKS_BY_NAME))
    parser.add_argument("--contestant", nargs="*", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--lr", nargs="*", type=float, help="learning rates; the contestants' own if left out")
    parser.add_argument("--seed", nargs="*", type=int, default=[0])
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print tables of what was run, and run nothing")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "CONTESTANT", "LR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task, contestant, lr = options.one
        record = train(task, contestant, float(lr), seed=options.seed[0], batch_size=options.batch_size)
        print(json.dumps(record))
        return
    if options.table:
        print(table(read(options.results)))
        return
    for task in options.task:
        for contestant in options.contestant:
            for lr in options.lr or CONTESTANTS[contestant][1]:
                for seed in options.seed:
                    _run(options, task, contestant, lr, seed)


def _run(options: argparse.Namespace, task: str, contestant: str, lr: float, seed: int) -> None:
    """One run in a process of its own, unless it is there already."""
    known = {(r["task"], r["contestant"], r["lr"], r["seed"]) for r in read(options.results)}
    if (task, contestant, lr, seed) in known:
        return
    command = [sys.executable, __file__, "--one", task, contestant, str(lr), "--seed", str(seed)]
    if options.batch_size:
        command += ["--batch-size", str(options.batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{task} {contestant} {lr:g}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return
    line = done.stdout.strip().splitlines()[-1]
    options.results.parent.mkdir(exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    last = json.loads(line)["rows"][-1]
    print(f"{task} {contestant} {lr:g} seed {seed}: {last[2]:.4g} after {last[0]} steps, {last[1]:.1f} s", flush=True)


if __name__ == "__main__":
    main()
