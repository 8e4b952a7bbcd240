"""Thermodynamic solvers: a machine relaxes to the answer.

With Â programmed and b̂ driven, the cells' mean settles to Â⁻¹b̂ and their covariance to Â⁻¹ (`heatbath.machines`). Two uses in
K-FAC (Donatella et al. 2025, arXiv 2502.08603): *invert* a factor once per refresh (method 1), or keep it programmed and
*solve* for each right-hand side (method 2).

A drive is read after a fixed time t, not when converged: a mode λ of Â reaches 1 − e^{−λt/τ} of its answer, so modes slower
than τ/t are damped, as by a truncated iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from heatbath.machines import Machine, Schedule
from heatbath.operators import Dense, Diagonal, Operator
from heatbath.solvers.base import Outcome, Solution, Solver, usable
from heatbath.solvers.held import Held, notes_of, outcome_of, program
from heatbath.solvers.inverse import Inverse, apply_inverse, invert_diagonal
from heatbath.solvers.prediction import measured_covariance_error
from heatbath.solvers.products import mark_nonfinite, members
from heatbath.work import Work, elementwise


@dataclass(frozen=True)
class Driven:
    """Read an inverse as n driven solves; noise enters the mean only, so there is no sampling floor.

    Args:
        schedule: for each of the n drives; None: `default_schedule`.
        warm_start: start each drive where the last inverse ended.
    """

    schedule: Schedule | None = None
    warm_start: bool = False


@dataclass(frozen=True)
class UnitVectors(Driven):
    """Drive the unit vectors: the answers are the inverse, and nothing is left to do digitally."""

    def drives(self, like: Tensor) -> Tensor:
        """What is driven, one after the other, `[n, n]`, for machines that hold matrices `like`."""
        return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)

    def inverse(self, answers: Tensor) -> tuple[Tensor, Work]:
        """The inverse `[*stack, n, n]` from the answers, and what that takes digitally."""
        return answers, Work()


@dataclass(frozen=True)
class CosineVectors(Driven):
    """Drive the cosine transform's vectors, and transform the answers back digitally.

    A unit vector's answer is a peak beside small entries, and the read converter's range goes by the peak. Where k features
    share an eigenvalue far above the rest, M⁻¹ has entries of about −1/k beside the peak. They are read as zero once
    k > 2^bits, and the inverse as read is too large along that direction by as much as the eigenvalue stands out, or negative.
    The answers to waves have no peak, so rounding acts as noise, whose norm does not grow with n. It costs n² log n digital
    operations, and drives are rounded, which unit vectors are not.
    """

    def drives(self, like: Tensor) -> Tensor:
        """C_ki = c_k cos(π k (i + ½)/n), orthonormal rows `[n, n]`, for machines that hold matrices `like`."""
        k = torch.arange(like.shape[-1], dtype=torch.float64, device=like.device)
        waves = torch.cos(torch.pi / len(k) * k.unsqueeze(-1) * (k + 0.5))
        return (waves * _lengths(len(k), like).unsqueeze(-1)).to(like.dtype)

    def inverse(self, answers: Tensor) -> tuple[Tensor, Work]:
        """Cᵀ Y of the answers Y = C M⁻¹, `[*stack, n, n]`, by a Fourier transform of 2n numbers, and what that takes."""
        n = answers.shape[-1]
        turns = torch.pi / (2 * n) * torch.arange(n, dtype=torch.float64, device=answers.device)
        spectrum = _lengths(n, answers) * torch.exp(1j * turns)
        spectrum[0] *= 2  # the other frequencies enter twice, as they do from −n to n in the spectrum of a real signal
        turned = answers * spectrum.to(answers.dtype.to_complex()).unsqueeze(-1)
        found = n * torch.fft.irfft(turned, n=2 * n, dim=-2)[..., :n, :]
        operations = round(2.5 * math.log2(2 * n)) + 1  # of a fast transform of real numbers, each of 2n
        return found, Work.of(elementwise(2 * n * n, operations), max(answers.shape[:-2].numel(), 1))


def _lengths(n: int, like: Tensor) -> Tensor:
    """c_k, which makes the cosine vectors' lengths one, float64 `[n]`."""
    lengths = torch.full((n,), math.sqrt(2 / n), dtype=torch.float64, device=like.device)
    lengths[0] = math.sqrt(1 / n)
    return lengths


@dataclass(frozen=True)
class Fluctuations:
    """Read an inverse from the covariance of the undriven cells: the published method 1.

    A relative error ε takes between (n+1)/ε² and (n+1)κ/ε² time constants at any temperature: 5·10⁵ τ for n = 1536, κ = 10,
    ε = 0.1. Read noise and rounding add to the diagonal: a read-out that shows an error of 100 % or more by itself is
    INACCURATE (`solvers.prediction`).

    Args:
        reads: number of reads.
        interval: seconds between reads.
        burn_in: seconds before the first.
    """

    reads: int
    interval: float
    burn_in: float


