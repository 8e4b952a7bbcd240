"""What a machine holds, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from heatbath.machines.law import Law
from heatbath.machines.schedule import Schedule
from heatbath.machines.signals import Cells
from heatbath.operators import tree
from heatbath.work import Job, Work


@tree
@dataclass(frozen=True, eq=False)
class Programmed:
    """A stack of matrices as a fleet of machines holds them: scaled, clipped, quantized, mismatched.

    The ideal matrix is not in here. All tensors lead with `[*stack]`.

    Args:
        held: Â, what the cells hold, in units of full scale, `[*stack, n, n]`.
        scale: s, matrix entries per unit of full scale, `[*stack]`.
        definite: whether Â is positive definite `[*stack]`; where it is not, voltages run away.
        clipped: how many entries were beyond full scale, int64 `[*stack]`.
        cells: how the cells differ from one another.
        offset: drive that is always on, that of stuck cells included, `[*stack, n]`, or None.
        law: how the machine answers drives.
        schedule: the schedule that `law` was chosen for; None: any.
        machine: name of the machine.
        upload_bits: bits that were sent to each machine.
        age: seconds since programming.
    """

    held: Tensor
    scale: Tensor
    definite: Tensor
    clipped: Tensor
    cells: Cells
    offset: Tensor | None
    law: Law
    schedule: Schedule | None
    machine: str
    upload_bits: float
    age: float = 0.0

    @property
    def size(self) -> int:
        """Rows of one matrix, n."""
        return self.held.shape[-1]

    @property
    def stack(self) -> torch.Size:
        """Leading dimensions: how many machines were programmed."""
        return self.held.shape[:-2]

    @property
    def tier(self) -> str:
        """Name of the emulation tier."""
        return self.law.tier

    @property
    def slowest(self) -> Tensor:
        """λ_min of what is held, in 1/τ, `[*stack]`: e^{−λ_min t/τ} is what a start leaves after t."""
        return self.law.slowest

    @property
    def work(self) -> Work:
        """What programming asked of the machines: one job for each."""
        job = Job(self.machine, self.size, upload_bits=self.upload_bits)
        return Work.of(job, max(self.stack.numel(), 1))


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """What came back from a run.

    Args:
        mean: A⁻¹b as read, `[*stack, *batch, n]`.
        end: voltages at the end over full scale, `[*stack, *batch, n]`; None if not kept.
        scale: A⁻¹b per unit of voltage, `[*stack, *batch, 1]`.
        diverged: voltages ran away, bool `[*stack]`.
        drive_clipped: entries of drives beyond full scale, int64 `[*stack]`.
        read_clipped: readings beyond full scale, int64 `[*stack]`.
        attenuated: drives that were lowered to keep voltages within the rails, int64 `[*stack]`.
        undithered: averages of reads with too little noise for the white-noise rule and too much for none; these carry a
            rounding error of up to LSB/2 that only read-by-read emulation gets right. int64 `[*stack]`.
        late: nothing came back in time, bool `[*stack]`.
        error: the tier's stated relative error of the variance, `[*stack]`.
        mean_error: the tier's stated relative error of the mean of the slowest mode, `[*stack]`.
        tier: name of the emulation tier.
        work: one job for each machine.
    """

    mean: Tensor
    end: Tensor | None
    scale: Tensor
    diverged: Tensor
    drive_clipped: Tensor
    read_clipped: Tensor
    attenuated: Tensor
    undithered: Tensor
    late: Tensor
    error: Tensor
    mean_error: Tensor
    tier: str
    work: Work


@final
@dataclass(frozen=True, eq=False)
class CovarianceReading:
    """What came back from watching the noise.

    Args:
        inverse: estimate of A⁻¹, `[*stack, n, n]`, symmetric and positive semidefinite.
        diverged: voltages ran away, bool `[*stack]`.
        read_clipped: readings beyond full scale, int64 `[*stack]`.
        late: nothing came back in time, bool `[*stack]`.
        error: the tier's stated relative error of the variance of an average over these reads, `[*stack]`.
        tier: name of the emulation tier.
        work: one job for each machine.
    """

    inverse: Tensor
    diverged: Tensor
    read_clipped: Tensor
    late: Tensor
    error: Tensor
    tier: str
    work: Work
