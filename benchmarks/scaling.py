"""How do the costs of a K-FAC step, of an inverse and of an emulated solve grow with the size of the problem?

    python benchmarks/scaling.py --write          about 5 minutes on two idle cores
    python benchmarks/scaling.py --only width --largest 1024

Four questions, in float32:

width      a perceptron of two layers w × w at batch 1024: time of a step over that of AdamW (foreach), w = 128 … 4096
depth      a perceptron of 2 … 48 layers of 256 at batch 512: the same
size       one matrix of n = 64 … 4096, κ = 100: Cholesky, Newton–Schulz, the emulated inverse (method 1), the emulated solve of
           one right-hand side (method 2); exponents p of t ∝ nᵖ by least squares of log t over n ≥ 256

rows       a product of n − 1 × n by n × n, written in rows as they come and in rows that start at cache lines

A ratio is that of intervals 10/10: (9 × a step without a refresh + a step with one) / 10, each the median of its kind. AdamW's
steps are taken in turn with them. Every point is a process of its own, and its peak memory is that above the start of the
process, before AdamW joins.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
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
from torch import nn

import heatbath as hb
from heatbath.experiments.environment import host, versions
from heatbath.experiments.models import mlp
from heatbath.machines import Machine, presets
from heatbath.operators import Dense, product
from heatbath.solvers import Cholesky, NewtonSchulz, Solver, ThermodynamicInverse, ThermodynamicSolve

RESULTS = Path(__file__).parent / "results" / "scaling.json"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WIDTHS, DEPTHS, SIZES = (128, 256, 512, 1024, 2048, 4096), (2, 4, 8, 16, 32, 48), (64, 128, 256, 512, 1024, 2048, 4096)
ODD = (193, 513, 769, 1025, 2049)  # a bias more than a power of two, or so
QUESTIONS = ("width", "depth", "size", "rows")
EVERY, PLAIN = 5, 3  # a refresh at every fifth step here, and steps without one between two of them that are timed
FAST = Machine(presets()["tngd-2024"], tolerance=1e9)

Record = dict[str, Any]  # Any: JSON values
Clock = Callable[[], float]


def peak_bytes() -> int:
    """The most memory this process ever held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def perceptron(width: int, depth: int, batch: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network and a batch."""
    torch.manual_seed(0)
    return mlp([width] * (depth + 1)), torch.randn(batch, width), torch.randint(10, (batch,))


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer, clock: Clock) -> float:
    """Seconds of one training step."""
    start = clock()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    return clock() - start


def ratio(width: int, depth: int, batch: int, max_dim: int | None, solver: Solver[Any] | None, clock: Clock) -> Record:
    """One point of the first two questions."""
    start = peak_bytes()
    model, x, y = perceptron(width, depth, batch)
    policy = hb.Policy(factor_every=EVERY, refresh_every=EVERY, patience=0, max_dim=max_dim, rank=None)
    natural = hb.KFAC(model, lr=1e-6, solver=solver, policy=policy, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        step(model, x, y, natural, clock)
    memory = peak_bytes() - start
    other, *_ = perceptron(width, depth, batch)
    adamw = torch.optim.AdamW(other.parameters(), lr=1e-6, foreach=True)
    step(other, x, y, adamw, clock)
    plain, base = [], []
    for _ in range(PLAIN):
        plain.append(step(model, x, y, natural, clock))
        base.append(step(other, x, y, adamw, clock))
    refresh = step(model, x, y, natural, clock)
    adamw_seconds, plain_seconds = statistics.median(base), statistics.median(plain)
    return {
        "adamw_seconds": adamw_seconds,
        "plain_seconds": plain_seconds,
        "refresh_seconds": refresh,
        "ratio": (9 * plain_seconds + refresh) / (10 * adamw_seconds),
        "peak_bytes": memory,
        "state_bytes": natural.coverage().state_bytes,
    }


def one_matrix(solver: Solver[Any], n: int, solves: bool, clock: Clock) -> Record:
    """Seconds to prepare a matrix, and to solve for one right-hand side where that is asked."""
    start = peak_bytes()
    generator = torch.Generator().manual_seed(0)
    values = torch.logspace(0, -2, n)
    vector = F.normalize(torch.randn(n, generator=generator), dim=0)
    turned = torch.eye(n) - 2 * vector.outer(vector)  # a reflection, so that no decomposition is needed to make the matrix
    matrix = (turned * values) @ turned
    operator, rhs = Dense(0.5 * (matrix + matrix.mT)), torch.randn(1, n, generator=generator)
    seconds = []
    for _ in range(3 if n <= 1024 else 1):
        before = clock()
        state, _ = solver.prepare(operator, generator=generator)
        if solves:
            solver.solve(state, rhs, generator=generator)
        seconds.append(clock() - before)
    return {"seconds": min(seconds), "peak_bytes": peak_bytes() - start}


def one_product(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], n: int, clock: Clock) -> Record:
    """Seconds of one product."""
    start = peak_bytes()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, n - 1, n, generator=generator), torch.randn(1, n, n, generator=generator)
    seconds = []
    for _ in range(9):
        before = clock()
        multiply(a, b)
        seconds.append(clock() - before)
    return {"seconds": statistics.median(seconds), "peak_bytes": peak_bytes() - start}


STEPS: dict[str, tuple[int | None, Solver[Any] | None]] = {
    "Cholesky": (None, None),
    "Cholesky, blocks of 1024": (1024, None),
    "thermodynamic": (None, ThermodynamicInverse(FAST)),
    "thermodynamic, blocks of 1024": (1024, ThermodynamicInverse(FAST)),
}
MATRICES: dict[str, tuple[Solver[Any], bool]] = {
    "Cholesky inverse": (Cholesky(), False),
    "Newton–Schulz inverse, 20 steps": (NewtonSchulz(), False),
    "emulated inverse": (ThermodynamicInverse(FAST), False),
    "emulated solve": (ThermodynamicSolve(FAST), True),
}


def points(question: str, largest: int) -> dict[str, dict[int, tuple[Callable[..., Record], tuple[Any, ...]]]]:
    """What to measure: by name and size, a function and its arguments."""
    if question == "rows":
        ways = {"rows as they come, `a @ b`": torch.matmul, "aligned rows, `product(a, b)`": product}
        return {name: {n: (one_product, (way, n)) for n in ODD} for name, way in ways.items()}
    if question == "size":
        sizes = [n for n in SIZES if n <= largest]
        return {name: {n: (one_matrix, (solver, n, solves)) for n in sizes} for name, (solver, solves) in MATRICES.items()}
    found: dict[str, dict[int, tuple[Callable[..., Record], tuple[Any, ...]]]] = {}
    for name, (max_dim, solver) in STEPS.items():
        if question == "width":
            sizes = [w for w in WIDTHS if w <= largest and (max_dim is None or w >= max_dim)]
            found[name] = {w: (ratio, (w, 2, 1024, max_dim, solver)) for w in sizes}
        elif max_dim is None:
            found[name] = {d: (ratio, (256, d, 512, None, solver)) for d in DEPTHS}
    return found


def answer(pipe: Any, function: Callable[..., Record], arguments: tuple[Any, ...], clock: str, threads: int) -> None:
    """In a process of its own: one point."""
    torch.set_num_threads(threads)
    pipe.send(function(*arguments, CLOCKS[clock]))


def alone(function: Callable[..., Record], arguments: tuple[Any, ...], clock: str, threads: int) -> Record:
    """One point, in a process of its own."""
    fork = multiprocessing.get_context("fork")  # this process ran nothing in parallel yet
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=answer, args=(there, function, arguments, clock, threads))
    child.start()
    there.close()
    found: Record = here.recv()
    child.join()
    return found


def exponent(rows: dict[str, Record], smallest: int = 256) -> float | None:
    """The exponent p of t ∝ nᵖ, by least squares over log n; None for fewer than three sizes."""
    xy = [(math.log(int(n)), math.log(row["seconds"])) for n, row in rows.items() if int(n) >= smallest]
    if len(xy) < 3:
        return None
    mean_x, mean_y = (statistics.mean(column) for column in zip(*xy, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in xy) / sum((x - mean_x) ** 2 for x, _ in xy)


def cell(row: Record | None) -> str:
    """One point as text: ratio or time, and peak memory."""
    if row is None:
        return "–"
    memory = f"{row['peak_bytes'] / 2**20:.0f} MiB"
    if "ratio" in row:
        return f"{row['ratio']:.2f} ({memory})"
    ms = 1e3 * row["seconds"]
    return f"{ms:.2g} ms ({memory})" if ms < 100 else f"{ms:.0f} ms ({memory})"


def table_of(question: str, record: Record) -> list[list[str]]:
    """Head and rows of one question's table."""
    sizes = sorted({int(n) for rows in record.values() for n in rows["points"]})
    head = [{"width": "w", "depth": "layers", "size": "n", "rows": "n"}[question], *map(str, sizes)]
    if question == "size":
        head.append("exponent")
    lines = []
    for name, rows in record.items():
        line = [name, *(cell(rows["points"].get(str(n))) for n in sizes)]
        if question == "size":
            line.append("–" if rows["exponent"] is None else f"{rows['exponent']:.2f}")
        lines.append(line)
    return [head, *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument("--largest", type=int, default=4096, help="width and size")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write the results as JSON; what was not measured is kept")
    options = parser.parse_args()
    console = Console()
    record: Record = json.loads(options.out.read_text(encoding="utf-8")) if options.write and options.out.exists() else {}
    environment = {**host(torch.device("cpu")), "threads": options.threads, "packages": versions()}
    record |= {"question": (__doc__ or "").split("\n", 1)[0], "date": date.today().isoformat(), "clock": options.clock}
    record |= {"environment": environment}
    for question in options.only:
        found: Record = {}
        for name, sizes in points(question, options.largest).items():
            rows = {str(n): alone(f, arguments, options.clock, options.threads) for n, (f, arguments) in sizes.items()}
            found[name] = {"points": rows, **({"exponent": exponent(rows)} if question == "size" else {})}
            console.print(question, name, *(f"{n}: {cell(row)}" for n, row in rows.items()), highlight=False)
        record[question] = found
        head, *lines = table_of(question, found)
        table = Table(*head, title=question, title_justify="left")
        for line in lines:
            table.add_row(*line)
        console.print(table)
        if options.write:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
