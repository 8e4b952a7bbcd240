"""How the cells of a machine that holds Â answer a drive, before any converter.

    τ dx = −P(Â x − b̂) dt + sqrt(2 τ P D / β) dW,      P = diag(mobility), D = diag(noise intensity)

A `Dynamics` is what the emulator derives once from the matrix the cells *hold* (never from the one that was meant); it answers
many drives. All vectors are rows `[*stack, m, n]` in units of full scale, all times in units of τ.

| class | derives | exact for |
|---|---|---|
| `ExactDynamics` | eigenvectors | any schedule, start and noise covariance |
| `SettledApproximation` | a Cholesky factor | settled, well averaged readings; states its error |

Circuits differ in their transitions (overdamped, ringing, capacitive) or in the matrix and cells that they make of Â
(`ClosedLoop`), or in their noise (`CorrelatedNoise`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from heatbath.machines.dynamics.cells import Cells
from heatbath.machines.dynamics.ornstein_uhlenbeck import relaxation
from heatbath.machines.dynamics.ringing import oscillator, resonator
from heatbath.machines.dynamics.transition import GaussianTransition
from heatbath.machines.schedule import Schedule
from heatbath.operators import tree

RUNAWAY = 30.0  # growth e^30 of an unstable mode stands for anything larger
END, READING = 0, -1  # places of the voltage and of the reading in the state of a mode


@tree
@dataclass(frozen=True)
class Clock:
    """A `Schedule` in units of τ."""

    burn_in: float
    duration: float
    reads: int | None

    @staticmethod
    def of(schedule: Schedule, tau: float) -> Clock:
        """A schedule of a machine with this time constant."""
        return Clock(schedule.burn_in / tau, schedule.duration / tau, schedule.reads)

    @property
    def interval(self) -> float:
        """Time between reads."""
        return self.duration / (self.reads or 1)


@dataclass(frozen=True, eq=False)
class Excitation:
    """What a run applies to the cells.

    Args:
        drive: the drive at full scale, b̂, `[*stack, m, n]`.
        offset: drive that an attenuator does not lower, `[*stack, 1, n]`.
        start: voltages at the start, `[*stack, m or 1, n]`.
        guess: voltages at the start that the attenuator lowers with the drive, `[*stack, m or 1, n]`.
    """

    drive: Tensor
    offset: Tensor
    start: Tensor
    guess: Tensor

    @staticmethod
    def of_drive(drive: Tensor, offset: Tensor) -> Excitation:
        """A drive from a start at 0 V, with an offset `[*stack, n]`."""
        rest = torch.zeros_like(drive[..., :1, :])
        return Excitation(drive, offset.unsqueeze(-2), rest, rest)


@dataclass(frozen=True, eq=False)
class AnalogResponse:
    """Readings and end states in the coordinates of a `Dynamics`, `[*stack, m, n]`.

    Args:
        proportional: the part of readings that an attenuator lowers.
        constant: the part that it does not.
        end_proportional: the same of the voltages at the end.
        end_constant: the same of the voltages at the end.
    """

    proportional: Tensor
    constant: Tensor
    end_proportional: Tensor
    end_constant: Tensor


class Dynamics(ABC):
    """What the emulator derived from held matrices; a `@tree` dataclass whose tensors lead with `[*stack]`.

    `slowest` `[*stack]` is the smallest rate λ in units of 1/τ, NaN or at most 0 where the held matrix is not positive
    definite; `spread` `[*stack, n]` the stationary variance of each cell over 1/β.
    """

    slowest: Tensor
    spread: Tensor

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports call it."""

    @classmethod
    @abstractmethod
    def of(cls, conductance: Tensor, cells: Cells, clock: Clock | None) -> Self:
        """Derive it.

        Args:
            conductance: Â, `[*stack, n, n]`, symmetric.
            cells: the cells.
            clock: the schedule that will be run, to prepare for; None: not known.
        """

    @abstractmethod
    def respond(
        self, excitation: Excitation, clock: Clock, *, keep_end: bool, generator: torch.Generator | None
    ) -> AnalogResponse:
        """Draw one averaged reading for every row of the excitation; ends are drawn only if they are kept."""

    @abstractmethod
    def reads(self, excitation: Excitation, clock: Clock, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Draw single reads, voltages in chunks `[*stack, m, c, n]`; guesses count as starts."""

    @abstractmethod
    def volts(self, rows: Tensor) -> Tensor:
        """Rows in its own coordinates as voltages."""

    @abstractmethod
    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        """Stated relative errors of the variance and of the mean of a reading, both `[*stack]`."""


class Derivation(Protocol):
    """What derives dynamics from held matrices: a `Dynamics` class, or a circuit with parameters of its own."""

    def of(self, conductance: Tensor, cells: Cells, clock: Clock | None) -> Dynamics:
        """See `Dynamics.of`."""


def transition(
    rates: Tensor,
    time: float,
    *,
    noise: float,
    inertia: float | None = None,
    capacitive: bool = False,
    integral: bool = False,
    mixing: Tensor | None = None,
) -> GaussianTransition:
    """The exact transition of the modes over `time`.

    Args:
        rates: λ, `[*stack, n]`, float64, in units of 1/τ.
        time: in units of τ.
        noise: 1/β.
        inertia: μ, or None.
        capacitive: the matrix is held in capacitances.
        integral: whether the reading gathers ∫ y dt; not with capacitive coupling.
        mixing: C, covariance of the noise between modes `[*stack, n, n]`; None: independent modes. Not with inertia.
    """
    rates = bounded(rates, time)
    if capacitive:
        return resonator(rates, inertia, time).scaled(noise)
    if inertia is not None:
        return oscillator(rates, inertia, time, integral=integral).scaled(noise)
    return relaxation(rates, time, integral=integral, mixing=mixing).scaled(noise)


def average(
    rates: Tensor, clock: Clock, *, noise: float, inertia: float | None = None, mixing: Tensor | None = None
) -> GaussianTransition:
    """From the start, at rest, to the voltage at the end (`END`) and the averaged reading (`READING`) of each mode.

    An integrator averages over [t₀, t₀+T]; k reads are taken at t₀ + j·T/k, j = 0 … k−1.

    Args:
        rates: λ, `[*stack, n]`, float64, in units of 1/τ.
        clock: burn-in, duration and reads.
        noise: 1/β.
        inertia: μ, or None.
        mixing: as for `transition`.
    """
    rates = bounded(rates, clock.burn_in + clock.duration)
    settle = transition(rates, clock.burn_in, noise=noise, inertia=inertia, mixing=mixing)
    if clock.reads is None:
        during = transition(rates, clock.duration, noise=noise, inertia=inertia, integral=True, mixing=mixing)
        return settle.then(during).averaged(clock.duration)
    each = transition(rates, clock.interval, noise=noise, inertia=inertia, mixing=mixing)
    return settle.then(each.after_a_read().repeated(clock.reads)).averaged(clock.reads)


def bounded(rates: Tensor, time: float) -> Tensor:
    """Rates that grow by e^`RUNAWAY` at most within `time`."""
    return rates.clamp(min=-RUNAWAY / time) if time > 0 else rates
