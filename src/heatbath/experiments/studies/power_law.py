"""Exponents: y = c xᵖ fitted by least squares in logarithms.

The standard error is that of the slope of a line through the points, so a curve that is no power law shows a large one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PowerLaw:
    """A fit.

    Args:
        exponent: p.
        error: its standard error; 0 for two points.
        factor: c.
    """

    exponent: float
    error: float
    factor: float

    def text(self) -> str:
        """The exponent with its error, as "2.00 ± 0.01"."""
        return f"{self.exponent:.2f} ± {self.error:.2f}"


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fit y = c xᵖ.

    Args:
        x: positive, at least two different values.
        y: positive, as many.

    Raises:
        ValueError: values that are not positive, lists of different length, or a single x.

    >>> fit_power_law([1, 2, 4], [3, 12, 48])
    PowerLaw(exponent=2.0, error=0.0, factor=3.0)
    """
    if len(x) != len(y) or len(set(x)) < 2:
        raise ValueError(f"a power law needs at least two different x and as many y, got {len(x)} and {len(y)}")
    if min(*x, *y) <= 0:
        raise ValueError(f"a power law is fitted to positive values, got x from {min(x)} and y from {min(y)}")
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    spread = sum((a - mean_u) ** 2 for a in u)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / spread
    offset = mean_v - slope * mean_u
    left = sum((b - offset - slope * a) ** 2 for a, b in zip(u, v, strict=True))
    error = math.sqrt(left / (len(u) - 2) / spread) if len(u) > 2 else 0.0
    return PowerLaw(round(slope, 12), round(error, 12), round(math.exp(offset), 12))
