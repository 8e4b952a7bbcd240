"""The critical batch size: where larger batches stop saving steps.

    S(B) = S_min (1 + B_crit/B)

is the number of steps to a target at batch size B (McCandlish et al. 2018, arXiv 1812.06162, §2.2 and §5): far below B_crit
twice the batch halves the steps, far above it saves none, at B_crit it takes twice the fewest steps. The two constants are
found by least squares in log S, log S_min and log B_crit, so that errors are relative; their intervals come from the residuals'
covariance and Student's t, and so include what the law itself does not fit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import t as student

CONFIDENCE = 0.95
LEAST = 3  # different batch sizes for two constants and something left over


@dataclass(frozen=True)
class Estimate:
    """A positive number known to a factor.

    Args:
        value: the estimate.
        error: standard error of its logarithm; infinite if nothing is known.
        freedom: degrees of freedom behind the error.
    """

    value: float
    error: float
    freedom: int

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the confidence interval."""
        if not math.isfinite(self.error):
            return 0.0, math.inf
        reach = min(700.0, float(student.ppf(0.5 + CONFIDENCE / 2, self.freedom)) * self.error)
        return self.value * math.exp(-reach), self.value * math.exp(reach)

    def over(self, other: Estimate) -> Estimate:
        """The ratio of two independent estimates; the fewer degrees of freedom of both are taken."""
        return Estimate(self.value / other.value, math.hypot(self.error, other.error), min(self.freedom, other.freedom))


@dataclass(frozen=True)
class Fit:
    """The law, fitted.

    Args:
        smallest: S_min, steps.
        critical: B_crit, examples.
    """

    smallest: Estimate
    critical: Estimate

    def steps(self, batch_size: float) -> float:
        """S at a batch size."""
        return self.smallest.value * (1 + self.critical.value / batch_size)


def fit_critical(batch_sizes: Sequence[float], steps: Sequence[float]) -> Fit | None:
    """Fit the law.

    Args:
        batch_sizes: B of each run.
        steps: S of each run.

    Returns:
        None if there are fewer than three different batch sizes.

    Raises:
        ValueError: lengths that differ, or a number that is not positive.
    """
    if len(batch_sizes) != len(steps):
        raise ValueError(f"a batch size is needed for each number of steps, got {len(batch_sizes)} and {len(steps)}")
    if not all(0 < x < math.inf for x in (*batch_sizes, *steps)):
        raise ValueError("batch sizes and steps must be positive and finite: leave out runs that did not reach the target")
    if len(set(batch_sizes)) < LEAST:
        return None
    logs, measured = np.log(np.asarray(batch_sizes, float)), np.log(np.asarray(steps, float))
    start = (float(measured.min()), float(np.median(logs)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # said by infinite errors
        found, covariance = curve_fit(_law, logs, measured, p0=start, maxfev=20000)
    errors = np.sqrt(np.diag(covariance))
    free = len(steps) - 2
    smallest, critical = (Estimate(float(np.exp(x)), float(e), free) for x, e in zip(found, errors, strict=True))
    return Fit(smallest, critical)


def _law(log_batch: ArrayLike, log_smallest: float, log_critical: float) -> np.ndarray:
    """Log S of log B."""
    return np.asarray(log_smallest + np.logaddexp(0.0, log_critical - np.asarray(log_batch)))
