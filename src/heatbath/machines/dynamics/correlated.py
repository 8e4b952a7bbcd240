"""Correlated noise: sources that reach the cells through a second array of resistors have a programmed covariance R.

The stationary covariance Σ then obeys Â Σ + Σ Â = (2/β) R: the machine as a solver of Lyapunov equations (Aifer et al. 2023,
arXiv 2308.05660). R = Â makes it Σ = I/β, and the covariance of x(t₀ + t) with x(t₀) is e^{−Ât}/β (Duffield et al. 2023, arXiv
2311.12759). The noise is white in time.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from heatbath.machines.dynamics.base import Clock
from heatbath.machines.dynamics.cells import Cells
from heatbath.machines.dynamics.exact import ExactDynamics


@dataclass(frozen=True, eq=False)
class CorrelatedNoise:
    """A circuit: `machine.program(matrix, circuit=CorrelatedNoise(R))`.

    Args:
        covariance: R, `[*stack, n, n]`, symmetric PSD, with entries up to 1 (full scale).

    Raises:
        ValueError: not square, or entries beyond full scale.
    """

    covariance: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.covariance.shape)
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"a noise covariance must be square, [*stack, n, n], got shape {shape}")
        if bool((self.covariance.abs() > 1 + 1e-6).any()):
            raise ValueError(
                f"entries of a noise covariance must be within full scale 1, got {float(self.covariance.abs().max()):.3g}; "
                "divide by the largest and scale the result"
            )

    def of(self, conductance: Tensor, cells: Cells, clock: Clock | None) -> ExactDynamics:
        """See `Dynamics.of`."""
        return ExactDynamics.under_noise(self.covariance.to(conductance), conductance, cells, clock)
