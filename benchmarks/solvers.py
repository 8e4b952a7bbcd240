"""What do the machine's solvers buy, against one another and against digital ones?

    python benchmarks/solvers.py        writes results/solvers.json
    python docs/draw_solvers.py         draws docs/figures/*.svg and the table of docs/solvers.md from it

Matrices have log-spaced eigenvalues and random eigenvectors. An error is the Frobenius norm of the difference from a dense
float64 solution over that of the solution, and, over several matrices, the root mean square. Machine time is what
the jobs say: settling and reading, programming and transfer apart. Four questions:

routes      the mean (n driven cosine vectors) against the covariance, at equal machine time, for three noise levels
crossbar    the noise-free closed loop against the thermodynamic solve, at equal bits and equal settling time
products    conjugate gradients against refinement on the machine, at equal products with the matrix, and priced
table       every solver on the same matrices
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heatbath.costs import h100, price
from heatbath.experiments.environment import host, versions
from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.operators import Dense
from heatbath.solvers import (
    Averaged,
    Blocked,
    Cholesky,
    ConjugateGradient,
    CosineVectors,
    Crossbar,
    Eigen,
    Fluctuations,
    Guarded,
    NewtonSchulz,
    Refined,
    Solver,
    ThermodynamicInverse,
    ThermodynamicSolve,
    UnitVectors,
)
from heatbath.work import Work

TAU = 1e-6
RESULTS = Path(__file__).parent / "results" / "solvers.json"
TIMED = MachineSpec(name="timed", tau=TAU, bandwidth=50e9, noise_volts_rms=1e-3, matrix_bits=8, drive_bits=8, read_bits=8)
GAIN = 1e4  # open-loop gain of the closed loop's amplifiers: 80 dB, that of an ordinary operational amplifier


def matrices(count: int, n: int, condition: float, seed: int = 0) -> Tensor:
    """SPD matrices `[count, n, n]` with eigenvalues log-spaced from 1 down to 1/condition."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(count, n, n, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ basis.mT
    return 0.5 * (matrix + matrix.mT)


