"""The closed loop: amplifiers that drive a cross-point array until its row currents cancel (Sun et al., PNAS 116 (2019) 4123).

Each row of conductances Â ends in the input of an operational amplifier, whose output drives the matching column; the drive
b̂ enters the rows through one unit conductance each. With open-loop gain A₀ and gain–bandwidth product 1/τ, Kirchhoff's law
at the inputs gives (Sun et al., IEEE Trans. Electron Devices 67 (2020) 2945, arXiv 2005.04530)

    τ dx = −U [(Â + U⁻¹/A₀) x − b̂] dt,      U = diag( 1/(1 + Σ_j |Â_ij|) )

so it settles to (Â + D/A₀)⁻¹ b̂ with D_ii = 1 + Σ_j |Â_ij|, a relative error of the order (1 + Σ_j |Â_ij|)/(A₀ λ_min), with
the smallest eigenvalue of U Â as the slowest rate and no direct dependence on n. Negative entries sit in a second array
behind inverters, which adds their magnitudes to the row. Noise is left out: the idealisation opposite to the thermodynamic one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from heatbath.machines.exact import ExactLaw
from heatbath.machines.law import Law
from heatbath.machines.signals import Cells, Clock, Excitation, Measurement, Watch
from heatbath.machines.spec import MachineSpec
from heatbath.operators import tree


@tree
@dataclass(frozen=True, eq=False)
class ClosedLoopLaw(Law):
    """Exact for the linear circuit; saturating amplifiers are the ranging pass's business.

    Args:
        exact: the law of cells with rates U(Â + D/A₀).
        slowest: `[*stack]`.
        gain: A₀; None: infinite.
    """

    exact: ExactLaw
    slowest: Tensor
    gain: float | None

    @property
    def tier(self) -> str:
        return "closed loop"

    @property
    def derivation(self) -> ClosedLoop:
        return ClosedLoop(self.gain)

    @classmethod
    def of(cls, held: Tensor, cells: Cells, clock: Clock | None) -> Self:
        law = ClosedLoop().of(held, cells, clock)
        return cls(law.exact, law.slowest, law.gain)

    def measure(
        self, excitation: Excitation, clock: Clock, spec: MachineSpec, *, keep_end: bool, generator: torch.Generator | None
    ) -> Measurement:
        return self.exact.measure(excitation, _quiet(clock), spec, keep_end=keep_end, generator=generator)

    def watch(self, watch: Watch, spec: MachineSpec, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        raise ValueError("a closed loop is emulated without noise, so there is nothing to watch; drive it")

    def error(self, clock: Clock) -> tuple[Tensor, Tensor]:
        return self.exact.error(clock)


@dataclass(frozen=True)
class ClosedLoop:
    """Derives `ClosedLoopLaw`: `machine.program(matrix, law=ClosedLoop(gain=1e4))`.

    Args:
        gain: open-loop gain A₀ of the amplifiers; None: infinite.

    Raises:
        ValueError: a gain that is not positive.
    """

    gain: float | None = None

    def __post_init__(self) -> None:
        if self.gain is not None and not self.gain > 0:
            raise ValueError(f"the gain of an amplifier is positive, or None if infinite, got {self.gain}")

    def of(self, held: Tensor, cells: Cells, clock: Clock | None) -> ClosedLoopLaw:
        """See `Law.of`."""
        row = 1 + held.abs().sum(-1).nan_to_num(0.0, 0.0)  # what is not finite is the law's to report
        loop = held if self.gain is None else held + torch.diag_embed(row / self.gain)
        speed = 1 / row if cells.speed is None else cells.speed / row
        exact = ExactLaw.of(loop, replace(cells, speed=speed, loudness=None), None if clock is None else _quiet(clock))
        return ClosedLoopLaw(exact, exact.slowest, self.gain)


def _quiet(clock: Clock) -> Clock:
    """The same schedule for cells without noise and inertia."""
    return replace(clock, noise=0.0, inertia=None)