@dataclass(frozen=True)
class ThermodynamicSolve(Solver[Held]):
    """Method 2: program the matrix at each refresh, drive the machine for each right-hand side.

    Prefer it where drives are few per refresh; the digital side then does no n³ work at all.

    Args:
        machine: the machine.
        schedule: for each drive; None: `default_schedule`.
        equilibrate: scale to a unit diagonal before programming.
        warm_start: start each drive where the last one ended.
    """

    machine: Machine
    schedule: Schedule | None = None
    equilibrate: bool = True
    warm_start: bool = False

    def prepare(
        self, operator: Operator, *, previous: Held | None = None, generator: torch.Generator | None = None
    ) -> tuple[Held, Work]:
        schedule = self.schedule or default_schedule(self.machine)
        held, work = program(self.machine, operator, schedule, equilibrate=self.equilibrate, generator=generator)
        if self.warm_start and previous is not None:
            held = Held(held.programmed, held.root, held.outcome, previous.carry)
        return held, work

    def solve(
        self, state: Held, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        root = state.root.reshape(*state.root.shape[:-1], *(1,) * (rhs.ndim - state.root.ndim), -1)
        start = state.carry if state.carry is not None and state.carry.shape == rhs.shape else None
        reading = self.machine.run(
            state.programmed,
            rhs * root,
            schedule=self.schedule or default_schedule(self.machine),
            start=start if guess is None else None,
            guess=None if guess is None else guess / root,
            keep_end=self.warm_start,
            generator=generator,
        )
        value = reading.mean * root
        codes = mark_nonfinite(outcome_of(reading, state.outcome), value)
        digital = Work.of(elementwise(rhs.numel(), 2)) if self.equilibrate else Work()
        successor = Held(state.programmed, state.root, state.outcome, reading.end) if self.warm_start else None
        notes = {**notes_of(reading), "matrix_clipped": state.programmed.clipped}
        return Solution(value, reading.work + digital, codes, notes=notes, state=successor)

    def outcome(self, state: Held) -> Tensor:
        return state.outcome


@dataclass(frozen=True)
class ThermodynamicInverse(Solver[Inverse]):
    """Method 1: let the machine invert at each refresh; apply the inverse digitally.

    Prefer it where many right-hand sides follow a refresh.

    Args:
        machine: the machine.
        readout: `CosineVectors` (driven solves, the default), `UnitVectors` (the same of unit vectors) or `Fluctuations`
            (covariance, as published).
        equilibrate: scale to a unit diagonal before programming.
    """

    machine: Machine
    readout: CosineVectors | UnitVectors | Fluctuations = field(default_factory=CosineVectors)
    equilibrate: bool = True

    def prepare(
        self, operator: Operator, *, previous: Inverse | None = None, generator: torch.Generator | None = None
    ) -> tuple[Inverse, Work]:
        if isinstance(operator, Diagonal):
            return invert_diagonal(operator)
        if isinstance(self.readout, Fluctuations):
            held, work = program(self.machine, operator, None, equilibrate=self.equilibrate, generator=generator)
            reading = self.machine.read_covariance(
                held.programmed,
                reads=self.readout.reads,
                interval=self.readout.interval,
                burn_in=self.readout.burn_in,
                generator=generator,
            )
            raw, codes, work, carry = reading.inverse, outcome_of(reading, held.outcome), work + reading.work, None
            volts = raw * (self.machine.spec.noise * held.programmed.scale[..., None, None])
            useless = ~(measured_covariance_error(volts, self.machine.spec, self.readout.reads) < 1)
            work = work + Work.of(elementwise(operator.size**2, 4), members(operator))
            codes = torch.where(useless & usable(codes), Outcome.INACCURATE.code, codes)
            clipped = reading.read_clipped
        else:
            schedule = self.readout.schedule or default_schedule(self.machine)
            held, work = program(self.machine, operator, schedule, equilibrate=self.equilibrate, generator=generator)
            warm = self.readout.warm_start
            driven = self.machine.run(
                held.programmed,
                self.readout.drives(held.programmed.codes).expand_as(held.programmed.codes),
                schedule=schedule,
                start=previous.carry if warm and previous is not None else None,
                keep_end=warm,
                generator=generator,
            )
            answers, transform = self.readout.inverse(driven.mean)
            raw, codes = 0.5 * (answers + answers.mT), outcome_of(driven, held.outcome)
            work, carry = work + driven.work + transform, driven.end
            clipped = driven.read_clipped + driven.drive_clipped
        inverse = held.root.unsqueeze(-1) * raw * held.root.unsqueeze(-2)
        return Inverse(Dense(inverse), mark_nonfinite(codes, inverse), carry, clipped=clipped + held.programmed.clipped), work

    def solve(
        self, state: Inverse, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        return apply_inverse(state, rhs)

    def outcome(self, state: Inverse) -> Tensor:
        return state.outcome


def default_schedule(machine: Machine) -> Schedule:
    """The machine's stated time to converge, four fifths of it settling and one fifth analog averaging."""
    total = machine.spec.default_settle_seconds
    return Schedule(burn_in=0.8 * total, duration=0.2 * total)
