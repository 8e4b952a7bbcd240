"""Figures of runs: curves with labelled axes, as vector graphics that follow the page's colours, and their data as CSV.

Text and axes are drawn in one marker colour that becomes `currentColor`, so a figure inside a page is readable on light and
on dark ground. Lines keep to colours that are told apart by most colour-blind readers (after Okabe & Ito 2008) and stand
out on both.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heatbath.experiments.experiment import Target
from heatbath.experiments.records import Record

COLOURS = ("#d55e00", "#2e8fd6", "#12a37a", "#b07ad1", "#c79a00", "#7a8794")
DASHES = ("-", "-", "-", "-", "--", ":")
INK = "#012345"  # marks what takes the page's text colour
RAW_POINTS = 120  # above this many points a mean is drawn over the raw curve
CSV_POINTS = 2000  # a curve's data are thinned to about this many rows


@dataclass(frozen=True)
class Axis:
    """What a figure shows.

    Args:
        metric: a metric's name, or "loss".
        against: "step" or "seconds".
        label: of the vertical axis.
        log: whether it is logarithmic.
    """

    metric: str
    against: str = "step"
    label: str = ""
    log: bool = False

    @property
    def title(self) -> str:
        """What it shows, in words."""
        return f"{self.label or self.metric} against {'training step' if self.against == 'step' else 'training time here'}"


def curves(records: Sequence[Record], axis: Axis) -> Figure:
    """One line per run, and the target where the metric is the judged one."""
    with style():
        figure = Figure(figsize=(6.2, 3.9), layout="constrained")
        axes = figure.add_subplot()
        for i, record in enumerate(records):
            _line(axes, record, axis, colour=COLOURS[i % len(COLOURS)], dash=DASHES[i % len(DASHES)])
        if records and records[0].target.metric == axis.metric:
            _target(axes, records[0].target)
        axes.set_xlabel("training step" if axis.against == "step" else "training time here (s)")
        axes.set_ylabel(axis.label or axis.metric)
        if axis.log:
            axes.set_yscale("log")
        axes.grid(True, which="major", alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure


def _target(axes: Axes, target: Target) -> None:
    """Mark the target, and for a share that should approach 1 leave out the far beginning."""
    axes.axhline(target.value, color=INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)), label="target")
    if target.higher and 0 < target.value < 1:
        room = 1 - target.value
        axes.set_ylim(max(axes.get_ylim()[0], 1 - 6 * room), 1 + 0.2 * room)


def _line(axes: Axes, record: Record, axis: Axis, *, colour: str, dash: str) -> None:
    steps, seconds, values = record.metric(axis.metric)
    x = steps if axis.against == "step" else seconds
    if len(values) <= RAW_POINTS:
        axes.plot(x, values, dash, color=colour, linewidth=1.8, label=record.title)
        return
    window = len(values) // 40
    axes.plot(x, values, color=colour, linewidth=0.6, alpha=0.3)
    axes.plot(x, trailing_mean(values, window), dash, color=colour, linewidth=1.8, label=record.title)


def band_curves(groups: Sequence[tuple[str, Sequence[Record]]], axis: Axis) -> Figure:
    """One line per group of runs, its mean, in a band from the lowest to the highest, against steps.

    Args:
        groups: titles, and runs that were measured at the same steps.
        axis: what is shown; `against` is not used.
    """
    with style():
        figure = Figure(figsize=(6.8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for i, (title, records) in enumerate(groups):
            steps, low, mean, high = _band(records, axis.metric)
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(steps, mean, DASHES[i % len(DASHES)], color=colour, linewidth=1.8, label=title)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xlabel("training step")
        axes.set_ylabel(axis.label or axis.metric)
        if axis.log:
            axes.set_yscale("log")
        axes.grid(True, which="both", alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def band_csv(groups: Sequence[tuple[str, Sequence[Record]]], axis: Axis) -> str:
    """The data of `band_curves`: run, step, lowest, mean, highest."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "step", "lowest", f"mean {axis.metric}", "highest"])
    for title, records in groups:
        for step, *values in zip(*_band(records, axis.metric), strict=True):
            writer.writerow([title, step, *(f"{value:.6g}" for value in values)])
    return buffer.getvalue()


def _band(records: Sequence[Record], metric: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that all runs have, and the lowest, mean and highest value at each."""
    series = [dict(zip(*record.metric(metric)[::2], strict=True)) for record in records]
    steps = [step for step in series[0] if all(step in one for one in series)]
    values = [[one[step] for one in series] for step in steps]
    return steps, [min(v) for v in values], [sum(v) / len(v) for v in values], [max(v) for v in values]


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window - 1` before it, over those that are numbers; NaN where none is."""
    means = []
    for i in range(len(values)):
        recent = [v for v in values[max(0, i - window + 1) : i + 1] if math.isfinite(v)]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures: ink that follows the page's colour."""
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    settings: Any = dict.fromkeys(names, INK)  # Any: keys are a closed set of literals in the stubs
    with matplotlib.rc_context({**settings, "font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "heatbath"}):
        yield


def inline_svg(figure: Figure, *, name: str) -> str:
    """The figure as an `<svg>` element to put into a page.

    Args:
        figure: to be drawn.
        name: unique in the page; keeps the identifiers of several figures apart.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file of its own (.svg, .png, .pdf), dark on white.

    Raises:
        OSError: it cannot be written.
    """
    with style():
        dateless = {"Date": None} if path.suffix == ".svg" else None  # the same figure is the same file
        figure.savefig(path, dpi=150, facecolor="white", metadata=dateless)


def curves_csv(records: Sequence[Record], axis: Axis) -> str:
    """The data of a figure: run, step, seconds, value; long curves are thinned."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "step", "seconds", axis.metric])
    for record in records:
        rows = list(zip(*record.metric(axis.metric), strict=True))
        stride = max(1, len(rows) // CSV_POINTS)
        for step, seconds, value in rows[::stride]:
            writer.writerow([record.title, step, f"{seconds:.6g}", f"{value:.7g}"])
    return buffer.getvalue()
