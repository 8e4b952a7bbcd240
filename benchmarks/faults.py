"""Does training go on, and say so, when the machine fails?

The recipe digits-mlp (64-256-128-10 with ReLU, cross-entropy, batches of 128) by K-FAC on the preset machine at 8 bits, for
both methods and a few machines that fail in a known way. For each: mean training loss of all batches and of the last ten,
test accuracy, and what `opt.report()` counts. All runs start from the same weights and see the same batches.

    python benchmarks/faults.py

writes `results/faults.json` and prints the table that `docs/solvers.md` shows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import heatbath as hb
from heatbath.experiments.environment import host, versions
from heatbath.machines import Fault, FaultInjector, Machine, with_bits
from heatbath.recipes import digits_mlp
from heatbath.solvers import Cholesky, Guarded, Solver, ThermodynamicInverse, ThermodynamicSolve

RESULTS = Path(__file__).parent / "results" / "faults.json"
EIGHT = with_bits(hb.load_machine("tngd-2024"), matrix=8, drive=8, read=8)
COUNTS = ("retried", "redamped", "fell_back", "indefinite", "nonfinite", "late")


def machines() -> dict[str, tuple[Machine, float | None]]:
    """Machines by what is wrong with them, and the residual above which an answer is refused; None: not measured."""
    healthy = Machine(EIGHT)
    coarse = Machine(with_bits(EIGHT, matrix=4))
    return {
        "nothing": (healthy, None),
        "1 % of the cells are dead": (Machine(replace(EIGHT, dead_cells=0.01)), None),
        "every 50th call returns NaN": (Machine(FaultInjector(healthy.device, Fault.NONFINITE, every=50)), None),
        "every 50th call is late": (Machine(FaultInjector(healthy.device, Fault.LATE, every=50)), None),
        "every 50th call returns garbage": (Machine(FaultInjector(healthy.device, Fault.GARBAGE, every=50)), None),
        "the same, residuals measured": (Machine(FaultInjector(healthy.device, Fault.GARBAGE, every=50)), 1.0),
        "4 bits: indefinite at every refresh": (coarse, None),
    }


def batches(steps: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled training batches, the same for every run."""
    x, y = digits_mlp().source.load().train.tensors
    generator = torch.Generator().manual_seed(1)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(size):
            if steps == 0:
                return
            steps -= 1
            yield x[rows], y[rows]


def train(solver: Solver[Any], steps: int) -> dict[str, Any]:  # Any: any state; JSON values
    """Train once; losses, test accuracy and counts."""
    task = digits_mlp()
    torch.manual_seed(0)
    model, hyper = task.model(), task.hyper["kfac"]
    optimizer = hb.KFAC(
        model, lr=hyper.lr, damping=hyper.damping or 0.0, solver=solver, generator=torch.Generator().manual_seed(2)
    )
    losses = []
    for x, y in batches(steps, task.batch_size):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    x, y = task.source.load().test.tensors
    report = optimizer.report()
    counts = {name: sum(float(report.get(f"{k}.{name}", 0)) for k in ("prepare", "solve")) for name in COUNTS}
    counts["fallbacks"] = sum(float(v) for k, v in report.items() if k.endswith("fallbacks"))
    counts["clipped"] = sum(float(v) for k, v in report.items() if k.endswith("clipped"))
    return {
        "mean loss": statistics.fmean(losses),
        "loss": statistics.fmean(losses[-10:]),
        "accuracy": (model(x).argmax(-1) == y).float().mean().item(),
        "skipped": float(report["skipped_steps"]),
        "prepared": sum(float(v) for k, v in report.items() if k.startswith("prepare.") and k != "prepare.clipped"),
        "counts": {name: count for name, count in counts.items() if count},
        "first loss": losses[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [{"method": "digital, Cholesky", "fault": "nothing", **train(Cholesky(), options.steps)}]
    for method, make in (("invert", ThermodynamicInverse), ("solve", ThermodynamicSolve)):
        for fault, (machine, tolerance) in machines().items():
            solver = Guarded(make(machine), residual_tolerance=tolerance)
            rows.append({"method": method, "fault": fault, **train(solver, options.steps)})
            row = rows[-1]
            counts = ", ".join(f"{name} {count:g}" for name, count in row["counts"].items()) or "none"
            scores = f"{row['mean loss']:.3f} | {row['loss']:.3f} | {100 * row['accuracy']:.1f} %"
            print(f"| {method} | {fault} | {scores} | {counts} |", flush=True)
    record = {
        "question": __doc__.split("\n", 1)[0],
        "steps": options.steps,
        "environment": {**host(torch.device("cpu")), "packages": versions()},
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
