"""How a machine that holds Â answers a drive: the interface of every emulation tier.

A law is what the emulator derives once from the matrix the machine *holds* (never from the one that was meant), and answers many
drives with. All vectors are rows `[*stack, m, n]` in normalised units (full scale = 1), all times in units of τ. An answer is split
into what scales with the drive (the signal) and what does not (start, offset, noise: the background), so that a front end can choose the
drive's range without another solve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from heatbath.machines.process import Moments, continuous_average, sampled_average


@dataclass(frozen=True)
class Clock:
    """A schedule in units of τ, and the noise 1/β. `reads` as in `Schedule`."""

    burn_in: float
    duration: float
    reads: int | None
    noise: float

    def moments(self, rates: Tensor) -> Moments:
        """Moments of a reading and of the end state for modes of these rates, from a known start."""
        if self.reads is None:
            return continuous_average(rates, burn_in=self.burn_in, duration=self.duration, noise=self.noise)
        return sampled_average(
            rates, burn_in=self.burn_in, duration=self.duration, reads=self.reads, noise=self.noise
        )


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
    """Readings and end states, rows `[*stack, m, n]`: `signal` scales with the drive, `rest` does not.

    The end states are None unless asked for.
    """

    signal: Tensor
    rest: Tensor
    end_signal: Tensor | None
    end_rest: Tensor | None


class Law(ABC):
    """What the emulator derived from a held matrix; a `@tree` dataclass whose tensors lead with `[*stack]`.

    `slowest` `[*stack]` is the smallest rate λ (in 1/τ), and `spread` `[*stack, n]` the stationary variance of each cell over 1/β.
    """

    slowest: Tensor
    spread: Tensor

    @property
    @abstractmethod
    def tier(self) -> str:
        """Name of the emulation tier."""

    @classmethod
    @abstractmethod
    def of(cls, matrix: Tensor, speed: Tensor | None) -> Self:
        """Derive the law of τ dx = −P(Âx − b̂)dt + sqrt(2τP/β) dW.

        Args:
            matrix: Â, `[*stack, n, n]`, symmetric.
            speed: the diagonal of P (1/c of each cell), `[*stack, n]`; None: all 1.
        """

    @abstractmethod
    def answer(self, excitation: Excitation, clock: Clock, *, keep_end: bool, generator: torch.Generator | None) -> Answer:
        """Draw one reading for every row of the excitation."""

    @abstractmethod
    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        """The tier's stated relative errors of the variance and of the mean of a reading, both `[*stack]`."""
