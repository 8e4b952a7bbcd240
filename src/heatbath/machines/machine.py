"""An emulated thermodynamic computer: program a matrix, drive it, read it.

The cells of a machine that holds Â (symmetric, positive definite) and is driven by b̂ follow

    τ dx = −(Â x − b̂) dt + sqrt(2 τ / β) dW,        stationary: N(Â⁻¹ b̂, Â⁻¹/β)

so the *mean* of their voltages solves a linear system and their *covariance* is the inverse (Aifer et al. 2023, arXiv 2308.05660; Donatella
et al. 2025, arXiv 2502.08603). Â = A/s with s the largest entry of A, so that entries fit full scale; drives and readings are scaled and
converted by the front end. The built machines are underdamped; this overdamped law is an idealisation.

Emulation never touches the ideal matrix after programming: it may decompose what the machine holds, nothing else. A stack of L
matrices is a fleet of L machines, serial numbers `serial` … `serial + L − 1`, running in parallel; drives of one machine run one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.covariance import Watch
from heatbath.machines.exact import ExactLaw
from heatbath.machines.fast import FastLaw
from heatbath.machines.frontend import convert_drive, convert_reading, set_drive_range
from heatbath.machines.imperfections import CAPACITANCE, OFFSET, mismatch_like
from heatbath.machines.law import Clock, Excitation, Law
from heatbath.machines.memory import check_matrix, hold
from heatbath.machines.programmed import CovarianceReading, Programmed, Reading
from heatbath.machines.schedule import Schedule
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
        law: type[Law] | None = None,
        check: bool = True,
        generator: torch.Generator | None = None,
    ) -> Programmed:
        """Send matrices to the machines.

        Args:
            matrix: A, `[*stack, n, n]`, symmetric; float32 or float64.
            schedule: how it will be read. The emulator then uses the cheapest law that meets `tolerance`; this choice waits
                for the device. None: the exact law.
            law: `ExactLaw` or `FastLaw`: use this one and do not wait. To keep a stack's old and new states
                exchangeable, pass `law=type(previous.law)`.
            check: refuse values that are not finite or not symmetric; waits for the device. Without it such matrices are
                reported as not `definite`.
            generator: source of randomness, for stochastic rounding.

        Raises:
            TypeError: not a tensor, or not float32 or float64.
            ValueError: not square, not symmetric, not finite, or larger than the machine.
        """
        check_matrix(matrix, self.spec, values=check)
        matrix = matrix.detach()
        held, scale, clipped = hold(matrix, self.spec, self.serial, generator)
        stack, n = held.shape[:-2], held.shape[-1]
        speed = offset = None
        if self.spec.capacitance_mismatch is not None:
            error = mismatch_like(held, self.serial, CAPACITANCE, stack, (n,))
            speed = torch.exp(-self.spec.capacitance_mismatch * error)
        if self.spec.offset_mismatch is not None:
            offset = self.spec.offset_mismatch * mismatch_like(held, self.serial, OFFSET, stack, (n,))
        derived = self._derive(held, speed, schedule) if law is None else law.of(held, speed)
        definite = derived.slowest > 0
        bits = self.spec.matrix_bits or 8 * matrix.element_size()
        return Programmed(
            held, scale, definite, clipped, offset, derived, schedule, self.spec.name, upload_bits=float(bits) * n * n
        )

    def _derive(self, held: Tensor, speed: Tensor | None, schedule: Schedule | None) -> Law:
        if schedule is not None and self.tolerance > 0:
            fast = FastLaw.of(held, speed)
            variance, mean = fast.error(self.clock(schedule))
            if bool(((variance <= self.tolerance) & (mean <= 1e-3 * self.tolerance)).all()):
                return fast
        return ExactLaw.of(held, speed)

    def clock(self, schedule: Schedule) -> Clock:
        """A schedule in units of τ, with the machine's noise."""
        tau = self.spec.time_constant
        return Clock(schedule.burn_in / tau, schedule.duration / tau, schedule.reads, self.spec.noise)

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
            ValueError: a shape or device that does not match, both `start` and `guess`, or a schedule shorter than the one
                the emulation tier was chosen for.
        """
        self._check_drive(programmed, drive, "drive")
        if start is not None and guess is not None:
            raise ValueError("give either start (voltages) or guess (a solution), got both")
        for name, value in (("start", start), ("guess", guess)):
            if value is not None:
                self._check_drive(programmed, value, name)
                if value.shape != drive.shape:
                    raise ValueError(f"{name} must have the shape of drive, {tuple(drive.shape)}, got {tuple(value.shape)}")
        self._check_schedule(programmed, schedule)
        stack, n = programmed.stack, programmed.size
        rows = drive.detach().reshape(*stack, -1, n)
        sent = convert_drive(rows, self.spec)
        scale = sent.scale / programmed.scale[..., None, None]
        offset = None if programmed.offset is None else programmed.offset.unsqueeze(-2)
        excitation = Excitation(
            sent.volts,
            guess=None if guess is None else guess.detach().reshape(rows.shape) / torch.where(scale > 0, scale, 1.0),
            start=None if start is None else start.detach().reshape(rows.shape),
            offset=offset,
        )
        clock = self.clock(schedule)
        answer = programmed.law.answer(excitation, clock, keep_end=keep_end, generator=generator)
        volts = set_drive_range(answer, self.spec)
        codes = convert_reading(volts.reading, programmed.law.spread, clock, self.spec, generator=generator)
        scale = scale * volts.division
        variance_error, mean_error = programmed.law.error(clock)
        count = lambda mask: mask.sum((-2, -1))  # noqa: E731  # one short name for four places
        return Reading(
            mean=(codes.values * scale).reshape(drive.shape),
            end=None if volts.end is None else volts.end.reshape(drive.shape),
            scale=scale.reshape(*drive.shape[:-1], 1),
            diverged=~programmed.definite,
            drive_clipped=count(sent.clipped),
            read_clipped=count(codes.clipped),
            attenuated=count(volts.division > 1),
            undithered=count(codes.undithered),
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
                f"machine {self.spec.name!r} has no noise to watch; give it a temperature or noise_volts_rms, or solve by driving it"
            )
        schedule = Schedule(burn_in, reads * interval, reads)
        self._check_schedule(programmed, schedule)
        tau, n = self.spec.time_constant, programmed.size
        offset = None if programmed.offset is None else programmed.offset.unsqueeze(-2)
        watch = Watch(reads, interval / tau, burn_in / tau, self.spec.noise, offset)
        covariance, clipped = programmed.law.watch(watch, self.spec, generator)
        digital = self.spec.read_bits or 8 * covariance.element_size()
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
            inverse=covariance / (self.spec.noise * programmed.scale[..., None, None]),
            diverged=~programmed.definite,
            read_clipped=clipped,
            error=programmed.law.error(self.clock(schedule))[0],
            tier=programmed.law.tier,
            work=Work.of(job, max(programmed.stack.numel(), 1)),
        )

    def _check_drive(self, programmed: Programmed, drive: Tensor, name: str) -> None:
        held, stack = programmed.held, programmed.stack
        if drive.dtype != held.dtype:
            raise TypeError(f"{name} is {drive.dtype}, the programmed matrix {held.dtype}; convert one of them")
        if drive.device != held.device:
            raise ValueError(f"{name} is on {drive.device}, the programmed matrix on {held.device}; move one of them")
        if drive.ndim <= len(stack) or drive.shape[: len(stack)] != stack or drive.shape[-1] != programmed.size:
            wanted = ", ".join([*map(str, stack), "*batch", str(programmed.size)])
            raise ValueError(f"{name} must have shape [{wanted}] for this stack of matrices, got {tuple(drive.shape)}")

    def _check_schedule(self, programmed: Programmed, schedule: Schedule) -> None:
        chosen = programmed.schedule
        if chosen is None or isinstance(programmed.law, ExactLaw) or schedule == chosen:
            return
        alike = (schedule.reads is None, schedule.reads == 1) == (chosen.reads is None, chosen.reads == 1)
        alike = alike and (schedule.burn_in == 0) == (chosen.burn_in == 0)
        spacing, least = (s.duration / (s.reads or 1) for s in (schedule, chosen))
        if not alike or schedule.burn_in < chosen.burn_in or (spacing < least * (1 - 1e-9) and schedule.reads != 1):
            raise ValueError(
                f"the {programmed.tier} was chosen for {chosen} and may not hold for {schedule}; "
                "program again with the schedule you will run, or with none"
            )

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
