"""How far samples can be trusted, by the library arviz-stats (extra `studies`)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Diagnostics:
    """Of each coordinate (Vehtari et al. 2021, arXiv 1903.08008).

    Args:
        effective: effective number of samples for the mean (bulk, rank-normalized).
        r_hat: potential scale reduction; above 1.01 the chains have not mixed.
        error: Monte Carlo standard error of the mean.
    """

    effective: tuple[float, ...]
    r_hat: tuple[float, ...]
    error: tuple[float, ...]


def diagnose(values: Tensor) -> Diagnostics:
    """Effective sample size, R-hat and standard error of `[reads, chains, n]`.

    Raises:
        ImportError: arviz-stats is not installed.
        ValueError: fewer than 4 reads or 2 chains, or another shape.
    """
    if values.ndim != 3 or values.shape[0] < 4 or values.shape[1] < 2:
        raise ValueError(f"diagnostics need [reads >= 4, chains >= 2, n], got {tuple(values.shape)}")
    try:
        array_stats: Any = import_module("arviz_stats.base").array_stats  # Any: an optional library
    except ImportError as error:
        raise ImportError("diagnostics need the package arviz-stats: pip install 'heatbath[studies]'") from error
    array = values.detach().cpu().double().numpy()
    axes = {"chain_axis": 1, "draw_axis": 0}
    columns = (array_stats.ess(array, **axes), array_stats.rhat(array, **axes), array_stats.mcse(array, **axes))
    return Diagnostics(*(tuple(float(v) for v in column) for column in columns))
