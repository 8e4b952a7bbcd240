"""What does a large factor lose in diagonal blocks, what as a sketch of low rank, and what does it cost?

    OMP_NUM_THREADS=1 python benchmarks/large_factors.py --write   # about 3 minutes

The network of workload (c) of `step.py`, two convolutions and a linear layer 4096 → 10, learns CIFAR-10 from the folder that
HEATBATH_DATA names (or what stands in for it) by `hb.KFAC` with all factors in full, batches of 64. Then, for the factor A
[4097, 4097] it averaged and the gradient of a fresh batch, the natural gradient v of the last layer with A in another form is
set against that with A in full, v*:

    error    ‖v − v*‖ / ‖v*‖
    cosine   vᵀv* / ‖v‖‖v*‖

Both are linear in what was captured, so the form of the run's own average is what a run in that form would have averaged from
the same rows. And the same network learns from the same start in each form, whose losses over the last ten steps are compared.
Costs: multiply–adds by the formulas of `step_floor.py`, processor milliseconds, the least of three, MiB of average and state.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from step_floor import products
from step_workloads import convolutional
from torch import Tensor, nn

import heatbath as hb
from heatbath.curvature.factors.formats import Holding, Pieces, Sketch, holding
from heatbath.experiments.data import cifar10
from heatbath.experiments.environment import host, versions
from heatbath.operators import BlockDiagonal, Dense, Kronecker, Operator, Sketched, map_tensors, random_basis
from heatbath.optim.damping import FactoredDamping
from heatbath.solvers import Cholesky, Factorwise

RESULTS = Path(__file__).parent / "results" / "large_factors.json"
SIZE, BATCH, LAST = 4097, 64, 10
DAMPINGS = (1e-3, 1e-1)
LIMITS: dict[str, tuple[int | None, int | None]] = {
    "whole": (None, None),
    **{f"blocks of {m}": (m, None) for m in (1024, 2048)},
    **{f"rank {r}": (2048, r) for r in (64, 128, 256, 512, 1024)},
}
TRAINED = ("whole", "blocks of 1024", "rank 64", "rank 128", "rank 256")

Record = dict[str, Any]  # Any: JSON values


def form(held: Holding, matrix: Tensor) -> Operator:
    """Averaged factors `[1, n, n]` in another form."""
    match held:
        case Pieces():
            room = held.count * held.piece - held.size
            filled = F.pad(matrix, (0, room, 0, room)).unflatten(2, (held.count, -1)).unflatten(1, (held.count, -1))
            return BlockDiagonal(filled.diagonal(dim1=1, dim2=3).movedim(-1, 1).contiguous(), held.size)
        case Sketch():
            mass = Dense(matrix).trace()
            return Sketched(
                matrix @ random_basis(held.size, held.rank, matrix.dtype, matrix.device), mass, torch.zeros_like(mass)
            )
    return Dense(matrix)


def train(data: tuple[Tensor, ...], steps: int, seed: int, limits: tuple[int | None, int | None]) -> tuple[hb.KFAC, float]:
    """An optimizer after so many steps with the gradient of one batch more, and the mean loss of the last ten steps."""
    torch.manual_seed(seed)
    model = convolutional()
    max_dim, rank = limits
    optimizer = hb.KFAC(model, lr=0.02, damping=1e-2, policy=hb.Policy(max_dim=max_dim, rank=rank, trust=hb.KLClip()))
    images, labels = data
    order = torch.randperm(len(labels))
    losses = []
    for index in order[: (steps + 1) * BATCH].split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[index]), labels[index])
        loss.backward()
        losses.append(float(loss.detach()))
        if len(losses) <= steps:
            optimizer.step()
    return optimizer, statistics.mean(losses[steps - LAST : steps])


def compare(optimizer: hb.KFAC, found: Record) -> None:
    """Add error and cosine of every form and damping to lists."""
    stack = next(s for s in optimizer.stacks if s.domain[1] == SIZE)
    mean, last = stack.mean, stack.places[0].site.module
    assert isinstance(mean, Kronecker) and isinstance(last, nn.Linear) and last.weight.grad is not None
    gradient = torch.cat((last.weight.grad, last.bias.grad[:, None]), 1)[None]
    matrix = mean.right.dense()
    for damping in DAMPINGS:
        truth = torch.zeros(0)
        for name, limits in LIMITS.items():
            curvature = Kronecker(mean.left, form(holding(SIZE, *limits), matrix))
            damped = FactoredDamping()(curvature, torch.full((1,), damping))
            solver = Factorwise(Cholesky())
            v = solver.solve(solver.prepare(damped)[0], gradient).value.double()
            truth = v if name == "whole" else truth
            row = found.setdefault(name, {"error": {}, "cosine": {}})
            row["error"].setdefault(str(damping), []).append(float((v - truth).norm() / truth.norm()))
            row["cosine"].setdefault(str(damping), []).append(float((v * truth).sum() / v.norm() / truth.norm()))


def least(f: Callable[[], object]) -> float:
    """Processor milliseconds, the least of three calls after one more."""
    seconds = []
    for _ in range(4):
        began = time.process_time()
        f()
        seconds.append(time.process_time() - began)
    return 1e3 * min(seconds[1:])


def cost(limits: tuple[int | None, int | None]) -> Record:
    """Of one factor: a batch captured, a refresh, and an application to ten rows."""
    held = holding(SIZE, *limits)
    rows = torch.randn(1, 1000, SIZE)
    side = form(held, rows.mT @ rows / 1000).shift(torch.tensor([0.1]))
    ones = Kronecker(Dense(torch.ones(1, 1, 1)), side)
    solver = Factorwise(Cholesky())
    state, _ = solver.prepare(ones)
    total, few, gradient = held.zeros(1, torch.float32, torch.device("cpu")), rows[:, :BATCH], torch.randn(1, 10, 1, SIZE)
    capture, refresh, width = products(side)
    return {
        "multiply_adds": {"capture": capture * BATCH, "refresh": refresh, "application": width * 10 * SIZE},
        "milliseconds": {
            "capture": least(lambda: held.add(total, few)),
            "refresh": least(lambda: solver.prepare(ones)),
            "application": least(lambda: solver.solve(state, gradient)),
        },
        "mib": (size_of(side) + size_of(state)) / 2**20,
    }


def size_of(value: Any) -> int:  # Any: a tree
    """Bytes of its tensors."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    map_tensors(note, value)
    return sum(sizes)


