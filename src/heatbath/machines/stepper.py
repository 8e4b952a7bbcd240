"""The steppers: emulation in time, the reference for everything that is not linear.

`ReadByRead` moves the modes exactly from one read to the next and converts each read on its own, so that dither, clipping and
rounding come out right where the white-noise rule does not hold. `Stepper` integrates the cells themselves,

    x ← clip[ x + h P(b̂ − g(t) Âx) + sqrt(2hPD/β) ξ ],

with saturation at the rails in every step and a conductance drift g(t) during the run. Euler–Maruyama has the right stationary
mean for h < 2/λ_max, and the variance (1/βλ)·2/(2−hλ) of each mode: too large by hλ/2. The lattice random walk moves each
cell by ±sqrt(2hPD/β), up with probability ½(1 + drift·h/spacing): one random bit a step, and exact first and second moments of
a single cell (Duffield et al. 2025, arXiv 2508.20883). Both cost n² a step and a drive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from heatbath.machines.coloured import ColouredLaw
from heatbath.machines.converters import normal, quantize, uniform
from heatbath.machines.covariance import gram_of_reads
from heatbath.machines.exact import ExactLaw
from heatbath.machines.frontend import drive_division, read_range, within_rails
from heatbath.machines.law import Derivation, Law
from heatbath.machines.signals import Cells, Clock, Excitation, Measurement, Watch
from heatbath.machines.spec import MachineSpec
from heatbath.machines.walk import Step, step
from heatbath.operators import tree

HEADROOM = 1.25  # converter range over the first read's peak, before rounding up to a power of two


@dataclass
class _Converter:
    """Takes reads one by one, sets its range by the first, and averages them."""

    spec: MachineSpec
    generator: torch.Generator | None
    full_scale: Tensor | None = None
    total: Tensor | None = None
    clipped: Tensor | None = None
    reads: int = 0

    def take(self, volts: Tensor, headroom: float = HEADROOM) -> None:
        if self.spec.read_noise > 0:
            volts = volts + math.sqrt(self.spec.read_noise) * normal(tuple(volts.shape), volts, self.generator)
        if self.full_scale is None:
            self.full_scale = read_range(headroom * volts.abs().amax(-1, keepdim=True), self.spec)
        values, over = quantize(volts, self.spec.read_bits, self.full_scale)
        self.total = values if self.total is None else self.total + values
        self.clipped = over if self.clipped is None else self.clipped | over
        self.reads += 1

    def result(self, end: Tensor | None, division: Tensor) -> Measurement:
        assert self.total is not None
        assert self.clipped is not None
        nothing = torch.zeros_like(self.clipped)
        return Measurement(self.total / self.reads, end, division, self.clipped, nothing)


@tree
@dataclass(frozen=True, eq=False)
class ReadByRead(Law):
    """Tier S with exact transitions, for k reads; an analog integrator has but one conversion and needs only the exact law.

    Args:
        inner: the linear law of the same cells.
        slowest: `[*stack]`.
    """

    inner: ExactLaw | ColouredLaw
    slowest: Tensor

    @property
    def tier(self) -> str:
        return "read by read"

    @property
    def derivation(self) -> Derivation:
        return type(self)

    @classmethod
    def of(cls, held: Tensor, cells: Cells, clock: Clock | None) -> Self:
        inner = ExactLaw.of(held, cells, clock) if cells.loudness is None else ColouredLaw.of(held, cells, None)
        return cls(inner, inner.slowest)

    def measure(
        self, excitation: Excitation, clock: Clock, spec: MachineSpec, *, keep_end: bool, generator: torch.Generator | None
    ) -> Measurement:
        if clock.reads is None:
            return self.inner.measure(excitation, clock, spec, keep_end=keep_end, generator=generator)
        first, each = self._step(clock.burn_in, clock), self._step(clock.duration / clock.reads, clock)
        rows = excitation.drive.shape[-2]
        division = torch.ones_like(excitation.drive[..., :1])
        if spec.rail is not None:  # the ranging pass
            drive, state = self._begin(excitation, division, first)
            peak = self._volts(first.move(state, first.push(rows, drive, generator)), excitation)
            division = drive_division(peak.abs().amax(-1, keepdim=True), spec)
        drive, state = self._begin(excitation, division, first)
        state = first.move(state, first.push(rows, drive, generator))
        converter = _Converter(spec, generator)
        for _ in range(clock.reads):
            converter.take(within_rails(self._volts(state, excitation), spec))
            state = each.move(state, each.push(rows, drive, generator))
        end = within_rails(self._volts(state, excitation), spec) if keep_end else None
        return converter.result(end, division)

    def watch(self, watch: Watch, spec: MachineSpec, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return self.inner.watch(watch, spec, generator)

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        return self.inner.error(clock)

    @property
    def _exact(self) -> ExactLaw:
        return self.inner if isinstance(self.inner, ExactLaw) else self.inner.exact

    def _step(self, time: float, clock: Clock) -> Step:
        colour = None if isinstance(self.inner, ExactLaw) else self.inner.colour
        return step(self._exact.rates, time, noise=clock.noise, colour=colour, inertia=clock.inertia)

    def _begin(self, excitation: Excitation, division: Tensor, first: Step) -> tuple[Tensor, Tensor]:
        """Drive and starting state in the modes, with the drive lowered by `division`."""
        exact = self._exact
        volts = excitation.drive / division
        drive = (volts if excitation.offset is None else volts + excitation.offset) @ exact.modes
        start = excitation.start if excitation.guess is None else excitation.guess / division
        state = torch.zeros((*drive.shape[:-1], first.gain.shape[-2], drive.shape[-1])).to(first.gain)
        projected = exact.project(start)
        if projected is not None:
            state[..., 0, :] = projected.to(state)
        return drive, state

    def _volts(self, state: Tensor, excitation: Excitation) -> Tensor:
        return state[..., 0, :].to(excitation.drive) @ self._exact.modes.mT


@tree
@dataclass(frozen=True, eq=False)
class Stepper(Law):
    """Tier S by small steps; see `Euler` for its parameters.

    Args:
        held: Â, `[*stack, n, n]`.
        cells: how the cells differ.
        slowest: `[*stack]`.
        time_step: h in units of τ.
        lattice: lattice random walk instead of Euler–Maruyama.
        drift_rate: how fast conductances fall during the run, per τ.
    """

    held: Tensor
    cells: Cells
    slowest: Tensor
    time_step: float
    lattice: bool = False
    drift_rate: float = 0.0

    @property
    def tier(self) -> str:
        return "lattice random walk" if self.lattice else "Euler–Maruyama"

    @property
    def derivation(self) -> Euler:
        return Euler(self.time_step, self.lattice, self.drift_rate)

    @classmethod
    def of(cls, held: Tensor, cells: Cells, clock: Clock | None) -> Self:
        law = Euler().of(held, cells, clock)
        return cls(law.held, law.cells, law.slowest, law.time_step)

    def measure(
        self, excitation: Excitation, clock: Clock, spec: MachineSpec, *, keep_end: bool, generator: torch.Generator | None
    ) -> Measurement:
        self._refuse(clock)
        division = torch.ones_like(excitation.drive[..., :1])
        if spec.rail is not None:  # the ranging pass, at a drive so low that nothing saturates
            run = _Run(self, excitation, division, clock.noise, None, generator)
            division = drive_division(run.advance(clock.burn_in).abs().amax(-1, keepdim=True), spec)
        run = _Run(self, excitation, division, clock.noise, spec, generator)
        run.advance(clock.burn_in)
        converter = _Converter(spec, generator)
        if clock.reads is None:
            converter.take(run.average(clock.duration), headroom=1.0)
        else:
            for volts in run.reads(clock.reads, clock.duration / clock.reads):
                converter.take(volts)
        return converter.result(run.volts if keep_end else None, division)

    def watch(self, watch: Watch, spec: MachineSpec, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        self._refuse(Clock(watch.burn_in, 0.0, 1, watch.noise, watch.inertia))
        still = torch.zeros_like(self.held[..., :1, :])
        run = _Run(self, Excitation(still, offset=watch.offset), torch.ones_like(still[..., :1]), watch.noise, spec, generator)
        run.advance(watch.burn_in)
        eye = torch.eye(self.held.shape[-1], dtype=self.held.dtype, device=self.held.device).expand_as(self.held)
        return gram_of_reads(run.reads(watch.reads, watch.interval), eye, watch.reads, spec, generator)

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        """The variance of the fastest mode is too large by hλ/2 at most; 0 error of the mean, once settled."""
        fastest = self.held.abs().sum(-1).amax(-1)
        return self.time_step * fastest / (2 - self.time_step * fastest), torch.zeros_like(fastest)

    def _refuse(self, clock: Clock) -> None:
        if clock.inertia is not None:
            raise ValueError("the stepper takes overdamped cells; leave the inductance out, or use ReadByRead")
        if self.lattice and clock.noise == 0:
            raise ValueError("the lattice random walk steps by the noise, and this machine has none; use Euler steps")


@dataclass(frozen=True)
class Euler:
    """Derives `Stepper` laws: `machine.program(matrix, law=Euler(time_step=0.02))`.

    Args:
        time_step: h in units of τ; None: a twentieth of the fastest relaxation time of the stack, which waits for the device.
        lattice: lattice random walk instead of Euler–Maruyama.
        drift_rate: relative fall of all conductances per τ during a run.

    Raises:
        ValueError: a time step that is not positive, or a negative drift.
    """

    time_step: float | None = None
    lattice: bool = False
    drift_rate: float = 0.0

    def __post_init__(self) -> None:
        if (self.time_step is not None and self.time_step <= 0) or self.drift_rate < 0:
            raise ValueError(f"Euler needs time_step > 0 and drift_rate >= 0, got {self.time_step} and {self.drift_rate}")

    def of(self, held: Tensor, cells: Cells, clock: Clock | None) -> Stepper:
        """See `Law.of`."""
        speed = 1.0 if cells.speed is None else cells.speed
        slowest = torch.linalg.eigvalsh(held.nan_to_num())[..., 0]
        slowest = torch.where(torch.isfinite(held).all(-1).all(-1), slowest, torch.nan)
        h = self.time_step
        if h is None:
            h = 0.05 / max(float((speed * held.nan_to_num().abs().sum(-1)).max()), 1e-30)
        return Stepper(held, cells, slowest, h, self.lattice, self.drift_rate)


class _Run:
    """One run of the stepper: where the cells are, and how they go on."""

    def __init__(
        self,
        law: Stepper,
        excitation: Excitation,
        division: Tensor,
        noise: float,
        spec: MachineSpec | None,
        generator: torch.Generator | None,
    ) -> None:
        self.law, self.division, self.spec, self.generator = law, division, spec, generator
        drive = excitation.drive / division
        self.drive = drive if excitation.offset is None else drive + excitation.offset
        start = excitation.start if excitation.guess is None else excitation.guess / division
        self.volts = torch.zeros_like(self.drive) if start is None else start.clone()
        one = torch.ones((), dtype=drive.dtype, device=drive.device)
        self.speed = one if law.cells.speed is None else law.cells.speed.unsqueeze(-2)
        loudness = one if law.cells.loudness is None else law.cells.loudness.unsqueeze(-2)
        self.diffusion = 2 * noise * self.speed * loudness
        self.noisy = noise > 0
        self.time = 0.0

    def advance(self, span: float) -> Tensor:
        """Go on for `span`, in equal steps of at most h."""
        steps = math.ceil(span / self.law.time_step - 1e-9)
        for _ in range(steps):
            self._step(span / steps)
        return self.volts

    def reads(self, reads: int, interval: float) -> Iterator[Tensor]:
        """Read, go on, and so forth."""
        for _ in range(reads):
            yield self.volts
            self.advance(interval)

    def average(self, span: float) -> Tensor:
        """Go on for `span` and return the average, by the trapezoidal rule."""
        steps = max(1, math.ceil(span / self.law.time_step - 1e-9))
        total = self.volts / 2
        for _ in range(steps):
            self._step(span / steps)
            total = total + self.volts
        return (total - self.volts / 2) / steps

    def _step(self, h: float) -> None:
        conductance = math.exp(-self.law.drift_rate * self.time)
        move = h * self.speed * (self.drive - conductance * (self.volts @ self.law.held))
        shape = tuple(self.volts.shape)
        if self.law.lattice:
            spacing = (h * self.diffusion).sqrt()
            up = uniform(shape, self.volts, self.generator) < (1 + move / spacing) / 2
            self.volts = self.volts + torch.where(up, spacing, -spacing)
        else:
            self.volts = self.volts + move
            if self.noisy:
                self.volts = self.volts + (h * self.diffusion).sqrt() * normal(shape, self.volts, self.generator)
        if self.spec is not None:
            self.volts = within_rails(self.volts, self.spec)
        self.time += h
