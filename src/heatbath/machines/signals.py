"""What goes into a machine's cells and what comes out, in units of full scale and τ; rows `[*stack, m, n]`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.process import Moments, continuous_average, sampled_average
from heatbath.machines.underdamped import underdamped_average
from heatbath.operators import tree


@tree
@dataclass(frozen=True)
class Clock:
    """A schedule in units of τ, with the noise 1/β and the inertia of the cells. `reads` as in `Schedule`."""

    burn_in: float
    duration: float
    reads: int | None
    noise: float
    inertia: float | None = None

    def moments(self, rates: Tensor) -> Moments:
        """Moments of a reading and of the end state for modes of these rates, from a known start."""
        span = {"burn_in": self.burn_in, "duration": self.duration, "noise": self.noise}
        if self.inertia is not None:
            return underdamped_average(rates, **span, reads=self.reads, inertia=self.inertia)
        if self.reads is None:
            return continuous_average(rates, **span)
        return sampled_average(rates, **span, reads=self.reads)


@tree
@dataclass(frozen=True, eq=False)
class Cells:
    """How the cells of a machine differ from one another.

    Args:
        speed: 1/c of each cell's capacitance c, relative to nominal, `[*stack, n]`; None: all 1.
        loudness: variance of each cell's noise source relative to nominal, `[*stack, n]`; None: all 1.
        offset: drive that is always on, over full scale, `[*stack, n]`; None: none.
        alive: which cells work, bool `[*stack, n]`; None: all.
        fixed: voltage over full scale of those that do not, 0 elsewhere, `[*stack, n]`; None if all work.
        mute: read converters that return 0, bool `[*stack, n]`; None: none.
    """

    speed: Tensor | None = None
    loudness: Tensor | None = None
    offset: Tensor | None = None
    alive: Tensor | None = None
    fixed: Tensor | None = None
    mute: Tensor | None = None

    def embed(self, held: Tensor) -> tuple[Tensor, Tensor | None]:
        """The matrix and constant drive of the cells that work, when the others are held at their voltages.

        Cells that do not work are decoupled (row and column of the identity); those beside them feel −Â_{rd} v_d.
        """
        if self.alive is None or self.fixed is None:
            return held, self.offset
        pair = self.alive.unsqueeze(-1) & self.alive.unsqueeze(-2)
        eye = torch.eye(held.shape[-1], dtype=held.dtype, device=held.device)
        pull = -(held @ self.fixed.unsqueeze(-1)).squeeze(-1)
        offset = pull if self.offset is None else pull + self.offset
        return torch.where(pair, held, eye), torch.where(self.alive, offset, 0.0)

    def read(self, rows: Tensor) -> Tensor:
        """Readings `[*stack, m, n]` as they come from cells and converters that may not work."""
        if self.alive is not None and self.fixed is not None:
            rows = torch.where(self.alive.unsqueeze(-2), rows, self.fixed.unsqueeze(-2))
        return rows if self.mute is None else rows.masked_fill(self.mute.unsqueeze(-2), 0.0)

    def read_products(self, gram: Tensor) -> Tensor:
        """The average of x xᵀ `[*stack, n, n]` over undriven reads, as `read` leaves it."""
        if self.alive is not None and self.fixed is not None:
            pair = self.alive.unsqueeze(-1) & self.alive.unsqueeze(-2)
            gram = torch.where(pair, gram, self.fixed.unsqueeze(-1) * self.fixed.unsqueeze(-2))
        if self.mute is not None:
            gram = gram.masked_fill(self.mute.unsqueeze(-1) | self.mute.unsqueeze(-2), 0.0)
        return gram


@dataclass(frozen=True, eq=False)
class Excitation:
    """What a run applies to the cells, rows `[*stack, m, n]` or None.

    Args:
        drive: the drive at full scale, b̂.
        guess: starting voltages that scale with the drive.
        start: starting voltages that do not.
        offset: drive that does not scale, `[*stack, 1, n]`.
    """

    drive: Tensor
    guess: Tensor | None = None
    start: Tensor | None = None
    offset: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """Readings and end states of a linear law: `signal` scales with the drive, `rest` (None: nothing) does not.

    Where ranges do not matter all is in `signal`. The end states are None unless asked for.
    """

    signal: Tensor
    rest: Tensor | None
    end_signal: Tensor | None
    end_rest: Tensor | None


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a front end made of a run.

    Args:
        values: converted readings over full scale, `[*stack, m, n]`.
        end: voltages at the end over full scale, or None.
        division: powers of two by which each drive was lowered, `[*stack, m, 1]`.
        clipped: mask of readings that clipped.
        undithered: mask of averages whose reads needed emulation one by one.
    """

    values: Tensor
    end: Tensor | None
    division: Tensor
    clipped: Tensor
    undithered: Tensor


@dataclass(frozen=True, eq=False)
class Watch:
    """A number of undriven reads.

    Args:
        reads: k.
        interval: in units of τ.
        burn_in: in units of τ.
        noise: 1/β.
        offset: drive that is always on, `[*stack, 1, n]`, or None.
        inertia: μ, or None.
        capacitive: the matrix is held in capacitances.
    """

    reads: int
    interval: float
    burn_in: float
    noise: float
    offset: Tensor | None
    inertia: float | None = None
    capacitive: bool = False


def count(mask: Tensor) -> Tensor:
    """How many are True in each member of a stack: `[*stack, m, n]` to int64 `[*stack]`."""
    return mask.sum((-2, -1), dtype=torch.int64)
