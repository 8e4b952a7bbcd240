"""The host of a thermodynamic computer: program a matrix, drive it, read it.

The cells of a machine that holds Â (symmetric, positive definite) and is driven by b̂ follow

    τ dx = −(Â x − b̂) dt + sqrt(2 τ / β) dW,        stationary: N(Â⁻¹ b̂, Â⁻¹/β)

so the *mean* of their voltages solves a linear system and their *covariance* is the inverse (Aifer et al. 2023, arXiv
2308.05660; Donatella et al. 2025, arXiv 2502.08603). The host scales Â = A/s with s the largest entry of A, so that entries fit
full scale, and drives likewise; it turns numbers into codes and codes into numbers, and counts what was asked (`Work`). What
happens in between is the `Device`'s. The host judges nothing by what a device does not return.

A stack of L matrices takes L machines, in slots 0 … L − 1, that run in parallel; drives of one machine run one after the
other. With `count=K` machines, member i is in slot i mod K, shares what is wrong with that machine, and has to be programmed
again whenever another matrix was there: that is counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from heatbath.machines.checks import check_drive, check_matrix, check_mean, check_raw, check_watch
from heatbath.machines.converters import encode, power_of_two, quantize
from heatbath.machines.device import Device, RawReads, ReadPlan
from heatbath.machines.dynamics import Derivation
from heatbath.machines.emulator.emulator import Emulator
from heatbath.machines.emulator.front_end import EmulatedReads
from heatbath.machines.random import uniform
from heatbath.machines.readings import (
    DIGITAL_BITS,
    CovarianceReading,
    LaggedReading,
    Programmed,
    Reading,
    SampleReading,
    job_for,
)
from heatbath.machines.readout import LaggedMoment, Observed, Observer, Samples, SecondMoment, watch
from heatbath.machines.schedule import Schedule
from heatbath.machines.spec import MachineSpec
from heatbath.work import Job, Work

_NUMBERS = itertools.count(1)


@dataclass(frozen=True, init=False)
class Machine:
    """A device, and all that its host does for it.

    Args:
        device: the device; a `MachineSpec` stands for an `Emulator` of it.
        serial: of that emulator.
        tolerance: of that emulator.
        count: K machines, shared by all matrices; None: as many as there are matrices on an emulator, one on other devices.

    Raises:
        TypeError: no device: it lacks `spec`, `load` or `run`.
        ValueError: a count below 1, or a negative serial number or tolerance.
    """

    device: Device
    count: int | None
    resident: dict[int, Tensor | tuple[int, int]] = field(compare=False, repr=False)

    def __init__(
        self, device: Device | MachineSpec, serial: int = 0, tolerance: float = 0.01, *, count: int | None = None
    ) -> None:
        if isinstance(device, MachineSpec):
            device = Emulator(device, serial, tolerance)
        if not isinstance(device, Device) or not isinstance(device.spec, MachineSpec):
            raise TypeError(
                f"a Machine needs a MachineSpec, or a Device with spec, load and run, got {device!r}; "
                "load one: Machine(load_machine('tngd-2024'))"
            )
        if count is not None and count < 1:
            raise ValueError(f"count is a number of machines, 1 or more, got {count}")
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "count", 1 if count is None and getattr(device, "shortcut", None) is None else count)
        object.__setattr__(self, "resident", {})

    @property
    def spec(self) -> MachineSpec:
        """The device's data sheet."""
        return self.device.spec

    @property
    def serial(self) -> int:
        """Serial number of an emulator's first machine; 0 where the device has none."""
        return int(getattr(self.device, "serial", 0))

    @property
    def emulated(self) -> bool:
        """Whether the device is emulated, so that it takes a `circuit` and goes on from voltages."""
        return self._shortcut is not None

    @property
    def _shortcut(self) -> Emulator | None:
        return getattr(self.device, "shortcut", None)

    def program(
        self,
        matrix: Tensor,
        *,
        schedule: Schedule | None = None,
        circuit: Derivation | None = None,
        slots: Sequence[int] | None = None,
        check: bool = True,
        generator: torch.Generator | None = None,
    ) -> Programmed:
        """Send matrices to the machines.

        Args:
            matrix: A, `[*stack, n, n]`, symmetric; float32 or float64.
            schedule: how it will be read. An emulator then uses the cheapest dynamics that meet its tolerance; this choice
                waits for the torch device. None: the exact dynamics.
            circuit: for an emulator: another circuit (`ClosedLoop`, `CorrelatedNoise`), or the dynamics to use
                (`ExactDynamics`, `SettledApproximation`), without waiting. Other devices are the circuit they are.
            slots: the machine of each member of the flattened stack; None: in order.
            check: refuse values that are not finite or not symmetric; waits for the torch device.
            generator: source of randomness, for stochastic rounding and an emulator's write noise.

        Raises:
            TypeError: not a tensor, or not float32 or float64.
            ValueError: not square, not symmetric, not finite, larger than the machine, or a circuit for another device.
        """
        check_matrix(matrix, self.spec, values=check)
        if circuit is not None and not self.emulated:
            raise ValueError(
                f"only an emulator takes a circuit, {type(self.device).__name__} is the circuit it is; leave it out"
            )
        codes, scale, clipped = self._encode(matrix.detach(), generator)
        members = matrix.shape[:-2].numel()
        chosen = tuple(slots) if slots is not None else tuple(i % (self.count or members) for i in range(members))
        number = next(_NUMBERS)
        emulated = None
        if self._shortcut is not None:
            emulated = self._shortcut.program(codes, chosen, schedule=schedule, circuit=circuit, generator=generator)
        bits = self.spec.matrix_bits or DIGITAL_BITS
        sent = len(set(chosen))
        programmed = Programmed(
            codes=codes,
            scale=scale,
            clipped=clipped,
            slots=chosen,
            number=number,
            schedule=schedule,
            machine=self.spec.name,
            uploads=float(sent),
            upload_bits=float(bits) * matrix.shape[-1] ** 2,
            emulated=emulated,
        )
        self._make_resident(programmed, range(sent))
        return programmed

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
            start: voltages at the start over full scale (`Reading.end` of an earlier run, which stay in the cells), of the
                shape of `drive`; None: all cells are reset to 0.
            guess: instead of `start`, a guess of A⁻¹b that is loaded into the cells.
            keep_end: keep the voltages at the end, at half as much cost again; emulators only.
            generator: source of randomness; None: torch's own.

        Raises:
            TypeError: another dtype than the matrix.
            ValueError: a shape or device that does not match, both `start` and `guess`, a schedule shorter than the one that
                was announced, a machine whose mean is no solution, or reads of a device that do not fit.
        """
        spec = self.spec
        check_mean(spec)
        check_drive(programmed, drive, start=start, guess=guess)
        rows = drive.detach().reshape(*programmed.stack, -1, programmed.size)
        peak = rows.abs().amax(-1, keepdim=True)
        codes, _, over = encode(rows / torch.where(peak > 0, peak, 1.0), spec.drive_bits)
        per_volt = peak / programmed.scale[..., None, None]
        initial = None
        if guess is not None:
            volts = guess.detach().reshape(rows.shape) / torch.where(peak > 0, per_volt, 1.0)
            initial = quantize(volts, spec.drive_bits, power_of_two(volts.abs().amax(-1, keepdim=True)))[0]
        plan = ReadPlan(schedule.burn_in, schedule.duration, schedule.reads)
        continued = None if start is None else start.detach().reshape(rows.shape)
        reads, again = self._respond(programmed, codes, plan, initial, continued, keep_end, generator)
        raw, loaded = reads.raw, guess is not None or (start is not None and rows.shape[-2] > 1)
        passes = 1 if spec.rail is None else 2
        taken = schedule.reads or 1
        job = job_for(
            spec,
            programmed.size,
            drives=rows.shape[-2],
            sent=programmed.size * (2 if loaded else 1),
            reads=taken,
            returned_bits=_sum_bits(spec, taken),
            settle_seconds=schedule.burn_in * passes,
            read_seconds=schedule.duration,
            ranging=passes - 1,
        )
        return Reading(
            mean=(raw.codes * raw.unit * per_volt).reshape(drive.shape),
            end=None if reads.end is None else reads.end.reshape(drive.shape),
            scale=(per_volt * raw.attenuation).reshape(*drive.shape[:-1], 1),
            drive_clipped=_count(over),
            read_clipped=_count(raw.railed),
            attenuated=_count(raw.attenuation > 1),
            undithered=reads.undithered,
            late=raw.late,
            work=Work.of(job, programmed.stack.numel()) + again,
        )

    def read_covariance(
        self, programmed: Programmed, *, reads: int, interval: float, burn_in: float, generator: torch.Generator | None = None
    ) -> CovarianceReading:
        """Watch the undriven machines and estimate A⁻¹ from the covariance of their voltages, S = (1/k) Σ x xᵀ → Â⁻¹/β.

        Positive semidefinite by construction. Error of an entry for independent reads: sqrt((S_ii S_jj + S_ij²)/k). A relative
        error ε in the Frobenius norm takes (n+1)/ε² ≤ T/τ ≤ (n+1)κ/ε², at any temperature. Conversion adds LSB²/12 to the
        diagonal.

        Args:
            programmed: from `program`; for cheap emulation program with `Schedule(burn_in, reads * interval, reads)`.
            reads: k, how many reads.
            interval: seconds between reads.
            burn_in: seconds from the cold start to the first read.
            generator: source of randomness; None: torch's own.

        Raises:
            ValueError: a machine without noise, no reads, an interval that is not positive, or a schedule that the emulation
                was not announced.
        """
        check_watch(self.spec, reads, interval)
        moment = SecondMoment()
        plan = ReadPlan(burn_in, reads * interval, reads, every=True)
        observed, work = self._watch(programmed, None, plan, moment, reads * interval, generator)
        size = reads * self.spec.noise * programmed.scale[..., None, None]
        return CovarianceReading(moment.total / size, observed.clipped, observed.late, work)

    def read_autocovariance(
        self, programmed: Programmed, *, pairs: int, lag: float, burn_in: float, generator: torch.Generator | None = None
    ) -> LaggedReading:
        """Watch the undriven machines and estimate the covariance of their voltages with those a lag t later.

        For cells that relax as e^{−Ât/τ} with a stationary covariance Σ it is Σ e^{−Ât/τ}, from k + 1 reads for k pairs.

        Args:
            programmed: from `program` without a schedule.
            pairs: k.
            lag: t, seconds between reads.
            burn_in: seconds from the cold start to the first read.
            generator: source of randomness; None: torch's own.

        Raises:
            ValueError: a machine without noise, no pairs, or a lag that is not positive.
        """
        check_watch(self.spec, pairs, lag)
        moment, plan = LaggedMoment(), ReadPlan(burn_in, (pairs + 1) * lag, pairs + 1, every=True)
        observed, work = self._watch(programmed, None, plan, moment, pairs * lag, generator)
        return LaggedReading(torch.as_tensor(moment.total) / (pairs * self.spec.noise), observed.clipped, observed.late, work)

    def read_samples(
        self,
        programmed: Programmed,
        drive: Tensor | None = None,
        *,
        reads: int,
        interval: float,
        burn_in: float,
        chains: int = 1,
        generator: torch.Generator | None = None,
    ) -> SampleReading:
        """Read driven, noisy machines again and again: samples of N(A⁻¹b, A⁻¹).

        A machine that holds Â = A/s and is driven by b̂ is distributed, once settled, as N(Â⁻¹b̂, Â⁻¹/β). In units of x = c v
        with c² = β/s that is N(A⁻¹b, A⁻¹) if b̂ = b/(cs): nothing may be rescaled to full scale as for a linear system, since
        the drive stands against the noise. A machine whose noise is small against full scale therefore needs a fine drive
        converter; a drive above full scale clips. Reads an interval t apart from one chain are correlated as e^{−λt/τ} in the
        mode λ of Â; several chains (one after the other) are independent.

        Args:
            programmed: from `program` without a schedule.
            drive: b, `[*stack, n]`; None: no drive, mean 0.
            reads: samples of each chain.
            interval: seconds between reads.
            burn_in: seconds from the cold start to the first read.
            chains: independent chains.
            generator: source of randomness; None: torch's own.

        Raises:
            TypeError: a drive of another dtype.
            ValueError: a machine without noise, no reads or chains, a time that is not positive, or a drive that does not fit.
        """
        check_watch(self.spec, reads, interval)
        if chains < 1 or not burn_in > 0:
            raise ValueError(f"sampling needs chains >= 1 and burn_in > 0 s, got {chains} and {burn_in}")
        stack, n, scale = programmed.stack, programmed.size, programmed.scale
        given = torch.zeros_like(programmed.codes[..., 0]) if drive is None else drive
        check_drive(programmed, given, start=None, guess=None)
        unit = (1 / (self.spec.noise * scale))[..., None, None].sqrt()  # c
        codes, _, over = encode(given.detach().unsqueeze(-2) / (unit * scale[..., None, None]), self.spec.drive_bits)
        samples, plan = Samples(), ReadPlan(burn_in, reads * interval, reads, every=True)
        rows = codes.expand(*stack, chains, n).contiguous()
        observed, work = self._watch(programmed, rows, plan, samples, interval * (reads - 1), generator)
        values = samples.values.movedim(-2, -3) * unit.unsqueeze(-3)
        return SampleReading(values, _count(over), observed.clipped, observed.late, work)

    # ------------------------------------------------------------------------------------------------ to the device

    def _encode(self, matrix: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and the number of clipped entries of matrices `[*stack, n, n]`."""
        spec, n = self.spec, matrix.shape[-1]
        size = matrix.abs().flatten(-2)
        if spec.matrix_percentile is None:
            scale = size.amax(-1)
        else:
            scale = size.kthvalue(max(1, round(spec.matrix_percentile / 100 * n * n)), dim=-1).values
        scale = torch.where(scale > 0, scale, 1.0)
        levels = (matrix + matrix.mT) * (0.5 / scale[..., None, None])
        clipped = torch.zeros_like(scale, dtype=torch.int64)
        if spec.matrix_percentile is not None:
            clipped = _count(levels.abs() > 1 + 1e-6)
            levels = levels.clamp(-1, 1)
        noise = None
        if spec.stochastic_rounding and spec.matrix_bits is not None:
            noise = uniform(tuple(levels.shape), levels, generator)
            noise = noise.triu() + noise.triu(1).mT
        return encode(levels, spec.matrix_bits, noise=noise)[0], scale, clipped

    def _respond(
        self,
        programmed: Programmed,
        codes: Tensor,
        plan: ReadPlan,
        initial: Tensor | None,
        start: Tensor | None,
        keep_end: bool,
        generator: torch.Generator | None,
    ) -> tuple[EmulatedReads, Work]:
        """Averaged readings of drives `[*stack, m, n]`, and the work of programming again."""
        if self._shortcut is not None:
            again = self._again(programmed)
            reads = self._shortcut.respond(
                programmed.emulated, codes, plan, initial=initial, start=start, keep_end=keep_end, generator=generator
            )
            return reads, again
        if start is not None:
            raise ValueError("this device does not go on from voltages; load a guess into its cells: guess=")
        raw, again = self._visit(programmed, codes, plan, initial, generator)
        return EmulatedReads(raw, None, torch.zeros_like(programmed.clipped)), again

    def _watch(
        self,
        programmed: Programmed,
        codes: Tensor | None,
        plan: ReadPlan,
        observer: Observer,
        read_seconds: float,
        generator: torch.Generator | None,
    ) -> tuple[Observed, Work]:
        """Show every read to an observer."""
        if self._shortcut is not None:
            again = self._again(programmed)
            gram = isinstance(observer, SecondMoment)
            chunks = self._shortcut.stream(programmed.emulated, codes, plan, gram=gram, generator=generator)
        else:
            raw, again = self._visit(programmed, codes, plan, None, generator)
            chunks = iter([raw])
        job = job_for(
            self.spec,
            programmed.size,
            drives=1,
            sent=0 if codes is None else programmed.size,
            reads=plan.reads or 1,
            settle_seconds=plan.burn_in,
            read_seconds=read_seconds,
        )
        chains = 1 if codes is None else codes.shape[-2]
        return watch(chunks, observer), Work.of(job, programmed.stack.numel() * chains) + again

    def _visit(
        self,
        programmed: Programmed,
        codes: Tensor | None,
        plan: ReadPlan,
        initial: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[RawReads, Work]:
        """Load what is not there, run, and gather the reads of all members as a stack."""
        stack, n = programmed.stack, programmed.size
        flat = [None if t is None else t.reshape(-1, *t.shape[-2:]) for t in (codes, initial)]
        parts, uploads = [], 0
        for wave in _waves(programmed):
            uploads += self._make_resident(programmed, wave)
            slots = [programmed.slots[i] for i in wave]
            drive, begin = (None if t is None else t[wave.start : wave.stop] for t in flat)
            try:
                raw = self.device.run(slots, drive, plan, initial=begin, generator=generator)
            except TimeoutError:
                raw = _nothing(programmed.codes, len(slots), 1 if drive is None else drive.shape[-2], plan)
            check_raw(raw, len(slots), 1 if drive is None else drive.shape[-2], n, plan)
            parts.append(raw)
        like = programmed.codes

        def gathered(tensors: list[Tensor]) -> Tensor:
            together = torch.cat(tensors).to(like.device)
            together = together if together.dtype == torch.bool else together.to(like.dtype)
            return together.reshape((*stack, *together.shape[1:]))

        raw = RawReads(
            codes=gathered([part.codes for part in parts]),
            unit=gathered([part.unit for part in parts]),
            attenuation=gathered([part.attenuation for part in parts]),
            railed=gathered([part.railed for part in parts]),
            late=gathered([part.late for part in parts]),
        )
        return raw, self._upload(programmed, uploads)

    def _make_resident(self, programmed: Programmed, members: range) -> int:
        """See to it that these members are in their machines; how many had to be sent."""
        if self._shortcut is not None:
            wanted: list[Tensor | tuple[int, int]] = [(programmed.number, i) for i in members]
        else:
            wanted = list(programmed.codes.reshape(-1, programmed.size, programmed.size)[members.start : members.stop])
        missing = [k for k, (i, what) in enumerate(zip(members, wanted, strict=True)) if not self._holds(i, what, programmed)]
        for k in missing:
            self.resident[programmed.slots[members[k]]] = wanted[k]
        if self._shortcut is None and missing:
            slots = [programmed.slots[members[k]] for k in missing]
            self.device.load(torch.stack([torch.as_tensor(wanted[k]) for k in missing]), slots)
        return len(missing)

    def _holds(self, member: int, what: Tensor | tuple[int, int], programmed: Programmed) -> bool:
        """Whether the machine of a member holds it: by its codes, or by number where nothing may wait for the torch device."""
        there = self.resident.get(programmed.slots[member])
        if isinstance(there, Tensor) and isinstance(what, Tensor):
            return there.shape == what.shape and torch.equal(there.to(what.device), what)
        return there == what

    def _again(self, programmed: Programmed) -> Work:
        """The work of programming again on an emulator of so many machines."""
        if self.count is None:
            return Work()
        return self._upload(programmed, sum(self._make_resident(programmed, wave) for wave in _waves(programmed)))

    def _upload(self, programmed: Programmed, matrices: int) -> Work:
        job = Job(programmed.machine, programmed.size, upload_bits=programmed.upload_bits)
        return Work.of(job, matrices) if matrices else Work()


def as_machine(machine: Machine | Device | MachineSpec) -> Machine:
    """The machine, or one of a device or a specification.

    Raises:
        TypeError: none of these.
    """
    return machine if isinstance(machine, Machine) else Machine(machine)


def _waves(programmed: Programmed) -> Iterator[range]:
    """Members that can be in their machines at one time."""
    members, machines = len(programmed.slots), len(set(programmed.slots))
    return (range(begin, min(begin + machines, members)) for begin in range(0, members, machines))


def _sum_bits(spec: MachineSpec, reads: int) -> int:
    """Bits of an average of reads, which the machine sums up."""
    return DIGITAL_BITS if spec.read_bits is None else spec.read_bits + (reads - 1).bit_length()


def _nothing(like: Tensor, machines: int, drives: int, plan: ReadPlan) -> RawReads:
    """What a time-out returns."""
    n = like.shape[-1]
    shape = (machines, drives, plan.reads or 1, n) if plan.every else (machines, drives, n)
    codes, unit = torch.full(shape, torch.nan).to(like), torch.ones(machines, drives, 1).to(like)
    return RawReads(codes, unit, unit, torch.zeros_like(codes, dtype=torch.bool), torch.ones(machines, dtype=torch.bool))


def _count(mask: Tensor) -> Tensor:
    """How many are True in each member of a stack: `[*stack, m, n]` to int64 `[*stack]`."""
    return mask.sum((-2, -1), dtype=torch.int64)
