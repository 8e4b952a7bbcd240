"""Figures of predictions with uncertainty: reliability, and what happens to images that are turned."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from heatbath.experiments.plots import COLOURS, style
from heatbath.experiments.uncertainty import ANGLES, SHIFTED, Measured


def uncertainty_figure(rows: Sequence[Measured]) -> Figure:
    """Reliability upright and turned, and NLL against the angle."""
    with style():
        figure = Figure(figsize=(10.5, 3.4), layout="constrained")
        upright, turned, against = figure.subplots(1, 3)
        for axes, place in ((upright, 0), (turned, SHIFTED)):
            axes.plot([0, 1], [0, 1], color=COLOURS[-1], lw=0.8, ls=":")
            for row, colour in zip(rows, COLOURS, strict=False):
                bins = row.by_angle[place].bins
                axes.plot([b[0] for b in bins], [b[1] for b in bins], color=colour, lw=1.0)
                sizes = [4 + 60 * count / sum(b[2] for b in bins) for _, _, count in bins]
                axes.scatter([b[0] for b in bins], [b[1] for b in bins], s=sizes, color=colour, label=row.name)
            title = "test images" if place == 0 else f"turned by {ANGLES[place]}°"
            axes.set(xlabel="confidence", ylabel="accuracy", title=title, xlim=(0, 1.02), ylim=(-0.02, 1.02))
        for row, colour in zip(rows, COLOURS, strict=False):
            against.plot(ANGLES, [c.nll for c in row.by_angle], "o-", ms=3, color=colour, label=row.name)
        against.set(xlabel="angle (degrees)", ylabel="negative log-likelihood (nats)", title="away from the training data")
        against.set_yscale("log")
        against.legend(frameon=False, fontsize=8)
    return figure
