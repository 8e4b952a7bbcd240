"""What a host knows of a programmed machine, and what comes back from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from heatbath.machines.schedule import Schedule
from heatbath.machines.spec import MachineSpec
from heatbath.operators import tree
from heatbath.work import Job, Work

DIGITAL_BITS = 32  # of a number whose converter is not stated


@tree
@dataclass(frozen=True, eq=False)
class Programmed:
    """A stack of matrices as they were sent to machines. All tensors lead with `[*stack]`.

    Args:
        codes: what was sent, `[*stack, n, n]`: whole numbers, or entries over full scale where no bits are stated.
        scale: s, matrix entries per unit of full scale, `[*stack]`.
        clipped: how many entries were beyond full scale, int64 `[*stack]`.
        slots: the machine of each member, members in the order of the flattened stack.
        number: tells one programming from another.
        schedule: the schedule that was announced; None: any.
        machine: name of the machine.
        uploads: how many matrices were sent at once; the rest waits until a machine is free for it.
        upload_bits: bits of one matrix.
        emulated: state of an emulator, which only it may look into; None for other devices.
    """

    codes: Tensor
    scale: Tensor
    clipped: Tensor
    slots: tuple[int, ...]
    number: int
    schedule: Schedule | None
    machine: str
    uploads: float
    upload_bits: float
    emulated: Any = None  # Any: see `heatbath.machines.oracle`

    @property
    def size(self) -> int:
        """Rows of one matrix, n."""
        return self.codes.shape[-1]

    @property
    def stack(self) -> torch.Size:
        """Leading dimensions: how many matrices were programmed."""
        return self.codes.shape[:-2]

    @property
    def work(self) -> Work:
        """What programming asked of the machines: one job for each matrix that was sent at once."""
        return Work.of(Job(self.machine, self.size, upload_bits=self.upload_bits), self.uploads) if self.uploads else Work()


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """What came back from a run.

    Args:
        mean: A⁻¹b as read, `[*stack, *batch, n]`.
        end: voltages at the end over full scale, `[*stack, *batch, n]`; None if not kept, or not to be had.
        scale: A⁻¹b per unit of voltage, `[*stack, *batch, 1]`.
        drive_clipped: entries of drives beyond full scale, int64 `[*stack]`.
        read_clipped: readings at a rail, or beyond the converter's range, int64 `[*stack]`.
        attenuated: drives that were lowered to keep voltages within the rails, int64 `[*stack]`.
        undithered: averages that emulation one by one would get right (`Emulator.read_by_read`), int64 `[*stack]`.
        late: nothing came back in time, bool `[*stack]`.
        work: one job for each machine, and what had to be programmed again.
    """

    mean: Tensor
    end: Tensor | None
    scale: Tensor
    drive_clipped: Tensor
    read_clipped: Tensor
    attenuated: Tensor
    undithered: Tensor
    late: Tensor
    work: Work


@final
@dataclass(frozen=True, eq=False)
class CovarianceReading:
    """What came back from watching the noise.

    Args:
        inverse: estimate of A⁻¹, `[*stack, n, n]`, symmetric and positive semidefinite.
        read_clipped: readings at a rail, or beyond the converter's range, int64 `[*stack]`.
        late: nothing came back in time, bool `[*stack]`.
        work: one job for each machine.
    """

    inverse: Tensor
    read_clipped: Tensor
    late: Tensor
    work: Work


@final
@dataclass(frozen=True, eq=False)
class LaggedReading:
    """What came back from watching the noise with a lag.

    Args:
        covariance: C = (1/k) Σ_j x_j x_{j+1}ᵀ over 1/β, `[*stack, n, n]`, not symmetrized.
        read_clipped: readings at a rail, or beyond the converter's range, int64 `[*stack]`.
        late: nothing came back in time, bool `[*stack]`.
        work: one job for each machine.
    """

    covariance: Tensor
    read_clipped: Tensor
    late: Tensor
    work: Work


@final
@dataclass(frozen=True, eq=False)
class SampleReading:
    """Samples as read.

    Args:
        samples: `[*stack, reads, chains, n]`, in units in which they follow N(A⁻¹b, A⁻¹).
        drive_clipped: entries of the drive beyond full scale, int64 `[*stack]`.
        read_clipped: readings at a rail, or beyond the converter's range, int64 `[*stack]`.
        late: nothing came back in time, bool `[*stack]`.
        work: one job for each chain of each machine.
    """

    samples: Tensor
    drive_clipped: Tensor
    read_clipped: Tensor
    late: Tensor
    work: Work


def job_for(
    spec: MachineSpec,
    cells: int,
    *,
    drives: int,
    sent: int,
    reads: int,
    settle_seconds: float,
    read_seconds: float,
    returned_bits: int = 0,
    ranging: int = 0,
) -> Job:
    """One machine's visit; what no converter states travels as numbers of `DIGITAL_BITS`.

    Args:
        spec: the machine.
        cells: n.
        drives: one after the other.
        sent: numbers sent for each drive.
        reads: conversions of each cell for each drive.
        settle_seconds: before reading, ranging passes included.
        read_seconds: of reading.
        returned_bits: bits for each cell that come back; 0: all of its reads.
        ranging: conversions of each cell in ranging passes, which stay on the machine.
    """
    read_bits = spec.read_bits or DIGITAL_BITS
    return Job(
        spec.name,
        cells,
        drives=drives,
        drive_bits=float(sent * (spec.drive_bits or DIGITAL_BITS)),
        read_bits=float(cells * (returned_bits or read_bits * reads)),
        settle_seconds=settle_seconds,
        read_seconds=read_seconds,
        conversions_in=sent,
        conversions_out=cells * (reads + ranging),
    )