def sides(count: int, rows: int, n: int) -> Tensor:
    """Right-hand sides `[count, rows, n]`."""
    return torch.randn(count, rows, n, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def solve(solver: Solver[Any], matrix: Tensor, rhs: Tensor) -> dict[str, Any]:  # Any: any state; JSON values
    """Error over the usable members (None: there is none), their share, and the work of preparing and solving."""
    generator = torch.Generator().manual_seed(3)
    state, work = solver.prepare(Dense(matrix), generator=generator)
    solution = solver.solve(state, rhs, generator=generator)
    truth = torch.linalg.solve(matrix, rhs.mT).mT
    error = (solution.value - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    good = torch.isfinite(error) & (solution.outcome != 1)  # 1: the matrix, as held, is indefinite
    share = good.double().mean().item()
    size = error[good].square().mean().sqrt().item() if share else None
    return {"error": size, "usable": share, "work": work + solution.work}


def stored(row: dict[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """A row without its work, which no figure needs."""
    return {key: value for key, value in row.items() if key != "work"}


def routes(n: int = 32, condition: float = 10.0) -> dict[str, Any]:  # Any: JSON values
    """Relative error of the inverse by both routes against machine time; every matrix by a machine of its own."""
    copies = 4
    matrix = matrices(copies, n, condition)
    eye = torch.eye(n, dtype=torch.float64).expand(copies, n, n)
    rows = []
    for taus in (1e3, 3e3, 1e4, 3e4, 1e5, 3e5):
        share = taus * TAU / n
        mean = CosineVectors(Schedule(burn_in=0.5 * share, duration=0.5 * share))
        burn_in = min(0.1 * taus, 100.0)
        covariance = Fluctuations(reads=int(taus - burn_in), interval=TAU, burn_in=burn_in * TAU)
        for noise in (1e-3, 1e-2, 1e-1):
            machine = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=noise))
            rows.append(
                {"route": "mean", "taus": taus, "noise": noise}
                | stored(solve(ThermodynamicInverse(machine, mean), matrix, eye))
            )
        rows.append(
            {"route": "covariance", "taus": taus, "noise": noise}
            | stored(solve(ThermodynamicInverse(machine, covariance), matrix, eye))
        )
    return {"n": n, "condition": condition, "matrices": copies, "rows": rows}


def analog(spec: MachineSpec, condition: float) -> dict[str, Solver[Any]]:  # Any: any state
    """Both analog solvers with the same time: ten relaxations of the slowest mode to settle, two to read."""
    schedule = Schedule(10 * condition * TAU, 2 * condition * TAU)
    thermodynamic = ThermodynamicSolve(Machine(spec), schedule)
    loop = Crossbar(Machine(replace(spec, noise_volts_rms=None, amplifier_gain=GAIN)), settle_seconds=schedule.seconds)
    return {
        "thermodynamic": thermodynamic,
        "crossbar": loop,
        "thermodynamic, refined": Refined(thermodynamic, sweeps=3),
        "crossbar, refined": Refined(loop, sweeps=3),
    }


def crossbar(n: int = 32) -> dict[str, Any]:  # Any: JSON values
    """Errors against bits at κ = 100 and against κ at 8 bits."""
    copies, found = 16, {}
    sweeps = {
        "bits": [(bits, 100.0) for bits in range(4, 17)],
        "condition": [(8, condition) for condition in (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)],
    }
    for name, points in sweeps.items():
        rows = []
        for bits, condition in points:
            spec = replace(TIMED, matrix_bits=bits, drive_bits=bits, read_bits=bits)
            matrix, rhs = matrices(copies, n, condition), sides(copies, 4, n)
            for label, solver in analog(spec, condition).items():
                rows.append({"solver": label, "bits": bits, "condition": condition} | stored(solve(solver, matrix, rhs)))
        found[name] = rows
    return {"n": n, "matrices": copies, "gain": GAIN, "noise_volts_rms": TIMED.noise_volts_rms, "sweeps": found}


def seconds(work: Work) -> dict[str, float]:
    """Predicted seconds on one H100 and one machine: with equal kernels side by side, as `price` has them, and one by one.

    Kernels of one solve depend on one another, so the second is nearer to the truth for a single problem.
    """
    bill = price(work, digital=h100(), machines={"timed": TIMED})
    serial = sum(count * h100().kernel_seconds(kernel) for kernel, count in work.kernels.items())
    side_by_side = bill.seconds_by_part.get("digital", 0.0)
    return {"seconds": bill.seconds - side_by_side + serial, "seconds, side by side": bill.seconds}


def products(n: int = 256, rows: int = 64) -> dict[str, Any]:  # Any: JSON values
    """Errors against the number of products with the matrix, and against predicted seconds."""
    found = []
    for condition in (10.0, 100.0, 1000.0):
        matrix, rhs = matrices(1, n, condition), sides(1, rows, n)
        points: list[tuple[str, int, Solver[Any]]] = [
            ("conjugate gradients", k, ConjugateGradient(k, 0.0)) for k in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
        ]
        schedule = Schedule(10 * condition * TAU, 2 * condition * TAU)
        for bits in (8, 12):
            spec = replace(TIMED, matrix_bits=bits, drive_bits=bits, read_bits=bits)
            machine = ThermodynamicSolve(Machine(spec), schedule)
            points.append((f"machine of {bits} bits", 0, machine))
            points += [(f"machine of {bits} bits", m + 1, Refined(machine, sweeps=m)) for m in (1, 2, 4, 6, 8, 12)]
        for label, count, solver in points:
            row = solve(solver, matrix, rhs)
            found.append({"solver": label, "products": count, "condition": condition} | seconds(row["work"]) | stored(row))
    return {"n": n, "right-hand sides": rows, "digital": h100().name, "rows": found}


def table(n: int = 256, rows: int = 256, condition: float = 100.0) -> dict[str, Any]:  # Any: JSON values
    """Every solver on the same four matrices, and the work of one refresh and one solve of `rows` right-hand sides."""
    copies = 4
    matrix, rhs = matrices(copies, n, condition), sides(copies, rows, n)
    schedule = Schedule(10 * condition * TAU, 2 * condition * TAU)
    machine, fine = Machine(TIMED), Machine(replace(TIMED, matrix_bits=12, drive_bits=12, read_bits=12))
    rounded = Machine(replace(TIMED, matrix_bits=12, drive_bits=12, read_bits=12, stochastic_rounding=True))
    small = Machine(replace(TIMED, matrix_bits=12, drive_bits=12, read_bits=12, cells=n // 2))
    quiet = Machine(replace(TIMED, matrix_bits=12, drive_bits=12, read_bits=12, noise_volts_rms=None, amplifier_gain=GAIN))
    solve12 = ThermodynamicSolve(fine, schedule)
    solvers: dict[str, Solver[Any]] = {
        "`Cholesky()`": Cholesky(),
        "`Eigen()`": Eigen(),
        "`ConjugateGradient(40)`": ConjugateGradient(40, 0.0),
        "`NewtonSchulz(20)`": NewtonSchulz(20),
        "`ThermodynamicSolve`, 8 bits": ThermodynamicSolve(machine, schedule),
        "`ThermodynamicSolve`, 12 bits": solve12,
        "`ThermodynamicInverse(CosineVectors)`, 8 bits": ThermodynamicInverse(machine, CosineVectors(schedule)),
        "`ThermodynamicInverse(CosineVectors)`, 12 bits": ThermodynamicInverse(fine, CosineVectors(schedule)),
        "`ThermodynamicInverse(UnitVectors)`, 12 bits": ThermodynamicInverse(fine, UnitVectors(schedule)),
        "`ThermodynamicInverse(Fluctuations)`, 12 bits, the same time": ThermodynamicInverse(
            fine, Fluctuations(reads=25_000, interval=schedule.seconds * n / 25_000, burn_in=schedule.burn_in)
        ),
        "`Crossbar`, 12 bits, gain 10⁴": Crossbar(quiet, settle_seconds=schedule.seconds),
        "`Refined(ThermodynamicSolve)`, 12 bits, 3 sweeps": Refined(solve12, sweeps=3),
        "`Refined(Crossbar)`, 12 bits, 3 sweeps": Refined(Crossbar(quiet, settle_seconds=schedule.seconds), sweeps=3),
        "`Averaged(ThermodynamicSolve)`, 12 bits, 16 copies": Averaged(ThermodynamicSolve(rounded, schedule), copies=16),
        "`Blocked(ThermodynamicSolve)`, 12 bits, half the cells": Blocked(ThermodynamicSolve(small, schedule), cells=n // 2),
        "`Guarded(ThermodynamicSolve)`, 8 bits": Guarded(ThermodynamicSolve(machine, schedule)),
    }
    found = []
    for label, solver in solvers.items():
        row = solve(solver, matrix, rhs)
        work: Work = row["work"]
        machines = len(work.jobs) and max(1.0, work.programmings)
        bill = price(work, digital=h100(), machines={"timed": replace(TIMED, cells=None)}, copies=max(1, int(machines)))
        digital = sum(part for name, part in bill.seconds_by_part.items() if name == "digital")
        found.append(
            {"solver": label, "error": row["error"], "usable": row["usable"], "gigaflops": work.flops / 1e9}
            | {"programmings": work.programmings, "drives": sum(job.drives * count for job, count in work.jobs.items())}
            | {"machine seconds": bill.seconds - digital, "digital seconds": digital, "machines": machines}
        )
        print(json.dumps(found[-1], ensure_ascii=False), flush=True)
    return {"n": n, "rows": rows, "condition": condition, "matrices": copies, "digital": h100().name, "solvers": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="*", default=["routes", "crossbar", "products", "table"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    record["environment"] = {**host(torch.device("cpu")), "packages": versions()}
    for question in (routes, crossbar, products, table):
        if question.__name__ in options.only:
            record[question.__name__] = question()
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
