"""How fast, and how exact, are heatbath's machine and thermox at the same law?

thermox (PyPI) simulates dx = −A(x − A⁻¹b)dt + dW at the times of the reads. The same machine here: A with largest entry 1,
τ = 1 s and noise 1/β = ½, drives at full scale, k reads dt apart. thermox needs jax, so it runs in a Python of its own:

    python -m venv thermox-venv && thermox-venv/bin/pip install thermox
    python benchmarks/emulators.py --thermox-python thermox-venv/bin/python

thermox draws every read of a trajectory and averages them; heatbath draws the average from its law, which is not the same task
with the same answer but a shorter way to it. Like for like is the row "every read", where heatbath too draws each read
(`Emulator.read_by_read`, as it must where a converter makes reads differ from voltages). Seconds are of CPU, all
threads together, one thread asked for on both sides, float32, the best of a few runs after one that compiles. Accuracy: m
solves in the eigenbasis of A, less their exact mean and over their exact deviation by law (b), have a mean square of
1 ± √(2/mn); an inverse errs by what law (d) says. For the fast law, whose reading is the analog average over the same time,
law (a) takes the place of (b).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from heatbath.experiments.environment import host, versions
from heatbath.machines import (
    CorrelatedNoise,
    Emulator,
    ExactDynamics,
    Machine,
    MachineSpec,
    Schedule,
    SettledApproximation,
)
from heatbath.machines.dynamics import Clock, average
from heatbath.machines.dynamics.base import READING
from heatbath.machines.dynamics.ornstein_uhlenbeck import covariance_variance
from heatbath.machines.oracle import oracle

READS, INVERSE_READS, DT, BURN_IN = 1000, 2000, 1.0, 200  # as many inverse reads as keep n = 1024 short
MACHINE = Machine(MachineSpec(name="thermox's", tau=1.0, noise_volts_rms=math.sqrt(0.5)))
UNIT = Machine(MachineSpec(name="thermox's, for inverses", tau=1.0, noise_volts_rms=1.0))  # there 1/β = 1
RESULTS = Path(__file__).parent / "results" / "emulators.json"


def problem(n: int, condition: float = 10.0) -> tuple[Tensor, Tensor]:
    """A matrix with largest entry 1 and a drive at full scale, float64."""
    generator = torch.Generator().manual_seed(n)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)) @ basis.mT
    matrix = 0.5 * (matrix + matrix.mT)
    drive = torch.randn(n, generator=generator, dtype=torch.float64)
    return matrix / matrix.abs().max(), drive / drive.abs().max()


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:  # Any: whatever the work returns
    """Best CPU seconds after one run to warm up, and the last result."""
    result, seconds = work(), []
    for _ in range(repeats):
        begin = time.process_time()
        result = work()
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def whitened(values: Tensor, matrix: Tensor, drive: Tensor, *, reads: int | None) -> float:
    """Mean square of solves `[m, n]` in units of their exact deviation: 1 ± √(2/mn) for an exact emulator."""
    rates, modes = torch.linalg.eigh(matrix)
    law = average(rates, Clock(BURN_IN * DT, READS * DT, reads), noise=0.5)
    deviation = law.covariance[..., READING, READING].sqrt()
    z = (values.double() @ modes - law.gain[..., READING] * (drive @ modes)) / deviation
    return z.square().mean().item()


def inverse_error(values: Tensor, matrix: Tensor, scale: float) -> float:
    """Frobenius error over what law (d) predicts; about 1 for an exact emulator."""
    rates = torch.linalg.eigvalsh(matrix)
    predicted = covariance_variance(rates, interval=DT, reads=INVERSE_READS, noise=1.0).sum().sqrt()
    return ((values.double() * scale - torch.linalg.inv(matrix)).norm() / predicted).item()


def ours(n: int, repeats: int) -> dict[str, Any]:  # Any: JSON values
    """Seconds and accuracy of this library."""
    matrix, drive = problem(n)
    single, row = matrix.float(), drive.float()
    sampled = Schedule(BURN_IN * DT, READS * DT, READS)
    analog = Schedule(BURN_IN * DT, READS * DT)
    generator = torch.Generator().manual_seed(n)
    found: dict[str, Any] = {}
    each = Machine(Emulator(MACHINE.spec, read_by_read=True))
    laws = (
        ("exact law", MACHINE, ExactDynamics, sampled, 10),
        ("fast law", MACHINE, SettledApproximation, analog, 10),
        ("every read", each, ExactDynamics, sampled, 1),
    )
    for name, machine, law, schedule, times in laws:

        def prepare(machine: Machine = machine, law: Any = law, schedule: Schedule = schedule) -> Any:  # Any: a Programmed
            return machine.program(single, schedule=schedule, circuit=law, check=False)

        def run(held: Any, rows: Tensor, machine: Machine = machine, schedule: Schedule = schedule) -> Tensor:  # Any: the same
            return machine.run(held, rows, schedule=schedule, keep_end=False, generator=generator).mean

        first, _ = timed(lambda prepare=prepare, run=run: run(prepare(), row), repeats)
        held = prepare()
        cached, _ = timed(lambda run=run, held=held: run(held, row), times * repeats)
        batch, values = timed(lambda run=run, held=held: run(held, row.expand(64, n)), repeats)
        found[name] = {
            "uncached": first,
            "cached": cached,
            "cached, per drive of 64": batch / 64,
            "mean square in exact deviations": whitened(values, matrix, drive, reads=schedule.reads),
        }
    watch = {"reads": INVERSE_READS, "interval": DT, "burn_in": BURN_IN * DT}

    def invert() -> Tensor:
        return UNIT.read_covariance(UNIT.program(single, check=False), **watch, generator=generator).inverse

    seconds, value = timed(invert, max(1, repeats // 2))
    found["inverse"] = {"uncached": seconds, "error over law (d)": inverse_error(value, matrix, 1.0)}
    return found


def uneven(coupling: float) -> dict[str, Tensor]:
    """Two coupled nodes whose noise differs tenfold: matrix, noise covariance, exact stationary covariance."""
    matrix = torch.tensor([[1.0, coupling], [coupling, 1.0]], dtype=torch.float64)
    noise = torch.diag(torch.tensor([1.0, 10.0], dtype=torch.float64))
    exact = torch.from_numpy(scipy.linalg.solve_continuous_lyapunov(matrix.numpy(), noise.numpy()))
    return {"matrix": matrix, "noise": noise, "exact": exact}


def off(got: Tensor, exact: Tensor) -> float | str:
    """Relative error, or that there is none."""
    error = ((got.double() - exact).norm() / exact.norm()).item()
    return error if math.isfinite(error) else "not finite"


def ours_uneven(case: dict[str, Tensor]) -> dict[str, float | str]:
    """Errors of this library's stationary covariance: of the law, and of 20,000 reads."""
    machine = Machine(MachineSpec(name="uneven", tau=1.0, noise_volts_rms=math.sqrt(5.0)))  # (2/β) R = noise, R ≤ 1
    once = Schedule(200.0, 0.0, reads=1)
    programmed = machine.program(case["matrix"], schedule=once, circuit=CorrelatedNoise(case["noise"] / 10))
    dynamics = oracle(programmed).dynamics
    root, modes = dynamics.root[:2], dynamics.modes
    reading = machine.read_covariance(
        programmed, reads=20_000, interval=20.0, burn_in=200.0, generator=torch.Generator().manual_seed(0)
    )
    return {
        "stated": off(modes @ root @ root.mT @ modes.mT, case["exact"]),
        "sampled": off(reading.inverse * machine.spec.noise, case["exact"]),
    }


