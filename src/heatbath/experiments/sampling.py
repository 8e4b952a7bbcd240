"""Samples of a Gaussian beside the Gaussian itself, coordinate by coordinate."""

from __future__ import annotations

from torch import Tensor

from heatbath.samplers import Diagnostics, Draws, Gaussian, diagnose

HEAD = ("coordinate", "mean", "exact", "deviation", "exact", "effective samples", "R-hat", "mean − exact, in errors")


def sampling_rows(gaussian: Gaussian, draws: Draws) -> list[tuple[str, ...]]:
    """Rows of a table under `HEAD`; "–" where arviz-stats is missing or the samples are too few for it."""
    values = draws.values.flatten(0, 1)
    exact, deviation = gaussian.mean(), gaussian.covariance().diagonal().sqrt()
    found = _diagnosed(draws.values)
    rows = []
    for i in range(len(exact)):
        mean, spread = float(values[:, i].mean()), float(values[:, i].std(correction=0))
        cells = [f"{v:.5g}" for v in (mean, float(exact[i]), spread, float(deviation[i]))]
        if found is None:
            judged = ["–"] * 3
        else:
            score = (mean - float(exact[i])) / found.error[i]
            judged = [f"{found.effective[i]:.0f}", f"{found.r_hat[i]:.3f}", f"{score:+.1f}"]
        rows.append((str(i), *cells, *judged))
    return rows


def _diagnosed(values: Tensor) -> Diagnostics | None:
    try:
        return diagnose(values)
    except (ImportError, ValueError):
        return None
