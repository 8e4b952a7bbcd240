"""An emulated thermodynamic computer: program a matrix, drive it, read it.

The cells of a machine that holds Â (symmetric, positive definite) and is driven by b̂ follow

    τ dx = −(Â x − b̂) dt + sqrt(2 τ / β) dW,        stationary: N(Â⁻¹ b̂, Â⁻¹/β)

so the *mean* of their voltages solves a linear system and their *covariance* is the inverse (Aifer et al. 2023, arXiv
2308.05660; Donatella et al. 2025, arXiv 2502.08603). Â = A/s with s the largest entry of A, so that entries fit full scale;
drives and readings are scaled and converted by the front end. The one continuous machine that was built is underdamped: a
specification with an inductance is emulated with inertia, all others as the overdamped idealisation above.

Emulation never touches the ideal matrix after programming: it may decompose what the machine holds, nothing else. A stack of L
matrices is a fleet of L machines, serial numbers `serial` … `serial + L − 1`, running in parallel; drives of one machine run
one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heatbath.machines.coloured import ColouredLaw
from heatbath.machines.door import check_drive, check_matrix, check_mean, check_schedule
from heatbath.machines.exact import ExactLaw
from heatbath.machines.fast import FastLaw
from heatbath.machines.frontend import convert_drive
from heatbath.machines.imperfections import cells_of
from heatbath.machines.law import Derivation, Law
from heatbath.machines.memory import drift, hold
from heatbath.machines.programmed import CovarianceReading, Programmed, Reading
from heatbath.machines.schedule import Schedule
from heatbath.machines.signals import Cells, Clock, Excitation, Watch, count
from heatbath.machines.spec import MachineSpec
from heatbath.work import Job, Work


@dataclass(frozen=True)
class Machine:
    """One machine, or a fleet of equal ones with consecutive serial numbers.

    Args:
        spec: what it is.
        serial: which specimen it is: decides its mismatch.
        tolerance: stated relative error of a reading's variance up to which the fast law replaces the exact one; a thousandth
            of it is allowed on the mean. 0: always the exact law.

    Raises:
        TypeError: `spec` is not a `MachineSpec`.
        ValueError: a negative serial number or tolerance.
    """

    spec: MachineSpec
    serial: int = 0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.spec, MachineSpec):
            raise TypeError(f"a Machine needs a MachineSpec, got {self.spec!r}; load one: Machine(load_machine('tngd-2024'))")
        if self.serial < 0 or self.tolerance < 0:
            raise ValueError(f"serial and tolerance must be 0 or more, got {self.serial} and {self.tolerance}")

    def program(
        self,
        matrix: Tensor,
        *,
        schedule: Schedule | None = None,
        law: Derivation | None = None,
        check: bool = True,
        generator: torch.Generator | None = None,
    ) -> Programmed:
        """Send matrices to the machines.

        Args:
            matrix: A, `[*stack, n, n]`, symmetric; float32 or float64.
            schedule: how it will be read. The emulator then uses the cheapest law that meets `tolerance`; this choice waits
                for the device. None: the exact law.
            law: what derives the law, such as `ExactLaw`, `FastLaw` or `ReadByRead`: use this one and do not wait. To keep a
                stack's old and new states exchangeable, pass `law=previous.law.derivation`.
            check: refuse values that are not finite or not symmetric; waits for the device. Without it such matrices are
                reported as not `definite`.
            generator: source of randomness, for stochastic rounding and write noise.

        Raises:
            TypeError: not a tensor, or not float32 or float64.
            ValueError: not square, not symmetric, not finite, or larger than the machine.
        """
        check_matrix(matrix, self.spec, values=check)
        matrix = matrix.detach()
        held, scale, clipped = hold(matrix, self.spec, self.serial, generator)
        waited = self.spec.hold_seconds or 0.0
        held = drift(held, self.spec, self.serial, age=0.0, seconds=waited) if waited else held
        cells = cells_of(self.spec, self.serial, held)
        coupled, offset = cells.embed(held)
        derived = self._derive(coupled, cells, schedule, law)
        bits = self.spec.matrix_bits or 8 * matrix.element_size()
        return Programmed(
            held=held,
            scale=scale,
            definite=derived.slowest > 0,
            clipped=clipped,
            cells=cells,
            offset=offset,
            law=derived,
            schedule=schedule,
            machine=self.spec.name,
            upload_bits=float(bits) * held.shape[-1] ** 2,
            age=waited,
        )

    def age(self, programmed: Programmed, seconds: float) -> Programmed:
        """What the machines hold after `seconds` more, by the drift of the specification.

        Raises:
            ValueError: a negative time.
        """
        if seconds < 0:
            raise ValueError(f"a machine cannot grow younger: seconds must be 0 or more, got {seconds}")
        held = drift(programmed.held, self.spec, self.serial, age=programmed.age, seconds=seconds)
        coupled, offset = programmed.cells.embed(held)
        derived = self._derive(coupled, programmed.cells, programmed.schedule, programmed.law.derivation)
        return replace(
            programmed,
            held=held,
            definite=derived.slowest > 0,
            offset=offset,
            law=derived,
            age=programmed.age + seconds,
            upload_bits=0.0,
        )

    def clock(self, schedule: Schedule) -> Clock:
        """A schedule in units of τ, with the machine's noise and inertia."""
        tau, spec = self.spec.time_constant, self.spec
        return Clock(schedule.burn_in / tau, schedule.duration / tau, schedule.reads, spec.noise, spec.inertia)

    def run(
        self,
        programmed: Programmed,
        drive: Tensor,
        *,
        schedule: Schedule,
        start: Tensor | None = None,
        guess: Tensor | None = None,
        keep_end: bool = True,
        generator: torch.Generator | None = None,
    ) -> Reading:
        """Drive the machines, each with its drives one after the other, and read A⁻¹b.

        Args:
            programmed: from `program`.
            drive: b, `[*stack, *batch, n]`.
            schedule: when and how to read.
            start: voltages at the start over full scale (`Reading.end` of an earlier run), of the shape of `drive`;
                None: all cells are reset to 0.
            guess: instead of `start`, a guess of A⁻¹b that the front end loads into the cells.
            keep_end: also draw the voltages at the end, at half as much cost again.
            generator: source of randomness; None: torch's own.

        Raises:
            TypeError: another dtype than the matrix.
            ValueError: a shape or device that does not match, both `start` and `guess`, a schedule shorter than the one the
                emulation tier was chosen for, or a machine whose mean is no solution.
        """
        check_mean(self.spec)
        check_drive(programmed, drive, start=start, guess=guess)
        check_schedule(programmed, schedule)
        rows = drive.detach().reshape(*programmed.stack, -1, programmed.size)
        sent = convert_drive(rows, self.spec)
        scale = sent.scale / programmed.scale[..., None, None]
        cells = programmed.cells
        excitation = Excitation(
            sent.volts if cells.alive is None else sent.volts * cells.alive.unsqueeze(-2),
            guess=None if guess is None else guess.detach().reshape(rows.shape) / torch.where(scale > 0, scale, 1.0),
            start=None if start is None else start.detach().reshape(rows.shape),
            offset=None if programmed.offset is None else programmed.offset.unsqueeze(-2),
        )
        clock = self.clock(schedule)
        measured = programmed.law.measure(excitation, clock, self.spec, keep_end=keep_end, generator=generator)
        scale = scale * measured.division
        variance_error, mean_error = programmed.law.error(clock)
        return Reading(
            mean=(cells.read(measured.values) * scale).reshape(drive.shape),
            end=None if measured.end is None else measured.end.reshape(drive.shape),
            scale=scale.reshape(*drive.shape[:-1], 1),
            diverged=~programmed.definite,
            drive_clipped=count(sent.clipped),
            read_clipped=count(measured.clipped),
            attenuated=count(measured.division > 1),
            undithered=count(measured.undithered),
            late=torch.zeros_like(programmed.definite),
            error=variance_error,
            mean_error=mean_error,
            tier=programmed.tier,
            work=self._work(programmed, rows, schedule, loaded=guess is not None or (start is not None and rows.shape[-2] > 1)),
        )

    def read_covariance(
        self, programmed: Programmed, *, reads: int, interval: float, burn_in: float, generator: torch.Generator | None = None
    ) -> CovarianceReading:
        """Watch the undriven machines and estimate A⁻¹ from the covariance of their voltages.

        Args:
            programmed: from `program`; for the cheap tier program with `Schedule(burn_in, reads * interval, reads)`.
            reads: k, how many reads.
            interval: seconds between reads.
            burn_in: seconds from the cold start to the first read.
            generator: source of randomness; None: torch's own.

        Raises:
            ValueError: a machine without noise, or a schedule the emulation tier was not chosen for.
        """
        if self.spec.noise == 0:
            raise ValueError(
                f"machine {self.spec.name!r} has no noise to watch; give it a temperature or noise_volts_rms, or drive it"
            )
        schedule = Schedule(burn_in, reads * interval, reads)
        check_schedule(programmed, schedule)
        tau, n = self.spec.time_constant, programmed.size
        offset = None if programmed.offset is None else programmed.offset.unsqueeze(-2)
        watch = Watch(
            reads, interval / tau, burn_in / tau, self.spec.noise, offset, self.spec.inertia, self.spec.coupling is not None
        )
        products, clipped = programmed.law.watch(watch, self.spec, generator)
        digital = self.spec.read_bits or 8 * products.element_size()
        job = Job(
            self.spec.name,
            n,
            drives=1,
            read_bits=float(n * digital * reads),
            settle_seconds=burn_in,
            read_seconds=schedule.duration,
            conversions_out=n * reads,
        )
        return CovarianceReading(
            inverse=programmed.cells.read_products(products) / (self.spec.noise * programmed.scale[..., None, None]),
            diverged=~programmed.definite,
            read_clipped=clipped,
            late=torch.zeros_like(programmed.definite),
            error=programmed.law.error(self.clock(schedule))[0],
            tier=programmed.law.tier,
            work=Work.of(job, max(programmed.stack.numel(), 1)),
        )

    def _derive(self, coupled: Tensor, cells: Cells, schedule: Schedule | None, law: Derivation | None) -> Law:
        """The law asked for, or the cheapest that meets the tolerance."""
        clock = None if schedule is None else self.clock(schedule)
        if law is not None:
            return law.of(coupled, cells, clock)
        if cells.loudness is not None:
            return ColouredLaw.of(coupled, cells, clock)
        if clock is not None and clock.inertia is None and self.spec.coupling is None and self.tolerance > 0:
            fast = FastLaw.of(coupled, cells, clock)
            variance, mean = fast.error(clock)
            if bool(((variance <= self.tolerance) & (mean <= 1e-3 * self.tolerance)).all()):
                return fast
        return ExactLaw.of(coupled, cells, clock)

    def _work(self, programmed: Programmed, rows: Tensor, schedule: Schedule, *, loaded: bool) -> Work:
        n, reads = programmed.size, schedule.reads or 1
        digital = 8 * rows.element_size()
        passes = 1 if self.spec.rail is None else 2
        sent = n * (2 if loaded else 1)
        job = Job(
            self.spec.name,
            n,
            drives=rows.shape[-2],
            drive_bits=float(sent * (self.spec.drive_bits or digital)),
            read_bits=float(n * (digital if self.spec.read_bits is None else self.spec.read_bits + (reads - 1).bit_length())),
            settle_seconds=schedule.burn_in * passes,
            read_seconds=schedule.duration,
            conversions_in=sent,
            conversions_out=n * (reads + passes - 1),
        )
        return Work.of(job, max(programmed.stack.numel(), 1))
