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

import torch
from torch import Tensor

from heatbath.machines.dynamics.base import Clock
from heatbath.machines.dynamics.cells import Cells
from heatbath.machines.dynamics.exact import ExactDynamics


@dataclass(frozen=True)
class ClosedLoop:
    """A circuit: `machine.program(matrix, circuit=ClosedLoop(gain=1e4))`.

    Args:
        gain: open-loop gain A₀ of the amplifiers; None: infinite.

    Raises:
        ValueError: a gain that is not positive.
    """

    gain: float | None = None

    def __post_init__(self) -> None:
        if self.gain is not None and not self.gain > 0:
            raise ValueError(f"the gain of an amplifier is positive, or None if infinite, got {self.gain}")

    def of(self, conductance: Tensor, cells: Cells, clock: Clock | None) -> ExactDynamics:
        """See `Dynamics.of`."""
        row = 1 + conductance.abs().sum(-1).nan_to_num(0.0, 0.0)  # what is not finite is the dynamics' to report
        loop = conductance if self.gain is None else conductance + torch.diag_embed(row / self.gain)
        quiet = replace(
            cells,
            mobility=cells.mobility / row,
            noise_intensity=torch.ones_like(row),
            isotropic=True,
            noise=0.0,
            inertia=None,
        )
        return replace(ExactDynamics.of(loop, quiet, clock), name="closed loop")
