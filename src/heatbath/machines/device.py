"""A thermodynamic computer as its host sees it: what a laboratory implements to plug in a machine of its own.

A device has machines, numbered *slots*, each of which holds one matrix and answers drives. What goes to it are whole numbers
(codes of its converters) and times in seconds; what comes back is `RawReads`. It never learns the units of a problem, and it
tells nothing that its wires do not carry: no eigenvalue, no exact answer. Scaling, conversion, equilibration and the counting
of work are the host's (`Machine`). docs/plug_in_your_machine.md walks through an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from heatbath.machines.dynamics.base import Clock
from heatbath.machines.spec import MachineSpec


@dataclass(frozen=True)
class ReadPlan:
    """When and how a run is read.

    Args:
        burn_in: seconds from the start of the drive to the first read.
        duration: seconds of reading.
        reads: None for an analog integrator over `duration` that is converted once; k for k reads, `duration / k` apart,
            beginning at `burn_in`.
        every: return each of the k reads, with one range of the converter for all of them and without lowering the drive;
            else their average.
    """

    burn_in: float
    duration: float
    reads: int | None
    every: bool = False

    def clock(self, tau: float) -> Clock:
        """The times in units of a time constant."""
        return Clock(self.burn_in / tau, self.duration / tau, self.reads)


@dataclass(frozen=True, eq=False)
class RawReads:
    """What a wire carries of a run on m machines with d drives each of n cells.

    Args:
        codes: of the read converters, `[m, d, n]`, or `[m, d, k, n]` of every read. Averages need not be whole; NaN where
            nothing came back.
        unit: cell voltage over full scale that one code stands for, at full drive, `[m, d, 1]`: it has the gain of the read
            amplifier in it, and `attenuation`.
        attenuation: factor, 1 or more, by which the device lowered a drive to keep voltages within its rails, `[m, d, 1]`.
        railed: cells that touched a rail, or converters that reported over-range; bool, of the shape of `codes`.
        late: machines whose answer did not come in time, bool `[m]`.
        seconds: time the run took, where it was measured.
    """

    codes: Tensor
    unit: Tensor
    attenuation: Tensor
    railed: Tensor
    late: Tensor
    seconds: float | None = None


@runtime_checkable
class Device(Protocol):
    """What a laboratory implements: a data sheet and two methods."""

    @property
    def spec(self) -> MachineSpec:
        """The data sheet: cells, bits, τ, rates. The host scales and bills by it."""

    def load(self, codes: Tensor, slots: Sequence[int]) -> None:
        """Program matrices.

        Args:
            codes: `[m, n, n]`, symmetric, whole numbers up to 2^(matrix_bits − 1) − 1 in magnitude, which is full scale;
                entries over full scale where the data sheet states no bits.
            slots: the machine for each of them.
        """

    def run(
        self,
        slots: Sequence[int],
        drive: Tensor | None,
        plan: ReadPlan,
        *,
        initial: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> RawReads:
        """Drive the machines, each with its drives one after the other, and read them.

        Args:
            slots: the machines, m of them.
            drive: codes `[m, d, n]`, scaled so that the largest of each drive is full scale; None: no drive (d = 1).
            plan: when and how to read.
            initial: voltages over full scale to load before each drive, at full drive, `[m, d, n]`; None: reset to 0.
            generator: randomness, for devices that emulate.
        """
