"""How a machine that holds Â answers: the interface of every emulation tier.

A law is what the emulator derives once from the matrix the machine *holds* (never from the one that was meant), and answers
many drives with. All vectors are rows `[*stack, m, n]` in units of full scale, all times in units of τ.

| tier | class | derives | exact for |
|---|---|---|---|
| A | `ExactLaw` | eigenvectors | any schedule and start |
| B+ | `FastLaw` | a Cholesky factor | settled, well averaged readings; states its error |
| A, coloured | `ColouredLaw` | eigenvectors, one covariance per schedule | cells whose noise differs |
| S | `ReadByRead` | eigenvectors | the same, and each read's conversion |
| S, Euler | `Stepper` | nothing | in the limit of small steps: saturation, drift during a run |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, Self

import torch
from torch import Tensor

from heatbath.machines.signals import Cells, Clock, Excitation, Measurement, Watch
from heatbath.machines.spec import MachineSpec


class Derivation(Protocol):
    """What derives a law from a held matrix: a `Law` class, or an object with parameters of its own."""

    def of(self, held: Tensor, cells: Cells, clock: Clock | None) -> Law:
        """See `Law.of`."""


class Law(ABC):
    """What the emulator derived from a held matrix; a `@tree` dataclass whose tensors lead with `[*stack]`.

    `slowest` `[*stack]` is the smallest rate λ in units of 1/τ, NaN or at most 0 where the held matrix is not positive
    definite.
    """

    slowest: Tensor

    @property
    @abstractmethod
    def tier(self) -> str:
        """Name of the emulation tier."""

    @classmethod
    @abstractmethod
    def of(cls, held: Tensor, cells: Cells, clock: Clock | None) -> Self:
        """Derive the law of τ dx = −P(Âx − b̂)dt + sqrt(2τPD/β) dW.

        Args:
            held: Â, `[*stack, n, n]`, symmetric.
            cells: the diagonals P (speed) and D (loudness).
            clock: the schedule that will be run, for laws that prepare for one; None: not known.
        """

    @property
    @abstractmethod
    def derivation(self) -> Derivation:
        """What derives the same law, with the same parameters, of another matrix: the class, where it has none."""

    @abstractmethod
    def measure(
        self, excitation: Excitation, clock: Clock, spec: MachineSpec, *, keep_end: bool, generator: torch.Generator | None
    ) -> Measurement:
        """Draw one converted reading for every row of the excitation."""

    @abstractmethod
    def watch(self, watch: Watch, spec: MachineSpec, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The covariance read-out S = (1/k) Σ x xᵀ `[*stack, n, n]` of undriven reads, and how many clipped `[*stack]`."""

    @abstractmethod
    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        """The tier's stated relative errors of the variance and of the mean of a reading, both `[*stack]`."""
