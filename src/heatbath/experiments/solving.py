"""One linear system on one machine: how accurate, and how the error falls with the time a drive is given.

The machine is programmed once. Then, for each of a row of times, the system is solved again and again, each time with fresh
noise; four fifths of a time are for settling and one fifth for averaging, as in the machine's own schedule. The curve beside
the points is `heatbath.solvers.expected`, which knows the law and what the machine holds, and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from heatbath.experiments.csv_text import table_csv
from heatbath.machines import ClosedLoop, ExactDynamics, Machine, Schedule
from heatbath.machines.expected import expected_error
from heatbath.operators import Dense
from heatbath.solvers import Crossbar, Refined, Solver, ThermodynamicSolve, default_schedule, linalg
from heatbath.solvers.held import Held, program
from heatbath.solvers.prediction import Prediction, predict, warn_if_useless
from heatbath.solvers.refined import Refinable

BEFORE, AFTER = 20, 5  # times before and after the machine's own, evenly apart in their logarithm
REPEATS, ROWS = 24, 8  # solves at each time, and right-hand sides of the study; more are solved, not studied


def _refined(machine: Machine, schedule: Schedule) -> Solver[Any]:  # Any: any state
    return Refined(ThermodynamicSolve(machine, schedule))


def _crossbar(machine: Machine, schedule: Schedule) -> Solver[Any]:  # Any: any state
    return Crossbar(machine, settle_seconds=schedule.seconds)


MACHINE_SOLVERS: Mapping[str, Callable[[Machine, Schedule], Solver[Any]]] = {  # Any: any state
    "thermodynamic-solve": ThermodynamicSolve,
    "refined": _refined,
    "crossbar": _crossbar,
}


@dataclass(frozen=True)
class Task:
    """What to solve, on what, and how.

    Args:
        machine: the machine.
        solver: a key of `MACHINE_SOLVERS`.
        matrix: M, float64 `[n, n]`, symmetric positive definite.
        rhs: b, float64 `[n]` or `[m, n]`.
        seed: of the machine's noise.

    Raises:
        ValueError: right-hand sides that are all zero.
    """

    machine: Machine
    solver: str
    matrix: Tensor
    rhs: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        if not bool(self.rhs.any()):
            raise ValueError("the right-hand side is all zeros, and so is the solution: nothing to measure an error against")

    @cached_property
    def answer(self) -> Tensor:
        """M⁻¹b, rows, by a digital solve in float64.

        Raises:
            ValueError: a matrix that is singular in float64.
        """
        columns, info = torch.linalg.solve_ex(self.matrix, self.rhs.reshape(-1, len(self.matrix)).mT)
        if int(info) or not bool(torch.isfinite(columns).all()):
            raise ValueError("the matrix is singular in float64, so there is no solution to compare with; add to its diagonal")
        return columns.mT

    def schedule(self, seconds: float | None = None) -> Schedule:
        """The machine's own schedule for a drive, or the same shortened or stretched to `seconds`."""
        own = default_schedule(self.machine)
        share = 1.0 if seconds is None else seconds / own.seconds
        return Schedule(own.burn_in * share, own.duration * share)

    def generator(self) -> torch.Generator:
        """Randomness, the same at each use."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Solved:
    """A task, solved once.

    Args:
        result: from `linalg.solve`.
        error: relative error against the digital answer.
        prediction: error budget before the run, of one drive.
    """

    result: linalg.Result
    error: float
    prediction: Prediction


@dataclass(frozen=True)
class Settling:
    """Errors against time.

    Args:
        seconds: times of a drive, `[t]`.
        measured: relative errors of repeated solves, `[t][r]`.
        expected: root-mean-square relative error in closed form, `[t]`; of one drive without refinement.
        refined: whether the measured solves were refined digitally, and the closed form is for one drive.

    The machine's own schedule is number `BEFORE` of the times.
    """

    seconds: list[float]
    measured: list[list[float]]
    expected: list[float]
    refined: bool = False

    @property
    def rms(self) -> list[float]:
        """Root mean square of the measured errors at each time."""
        return [math.sqrt(sum(e * e for e in row) / len(row)) for row in self.measured]

    def to_csv(self) -> str:
        """Seconds, closed form, root mean square, and every measured error."""
        head = ["seconds", "closed_form", "measured_rms", *(f"measured_{r + 1}" for r in range(len(self.measured[0])))]
        rows = zip(self.seconds, self.expected, self.rms, self.measured, strict=True)
        return table_csv(head, [(*row[:3], *row[3]) for row in rows], digits=7)


def forecast(task: Task) -> Prediction:
    """The error budget of one drive, before anything is programmed; warns above 10 %."""
    root = task.matrix.diagonal().rsqrt()
    balanced = root[:, None] * task.matrix * root
    values = torch.linalg.eigvalsh(balanced).clamp_min(1e-300)
    rows = task.rhs.reshape(-1, len(task.matrix)) * root
    drive = float((rows.norm(dim=-1) / rows.abs().amax(-1).clamp_min(1e-300)).median())
    prediction = predict(task.machine, values, task.schedule(), drive)
    if task.solver == "crossbar":
        prediction = _closed_loop(task, prediction, balanced, values)
    causes = ", ".join(f"{name} {float(value):.1e}" for name, value in budget(prediction).items())
    remedy = "raise --bits, add damping to the diagonal, or take --solver refined"
    plain = torch.linalg.eigvalsh(task.matrix)
    warn_if_useless(prediction.total, plain[-1] / plain[0], f"machine {task.machine.spec.name!r}: {causes}", remedy)
    return prediction


def _closed_loop(task: Task, prediction: Prediction, balanced: Tensor, values: Tensor) -> Prediction:
    """The budget of a crossbar: no noise, slower modes (those of D⁻¹Â), and the finite gain D/A₀ as an error of the matrix."""
    row = 1 + balanced.abs().sum(-1)
    slowest = torch.linalg.eigvalsh(balanced * (row[:, None] * row).rsqrt())[0]
    gain = task.machine.spec.amplifier_gain or math.inf
    return replace(
        prediction,
        rounding=torch.hypot(prediction.rounding, row.max() / (gain * values[0])),
        settling=torch.exp(-slowest * task.schedule().seconds / task.machine.spec.time_constant),
        noise=torch.zeros_like(prediction.noise),
    )


def budget(prediction: Prediction) -> dict[str, Tensor]:
    """The parts of a prediction by name."""
    return {name: getattr(prediction, name) for name in ("rounding", "settling", "noise", "conversion")}


def solve(task: Task) -> Solved:
    """Predict, warn, and solve once by the machine's own schedule.

    Raises:
        ValueError: more cells needed than the machine has.
    """
    prediction = forecast(task)
    solver = MACHINE_SOLVERS[task.solver](task.machine, task.schedule())
    result = linalg.solve(task.matrix, task.rhs, solver=solver, generator=task.generator())
    error = float((result.value.reshape(task.answer.shape) - task.answer).norm() / task.answer.norm())
    return Solved(result, error, prediction)


def settling(task: Task) -> Settling:
    """Solve at a row of times, again and again, from one programming."""
    operator, generator = Dense(task.matrix), task.generator()
    crossbar = task.solver == "crossbar"
    circuit = ClosedLoop(task.machine.spec.amplifier_gain) if crossbar else ExactDynamics
    held, _ = program(task.machine, operator, None, circuit=circuit, generator=generator)
    rows, answer = task.rhs.reshape(-1, len(task.matrix))[:ROWS], task.answer[:ROWS]
    own = task.schedule().seconds
    ratio = max(2 * own / task.machine.spec.time_constant, 4.0) ** (1 / BEFORE)  # from half a time constant on
    times = [own * ratio ** (k - BEFORE) for k in range(BEFORE + AFTER + 1)]
    measured, expected = [], []
    for seconds in times:
        schedule = task.schedule(seconds)
        errors = _repeat(MACHINE_SOLVERS[task.solver](task.machine, schedule), held, operator, rows, answer, generator)
        measured.append(errors.tolist())
        read = Schedule(seconds, 0.0, reads=1) if crossbar else schedule
        expected.append(float(expected_error(task.machine, held.programmed, held.root, rows, read, answer)))
    return Settling(times, measured, expected, refined=task.solver == "refined")


def _repeat(
    solver: Solver[Any],  # Any: any state
    held: Held,
    operator: Dense,
    rows: Tensor,
    answer: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Relative errors of repeated solves, `[r]`."""
    state = Refinable(held, operator) if isinstance(solver, Refined) else held
    found = solver.solve(state, rows.expand(REPEATS, *rows.shape), generator=generator).value
    return (found - answer).flatten(1).norm(dim=-1) / answer.norm()
