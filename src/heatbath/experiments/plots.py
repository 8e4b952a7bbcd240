"""Figures of runs: curves with labelled axes, as vector graphics that follow the page's colours, and their data as CSV.

Text and axes are drawn in one marker colour that becomes `currentColor`, so a figure inside a page is readable on light and
on dark ground. Lines keep to colours that are told apart by most colour-blind readers (after Okabe & Ito 2008) and stand
out on both.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.experiment import Target
from heatbath.experiments.groups import Group, group
from heatbath.experiments.records import Record

COLOURS = ("#d55e00", "#2e8fd6", "#12a37a", "#b07ad1", "#c79a00", "#7a8794")
DASHES = ("-", "-", "--", ":", "-.", "-", "--", ":")  # later curves often lie on earlier ones, which must show through
INK = "#012345"  # marks what takes the page's text colour
RAW_POINTS = 120  # above this many points a mean is drawn over the raw curve
LEGEND_ROW = 0.21  # inches
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
    """One line per setting, and the target where the metric is the judged one.

    Several seeds of a setting are their mean, in a band from the lowest to the highest; many points are drawn smoothed, a
    single run over its raw curve.
    """
    with style():
        figure, axes = _canvas()
        for i, one in enumerate(group(records)):
            colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            if len(one.records) == 1:
                _line(axes, one, axis, colour=colour, dash=dash)
            else:
                _band(axes, one.title, _across(one.records, axis), colour=colour, dash=dash)
        if records and records[0].target.metric == axis.metric:
            _target(axes, records[0].target)
        _finish(axes, axis)
    return figure


def _canvas() -> tuple[Figure, Axes]:
    """Small, so that its text can still be read on a phone."""
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    return figure, figure.add_subplot()


def tidy(axes: Axes) -> None:
    """The look of all figures."""
    axes.grid(True, which="major", alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _finish(axes: Axes, axis: Axis) -> None:
    """Labels, scale, and a legend above the curves, where it hides none."""
    axes.set_xlabel("training step" if axis.against == "step" else "training time here (s)")
    axes.set_ylabel(axis.label or axis.metric)
    if axis.log:
        logarithmic(axes, "y")
    tidy(axes)
    legend_above(axes)


class _Powers(LogFormatter):
    """Labels of a logarithmic axis in plain text, 10⁻³ or 0.2; formulas take most of the time of drawing."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return power_text(x) if super().__call__(x, pos) else ""


def power_text(value: float) -> str:
    """A value of a logarithmic axis.

    >>> power_text(1e-3), power_text(2e-3), power_text(10), power_text(5e-7), power_text(1e12)
    ('10⁻³', '0.002', '10', '5·10⁻⁷', '10¹²')
    """
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = f"{value / 10.0**exponent:.3g}"
    if -3 <= exponent <= 3 and (mantissa != "1" or 0 <= exponent <= 1):
        return f"{value:.3g}"
    power = "10" + str(exponent).translate(SUPERSCRIPTS)
    return power if mantissa == "1" else f"{mantissa}·{power}"


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make one axis logarithmic, with labels in plain text."""
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(_Powers())
    axis.set_minor_formatter(_Powers(labelOnlyBase=False, minor_thresholds=(1, 0.4)))


def legend_above(axes: Axes, *, columns: int | None = None) -> None:
    """The legend outside, above the axes; the figure grows by what it needs."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = columns or (2 if max(len(label) for label in labels) <= 26 else 1)
    figure = axes.figure
    assert isinstance(figure, Figure)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LEGEND_ROW * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=9.5, ncols=columns, borderpad=0.1)