def theirs(
    python: str, sizes: list[int], repeats: int, cases: dict[float, dict[str, Tensor]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the thermox side; its timings and its answers."""
    arrays: dict[str, Any] = {"sizes": sizes, "repeats": repeats, "reads": READS, "inverse_reads": INVERSE_READS}
    arrays |= {"dt": DT, "burn_in": BURN_IN, "couplings": list(cases)}
    for coupling, case in cases.items():
        arrays |= {f"uneven_{name}_{coupling}": case[name].numpy() for name in ("matrix", "noise")}
    for n in sizes:
        matrix, drive = problem(n)
        arrays |= {f"matrix{n}": matrix.float().numpy(), f"drive{n}": drive.float().numpy()}
    threads = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    alone = {**os.environ, "XLA_FLAGS": threads, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    alone.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "problems.npz", **arrays)
        script = Path(__file__).with_name("emulators_thermox.py")
        call = [python, str(script), f"{folder}/problems.npz", f"{folder}/answers.npz"]
        done = subprocess.run(call, env=alone, stdout=subprocess.PIPE, text=True, check=True)
        answers = dict(np.load(Path(folder) / "answers.npz"))
    return json.loads(done.stdout), answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--thermox-python", required=True, help="a Python that has thermox")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {coupling: uneven(coupling) for coupling in (0.5, 0.9)}
    timings, answers = theirs(options.thermox_python, options.sizes, options.repeats, cases)
    rows = []
    for n in options.sizes:
        matrix, drive = problem(n)
        rival, own = timings["rows"][str(n)], ours(n, options.repeats)
        rival["solve"]["mean square in exact deviations"] = whitened(
            torch.from_numpy(answers[f"solve{n}"]), matrix, drive, reads=READS
        )
        rival["inverse"]["error over law (d)"] = inverse_error(torch.from_numpy(answers[f"inverse{n}"]), matrix, 1.0)
        ratios = {
            "uncached, exact law": rival["solve"]["uncached"] / own["exact law"]["uncached"],
            "uncached, fast law": rival["solve"]["uncached"] / own["fast law"]["uncached"],
            "cached, exact law": rival["solve"]["cached"] / own["exact law"]["cached"],
            "cached, exact law, per drive of 64": rival["solve"]["cached"] / own["exact law"]["cached, per drive of 64"],
            "uncached, every read": rival["solve"]["uncached"] / own["every read"]["uncached"],
            "cached, every read": rival["solve"]["cached"] / own["every read"]["cached"],
            "inverse": rival["inverse"]["uncached"] / own["inverse"]["uncached"],
        }
        rows.append({"n": n, "thermox": rival, "heatbath": own, "times faster": ratios})
        print(n, json.dumps(ratios))
    not_exact = []
    for coupling, case in cases.items():
        rival = {k: off(torch.from_numpy(answers[f"uneven_{k}_{coupling}"]), case["exact"]) for k in ("stated", "sampled")}
        not_exact.append({"coupling": coupling, "thermox": rival, "heatbath": ours_uneven(case)})
        print(json.dumps(not_exact[-1]))
    record = {
        "question": __doc__.split("\n", 1)[0],
        "seconds": "CPU, one thread, float32, best of a few runs",
        "law": "dx = -A (x - A^-1 b) dt + dW, condition number 10, largest entry 1",
        "reads": {"solve": READS, "inverse": INVERSE_READS, "interval in tau": DT, "burn-in in tau": BURN_IN},
        "environment": {**host(torch.device("cpu")), "packages": versions(), "thermox side": timings["packages"]},
        "rows": rows,
        "where thermox is not exact": {
            "problem": "stationary covariance of dx = -A x dt + D^(1/2) dW with A = [[1, c], [c, 1]], D = diag(1, 10)",
            "cases": not_exact,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