def table_of(record: Record) -> list[list[str]]:
    """Head and lines: means over seeds, ± standard deviations."""
    small, large = (str(d) for d in DAMPINGS)
    head = ["A held as", f"error, λ = {small}", f"cosine, λ = {small}", f"error, λ = {large}"]
    head += ["capture", "refresh", "ten rows", "ms per step", "MiB", "loss"]
    lines = []
    for name, row in record["forms"].items():
        errors, cosines, ms = row["error"], row["cosine"], row["milliseconds"]
        per_step = (ms["capture"] + ms["refresh"]) / 10 + ms["application"]
        quality = [spread(errors[small]), spread(cosines[small]), spread(errors[large])] if name != "whole" else ["0", "1", "0"]
        times = [f"{ms[part]:.1f}" for part in ("capture", "refresh", "application")]
        losses = record["losses"].get(name)
        lines.append([name, *quality, *times, f"{per_step:.1f}", f"{row['mib']:.1f}", spread(losses) if losses else "–"])
    return [head, *lines]


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, data = Console(width=160), cifar10.load()
    record: Record = {"question": (__doc__ or "").split("\n", 1)[0], "date": date.today().isoformat(), "data": data.describe()}
    record |= {"environment": {**host(torch.device("cpu")), "threads": 1, "packages": versions()}}
    record |= {"steps": options.steps, "seeds": options.seeds, "forms": {}, "losses": {name: [] for name in TRAINED}}
    split = data.train.batch(torch.arange(min(len(data.train), (options.steps + 1) * BATCH * 2)))
    for seed in range(options.seeds):
        for name in TRAINED:
            optimizer, loss = train(split, options.steps, seed, LIMITS[name])
            record["losses"][name].append(loss)
            if name == "whole":
                compare(optimizer, record["forms"])
        console.print(f"seed {seed}:", {name: round(losses[-1], 3) for name, losses in record["losses"].items()})
    for name, limits in LIMITS.items():
        record["forms"][name] |= cost(limits)
    head, *lines = table_of(record)
    table = Table(*head)
    for line in lines:
        table.add_row(*line)
    console.print(record["data"], table)
    if options.write:
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