def _target(axes: Axes, target: Target) -> None:
    """Mark the target, and for a share that comes near 1 leave out the far beginning."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    axes.axhline(target.value, color=INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)), label=f"target {target.value:g}")
    if target.higher and 0 < target.value < 1:
        room = 1 - target.value
        if all(line[-1] > 1 - 6 * room for line in lines if len(line)):
            axes.set_ylim(max(axes.get_ylim()[0], 1 - 6 * room), 1 + 0.2 * room)


def _line(axes: Axes, one: Group, axis: Axis, *, colour: str, dash: str) -> None:
    steps, seconds, values = one.records[0].metric(axis.metric)
    x = steps if axis.against == "step" else seconds
    if len(values) <= RAW_POINTS:
        axes.plot(x, values, dash, color=colour, linewidth=1.8, label=one.title)
        return
    axes.plot(x, values, color=colour, linewidth=0.6, alpha=0.3)
    axes.plot(x, trailing_mean(values, len(values) // 40), dash, color=colour, linewidth=1.8, label=one.title)


def band_curves(groups: Sequence[tuple[str, Sequence[Record]]], axis: Axis) -> Figure:
    """One line per group of runs, its mean, in a band from the lowest to the highest.

    Args:
        groups: titles, and runs that were measured at the same steps.
        axis: what is shown; seconds are the mean of the runs at a step.
    """
    with style():
        figure, axes = _canvas()
        for i, (title, records) in enumerate(groups):
            colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            _band(axes, title, _across(records, axis), colour=colour, dash=dash)
        _finish(axes, axis)
    return figure


def band_csv(groups: Sequence[tuple[str, Sequence[Record]]], axis: Axis) -> str:
    """The data of `band_curves` before any smoothing: run, step, lowest, mean, highest."""
    rows: list[list[object]] = []
    for title, records in groups:
        across = _across(records, axis)
        for step, *values in zip(across.steps, across.low, across.mean, across.high, strict=True):
            rows.append([title, step, *values])
    return table_csv(["run", "step", "lowest", f"mean {axis.metric}", "highest"], rows)


@dataclass(frozen=True)
class _Across:
    """Several runs at the steps that all of them have."""

    steps: list[int]
    x: Sequence[float]
    low: list[float]
    mean: list[float]
    high: list[float]


def _across(records: Sequence[Record], axis: Axis) -> _Across:
    columns = [record.metric(axis.metric) for record in records]
    series = [{step: (second, value) for step, second, value in zip(*column, strict=True)} for column in columns]
    steps = [step for step in series[0] if all(step in one for one in series)]
    values = [[one[step][1] for one in series] for step in steps]
    means = [sum(v) / len(v) for v in values]
    seconds = [sum(one[step][0] for one in series) / len(series) for step in steps]
    x = steps if axis.against == "step" else seconds
    return _Across(steps, x, [min(v) for v in values], means, [max(v) for v in values])


def _band(axes: Axes, title: str, across: _Across, *, colour: str, dash: str) -> None:
    window = max(1, len(across.steps) // 40) if len(across.steps) > RAW_POINTS else 1
    low, mean, high = (trailing_mean(values, window) for values in (across.low, across.mean, across.high))
    axes.plot(across.x, mean, dash, color=colour, linewidth=1.8, label=title)
    axes.fill_between(across.x, low, high, color=colour, alpha=0.2, linewidth=0)


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
    with matplotlib.rc_context({**settings, "font.size": 10.5, "svg.fonttype": "none", "svg.hashsalt": "heatbath"}):
        yield


def inline_svg(figure: Figure, *, name: str) -> str:
    """The figure as an `<svg>` element to put into a page.

    Args:
        figure: to be drawn.
        name: unique in the page; keeps the identifiers of several figures apart.
    """
    name = re.sub(r"[^\w-]", "-", name)
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
    """The data of a figure before any smoothing: run, seed, step, seconds, value; long curves are thinned."""
    rows: list[list[object]] = []
    for one in group(records):
        for record in one.records:
            points = list(zip(*record.metric(axis.metric), strict=True))
            stride = max(1, len(points) // CSV_POINTS)
            for step, seconds, value in points[::stride]:
                rows.append([one.title, record.header["seed"], step, seconds, f"{value:.7g}"])
    return table_csv(["run", "seed", "step", "seconds", axis.metric], rows)
