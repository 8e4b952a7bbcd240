"""How cost grows, measured: exponents in size n, condition number κ and number of drives, next to the claimed ones.

Counted: operations, bits and drives of a layer n × n, from the work of real steps on shapes. Measured: machine time until an
answer is right to ε, on an emulated machine with random matrices of condition number κ (eigenvalues evenly spread in logarithm,
the largest 1), by three causes that do not mix:

    settling      no noise: the time at which the error of the mean falls to ε
    noise         settled: the averaging time after which thermal noise is ε of the answer, T = T₀ (error at T₀ / ε)²; for
                  drives without a preferred direction, and for the worst one, along the largest eigenvalue
    fluctuations  the watching time after which the covariance is right to ε, in the same way

Steps of conjugate gradients and of Newton–Schulz to the same ε are counted beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from heatbath.costs import StepWork
from heatbath.experiments.studies.crossover import count_layers
from heatbath.experiments.studies.power_law import PowerLaw, fit_power_law
from heatbath.experiments.studies.runtime import Runtime, Watch
from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.operators import Dense
from heatbath.solvers import ConjugateGradient, NewtonSchulz

ERROR = 0.01  # ε of means and of digital solvers
COVARIANCE_ERROR = 0.1
FIXED_SIZE, FIXED_CONDITION = 48, 16.0
SIZES = (12, 24, 48, 96)
CONDITIONS = (4.0, 16.0, 64.0, 256.0)
LAYERS = (512, 1024, 2048, 4096)
PAPER = "O(n²κ²) a layer, Donatella et al. 2025, arXiv 2502.08603"
MODEL = "timing model of Donatella et al. 2024, arXiv 2405.13817"
ALGEBRA = "Aifer et al. 2023, arXiv 2308.05660, from memory of the paper"

QUIET = MachineSpec(name="quiet", tau=1.0)
NOISY = MachineSpec(name="noisy", tau=1.0, noise_volts_rms=0.05)


@dataclass(frozen=True)
class Growth:
    """How one quantity grows with one variable.

    Args:
        quantity: what is counted or measured.
        variable: what it grows with.
        x: values of the variable.
        y: of the quantity.
        claimed: the exponent that is claimed; None: none is.
        source: who claims it.
    """

    quantity: str
    variable: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    claimed: float | None = None
    source: str = ""

    @property
    def law(self) -> PowerLaw:
        """The fit."""
        return fit_power_law(self.x, self.y)


Claim = tuple[float | None, str]
Measure = Callable[[int, float, torch.Generator], float]

COUNTED: tuple[tuple[str, Callable[[StepWork], float], str, Claim], ...] = (
    ("operations to refresh by Cholesky", lambda s: s.refresh.flops, "cholesky", (3, "textbook")),
    ("operations to apply the inverses", lambda s: s.apply.flops, "cholesky", (3, "textbook")),
    ("bits to program a matrix", lambda s: _bits(s, "upload_bits"), "solve", (2, MODEL)),
    ("drives of a step, solve", lambda s: sum(j.drives * c for j, c in (s.first + s.second).jobs.items()), "solve", (1, MODEL)),
    (
        "machine time of a step at a fixed settling time",
        lambda s: (s.first + s.second).analog_seconds,
        "solve",
        (1, MODEL),
    ),
    ("bits sent with drives and results, solve", lambda s: _bits(s, "drive_bits") + _bits(s, "read_bits"), "solve", (2, MODEL)),
    ("digital operations of a step, solve", lambda s: s.apply.flops + s.refresh.flops, "solve", (2, MODEL)),
    ("digital operations to apply the inverses, inverse", lambda s: s.apply.flops, "inverse", (None, "")),
)

MEASURED: tuple[tuple[str, str, Claim, Claim], ...] = (  # key, quantity, claims in n and κ
    ("settling", "settling time of one drive", (None, ""), (None, "")),
    ("noise", "averaging time of one drive, no preferred direction", (1, ALGEBRA), (2, ALGEBRA)),
    ("worst", "averaging time of one drive, the worst direction", (1, ALGEBRA), (2, ALGEBRA)),
    ("fluctuations", "watching time of the covariance", (2, ALGEBRA), (1, ALGEBRA)),
    ("gradients", "products of conjugate gradients", (0, "textbook"), (0.5, "textbook")),
    ("newton-schulz", "steps of Newton–Schulz", (None, ""), (0, "textbook: logarithmic")),
)


def _bits(step: StepWork, name: str) -> float:
    phases = (step.programming, step.inversion, step.first, step.second)
    return sum(getattr(job, name) * max(job.drives, 1) * count for phase in phases for job, count in phase.jobs.items())


@dataclass(frozen=True)
class Complexity:
    """The study's setting.

    Args:
        runtime: whose methods are counted.
        layers: sizes of square layers to count.
        sizes: n of matrices on the emulated machine, at κ = 16.
        conditions: κ of matrices of 48 rows.
        seeds: matrices for each.

    Raises:
        ValueError: fewer than two sizes or conditions, or no seed.
    """

    runtime: Runtime
    layers: tuple[int, ...] = LAYERS
    sizes: tuple[int, ...] = SIZES
    conditions: tuple[float, ...] = CONDITIONS
    seeds: int = 4

    def __post_init__(self) -> None:
        if min(len(self.layers), len(self.sizes), len(self.conditions)) < 2 or self.seeds < 1:
            raise ValueError("exponents need at least two layers, sizes and conditions, and one seed")

    def run(self, folder: Path, *, watch: Watch = lambda name, fresh: None) -> list[Growth]:
        """Count and measure what is missing.

        Args:
            folder: of counts and measurements.
            watch: told of each, and whether it was made just now.
        """
        counted = count_layers(self.runtime, folder, sizes=self.layers, watch=watch)
        found = [
            Growth(
                quantity, "n", tuple(map(float, self.layers)), tuple(of(counted[n].steps[name]) for n in self.layers), *claim
            )
            for quantity, of, name, claim in COUNTED
        ]
        drives = [2.0**k for k in range(6)]
        found.append(
            Growth("machine time of m drives", "drives", tuple(drives), tuple(_serial(int(m)) for m in drives), 1, PAPER)
        )
        store = _Store(folder / "measured.json", watch)
        for key, quantity, in_size, in_condition in MEASURED:
            y = tuple(self._mean(store, key, n, FIXED_CONDITION) for n in self.sizes)
            found.append(Growth(quantity, "n", tuple(map(float, self.sizes)), y, *in_size))
            y = tuple(self._mean(store, key, FIXED_SIZE, k) for k in self.conditions)
            found.append(Growth(quantity, "κ", self.conditions, y, *in_condition))
            if key == "worst":  # a step of method 2 drives every factor n times
                by_size, by_condition = found[-2:]
                step = "averaging time of a step: n drives, the worst direction"
                total = tuple(n * y for n, y in zip(by_size.x, by_size.y, strict=True))
                found.append(Growth(step, "n", by_size.x, total, 2, PAPER))
                found.append(Growth(step, "κ", by_condition.x, by_condition.y, 2, PAPER))
        return found

    def _mean(self, store: _Store, key: str, size: int, condition: float) -> float:
        return store.get(f"{key}-n{size}-kappa{condition:g}-seeds{self.seeds}", lambda: self._measure(key, size, condition))

    def _measure(self, key: str, size: int, condition: float) -> float:
        values = []
        for seed in range(self.seeds):
            generator = torch.Generator().manual_seed(seed)
            values.append(MEASURES[key](size, condition, generator))
        return sum(values) / len(values)


@dataclass(frozen=True)
class _Store:
    """Measurements in one file, written after each."""

    path: Path
    watch: Watch

    def get(self, name: str, make: Callable[[], float]) -> float:
        """The stored value, or a new one."""
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self.watch(name, name not in known)
        if name not in known:
            known[name] = make()
            waiting = self.path.with_suffix(".part")
            waiting.write_text(json.dumps(known, indent=0) + "\n", encoding="utf-8")
            waiting.replace(self.path)  # a kill leaves the old file or the new one
        return float(known[name])


def _serial(drives: int) -> float:
    machine = Machine(QUIET)
    programmed = machine.program(torch.eye(4, dtype=torch.float64))
    reading = machine.run(programmed, torch.ones(drives, 4, dtype=torch.float64), schedule=Schedule(50.0, 0.0, 1))
    return reading.work.analog_seconds


def spread_matrix(size: int, condition: float, generator: torch.Generator) -> Tensor:
    """A random symmetric matrix with eigenvalues from 1/κ to 1, evenly spread in logarithm, in a random basis; float64."""
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(-math.log10(condition), 0, size, dtype=torch.float64)
    matrix = (basis * values) @ basis.T
    return 0.5 * (matrix + matrix.T)


def _relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


def settling_time(size: int, condition: float, generator: torch.Generator) -> float:
    """Time at which the means of eight random drives are right to ε, by bisection; τ = 1."""
    matrix = spread_matrix(size, condition, generator)
    drives = torch.randn(8, size, generator=generator, dtype=torch.float64)
    truth = torch.linalg.solve(matrix, drives.T).T
    machine = Machine(QUIET, tolerance=0)
    programmed = machine.program(matrix)

    def error(time: float) -> float:
        reading = machine.run(programmed, drives, schedule=Schedule(time, 0.0, 1), keep_end=False, generator=generator)
        return _relative(reading.mean, truth)

    low, high = 0.0, 1.0
    while error(high) > ERROR:
        low, high = high, 2 * high
    for _ in range(24):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if error(middle) > ERROR else (low, middle)
    return high


def _averaging_time(matrix: Tensor, drives: Tensor, condition: float, generator: torch.Generator) -> float:
    """Time after which noise is ε of the answer, from its error at T₀ = 200 κ."""
    time = 200 * condition
    machine = Machine(NOISY, tolerance=0)
    programmed = machine.program(matrix)
    settled = 20 * condition
    reading = machine.run(programmed, drives, schedule=Schedule(settled, time), keep_end=False, generator=generator)
    truth = torch.linalg.solve(matrix, drives.T).T
    return time * (_relative(reading.mean, truth) / ERROR) ** 2


def noise_time(size: int, condition: float, generator: torch.Generator) -> float:
    """For 32 random drives."""
    matrix = spread_matrix(size, condition, generator)
    drives = torch.randn(32, size, generator=generator, dtype=torch.float64)
    return _averaging_time(matrix, drives, condition, generator)


def worst_noise_time(size: int, condition: float, generator: torch.Generator) -> float:
    """For drives along the largest eigenvalue, whose answer is the smallest."""
    matrix = spread_matrix(size, condition, generator)
    worst = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    return _averaging_time(matrix, worst.expand(32, -1), condition, generator)


def fluctuation_time(size: int, condition: float, generator: torch.Generator) -> float:
    """Watching time for a covariance that is right to 10 %, from its error after 200 κ reads τ apart."""
    matrix = spread_matrix(size, condition, generator).expand(4, -1, -1)
    machine = Machine(NOISY, tolerance=0)
    programmed = machine.program(matrix)
    interval, reads = 1.0, 200 * round(condition)
    reading = machine.read_covariance(programmed, reads=reads, interval=interval, burn_in=20 * condition, generator=generator)
    truth = torch.linalg.inv(matrix)
    return reads * interval * (_relative(reading.inverse, truth) / COVARIANCE_ERROR) ** 2


def gradient_steps(size: int, condition: float, generator: torch.Generator) -> float:
    """Products of conjugate gradients until the residual of a random right-hand side is ε."""
    matrix = spread_matrix(size, condition, generator)
    rhs = torch.randn(size, generator=generator, dtype=torch.float64)
    solver = ConjugateGradient(tolerance=ERROR)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    return float(solution.notes["steps"])


def newton_schulz_steps(size: int, condition: float, generator: torch.Generator) -> float:
    """Steps of Newton–Schulz until the inverse's residual is ε."""
    operator = Dense(spread_matrix(size, condition, generator))
    for steps in range(1, 60):
        state, _ = NewtonSchulz(steps=steps, polish=0).prepare(operator)
        if state.residual is not None and float(state.residual) <= ERROR:
            return float(steps)
    raise ValueError(f"Newton–Schulz did not reach {ERROR} in 59 steps at a condition number of {condition:g}")


MEASURES: dict[str, Measure] = {
    "settling": settling_time,
    "noise": noise_time,
    "worst": worst_noise_time,
    "fluctuations": fluctuation_time,
    "gradients": gradient_steps,
    "newton-schulz": newton_schulz_steps,
}
