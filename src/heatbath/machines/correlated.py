"""Noise sources with a programmed covariance: the machine as a solver of Lyapunov equations.

White sources that reach the cells through a second array of resistors drive them with noise of covariance R instead of I,

    τ dx = −Â x dt + sqrt(2 τ / β) R^{1/2} dW,

whose stationary covariance Σ obeys Â Σ + Σ Â = (2/β) R (Aifer et al. 2023, arXiv 2308.05660). R = Â makes it Σ = I/β, and then
the covariance of x(t₀ + t) with x(t₀) is e^{−Ât}/β (Duffield et al. 2023, arXiv 2311.12759).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from heatbath.machines.coloured import ColouredLaw, joint_root
from heatbath.machines.signals import Cells, Clock


@dataclass(frozen=True, eq=False)
class CorrelatedNoise:
    """Derives `ColouredLaw`s: `machine.program(matrix, law=CorrelatedNoise(R))`.

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

    def of(self, held: Tensor, cells: Cells, clock: Clock | None) -> ColouredLaw:
        """See `Law.of`."""
        law = ColouredLaw.of(held, cells, None)
        source = self.covariance.to(held)
        if cells.loudness is not None:
            root = cells.loudness.sqrt()
            source = root.unsqueeze(-1) * source * root.unsqueeze(-2)
        modes = law.exact.modes
        inner = modes if law.exact.speed is None else modes / law.exact.speed.sqrt().unsqueeze(-1)
        colour = (inner.mT @ source @ inner).double()
        pair = (law.exact.rates.unsqueeze(-1) + law.exact.rates.unsqueeze(-2)).clamp(min=1e-300)
        outer = modes.double()
        spread = ((outer @ (2 * colour / pair)) * outer).sum(-1).to(held)
        root_of_noise = None if clock is None else joint_root(law.exact.rates, colour, clock)
        return replace(law, colour=colour, spread=spread, clock=clock, root=root_of_noise)
