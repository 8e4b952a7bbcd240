"""Pictures of the quantization study: bits, one imperfection at a time, benefit against distance from a learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from heatbath.experiments.choice import TITLES
from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.plots import COLOURS, INK, style
from heatbath.experiments.studies.grid import SWEEPS
from heatbath.experiments.studies.page import Picture
from heatbath.experiments.studies.quantization import KEPT, Findings, Point, Quantization

MOSTLY = 0.1  # share of blocks solved digitally above which the machine is not to be thanked
FLOOR = -0.2  # shares below are drawn here: worse than AdamW is worse than AdamW
PLAIN = {"digital": "digital, full precision", "control": "control: damping × 10⁹"}
MARKERS = {"thermodynamic-inverse": "o", "thermodynamic-solve": "s"}


def kept(findings: Findings, point: Point) -> bool:
    """Whether a point keeps the benefit with every seed, and the machine did it, not its digital fallback."""
    shares = findings.shares(point)
    return shares is not None and min(shares) >= KEPT and point.digital_share <= MOSTLY


def pictures(study: Quantization, findings: Findings) -> list[Picture]:
    """All pictures with their data; without a benefit to keep a share of, one of losses."""
    beside = Picture(
        "anisotropy",
        f"{_level_name(findings)} against the distance of the preconditioner from one learning rate for each block; hollow: "
        "the digital fallback solved",
        _anisotropy(findings),
        points_csv(findings, findings.points),
    )
    if findings.shares(findings.digital) is None:
        return [beside]
    found = [
        Picture(
            "bits",
            f"share of K-FAC's benefit over AdamW kept, in %, by bits of matrix and read converters; framed where at least "
            f"{KEPT:.0%} is kept by the machine itself, d: share of the blocks the digital fallback solved",
            _grids(study, findings),
            points_csv(findings, [p for p in findings.points if p.group == "grid"]),
        ),
        beside,
    ]
    if study.grid.sweeps:
        varied = [p for p in findings.points if p.group in SWEEPS]
        caption = (
            "share of the benefit kept while one imperfection grows: mean and range over seeds; cross: the fallback solved"
        )
        found.insert(1, Picture("sweeps", caption, _sweeps(study, findings), points_csv(findings, varied)))
    return found


def mean_share(findings: Findings, point: Point) -> float:
    """Mean over seeds; −∞ where one diverged."""
    return fmean(findings.shares(point) or [math.nan])


# --- the grid ------------------------------------------------------------------------------------------------------------


def _grids(study: Quantization, findings: Findings) -> Figure:
    """One panel for each solver and damping."""
    grid = study.grid
    rows, columns = len(grid.solvers), len(grid.dampings)
    with style():
        width = 1.4 + columns * (0.9 + 0.62 * len(grid.read_bits))
        height = 0.6 + rows * (1.1 + 0.4 * len(grid.matrix_bits))
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for solver, line in zip(grid.solvers, axes, strict=True):
            for multiple, panel in zip(grid.dampings, line, strict=True):
                points = [
                    p for p in findings.points if p.group == "grid" and (p.choice.solver, p.multiple) == (solver, multiple)
                ]
                _panel(panel, study, findings, points)
                panel.set_title(f"{TITLES[solver]}\ndamping × {multiple:g}", fontsize=8.5)
        for line in axes:
            line[0].set_ylabel("matrix bits")
        for panel in axes[-1]:
            panel.set_xlabel("read bits")
    return figure


def _panel(axes: Axes, study: Quantization, findings: Findings, points: Sequence[Point]) -> None:
    matrix, read = study.grid.matrix_bits, study.grid.read_bits
    colours = matplotlib.colormaps["RdYlBu"]
    for point in points:
        assert point.choice.machine is not None
        x, y = read.index(point.choice.machine.read_bits or 0), matrix.index(point.choice.machine.matrix_bits or 0)
        share = mean_share(findings, point)
        colour = colours(min(1.0, max(0.0, share))) if math.isfinite(share) else "white"
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
        words = f"{share:.0%}".rstrip("%") if share > -1 else "<-100" if math.isfinite(share) else "✕"
        if point.digital_share > 0.005:
            words += f"\nd {point.digital_share:.0%}"
        dark = math.isfinite(share) and (share > 0.85 or share < 0.12)
        axes.text(x, y, words, ha="center", va="center", fontsize=7.5, color="white" if dark else "#222222")
        if kept(findings, point):
            axes.add_patch(Rectangle((x - 0.44, y - 0.44), 0.88, 0.88, fill=False, edgecolor="#111111", linewidth=1.8))
    axes.set_xticks(range(len(read)), [str(b) for b in read])
    axes.set_yticks(range(len(matrix)), [str(b) for b in matrix])
    axes.set_xlim(-0.5, len(read) - 0.5)
    axes.set_ylim(-0.5, len(matrix) - 0.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


# --- one at a time -------------------------------------------------------------------------------------------------------


def _sweeps(study: Quantization, findings: Findings) -> Figure:
    """One panel for each imperfection, one line for each solver."""
    names = study.grid.sweeps
    columns = 2 if len(names) in (2, 4) else min(3, len(names))
    rows = -(-len(names) // columns)
    with style():
        figure = Figure(figsize=(2.9 * columns + 0.4, 2.6 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for name, axes in zip(names, panels.flat, strict=False):
            for i, solver in enumerate(study.grid.solvers):
                _sweep_line(axes, findings, name, solver, COLOURS[i])
            for level, dash in ((1.0, ":"), (KEPT, "--"), (0.0, ":")):
                axes.axhline(level, color=INK, alpha=0.45, linewidth=0.9, linestyle=dash)
            axes.set_xscale("log")
            axes.set_xticks(SWEEPS[name].values, [f"{v:g}" for v in SWEEPS[name].values])
            axes.xaxis.set_minor_locator(NullLocator())
            if SWEEPS[name].values[0] > SWEEPS[name].values[-1]:
                axes.invert_xaxis()
            axes.set_xlabel(SWEEPS[name].label, fontsize=9)
            axes.set_ylim(FLOOR - 0.05, max(1.15, axes.get_ylim()[1]))
            axes.spines[["top", "right"]].set_visible(False)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        for line in panels:
            line[0].set_ylabel("share of benefit kept")
        panels.flat[0].legend(frameon=False, fontsize=7.5, loc="lower left")
    return figure


def _sweep_line(axes: Axes, findings: Findings, name: str, solver: str, colour: str) -> None:
    points = [p for p in findings.points if p.group == name and p.choice.solver == solver]
    shares = [[max(FLOOR, s) for s in findings.shares(p) or []] for p in points]
    values = [p.value or 0.0 for p in points]
    means = [fmean(s) for s in shares]
    axes.fill_between(values, [min(s) for s in shares], [max(s) for s in shares], color=colour, alpha=0.2, linewidth=0)
    axes.plot(values, means, color=colour, marker=MARKERS[solver], markersize=4, linewidth=1.6, label=TITLES[solver])
    fallen = [(v, m) for v, m, p in zip(values, means, points, strict=True) if p.digital_share > MOSTLY]
    axes.plot([v for v, _ in fallen], [m for _, m in fallen], "x", color=INK, markersize=9)


# --- is it only damping? -------------------------------------------------------------------------------------------------


def _anisotropy(findings: Findings) -> Figure:
    """How good each point is against its layer spread, which damping takes away."""
    share = findings.shares(findings.digital) is not None
    with style():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        kinds: dict[str, tuple[str, str]] = {"digital": ("D", COLOURS[2]), "control": ("v", COLOURS[5])}
        for i, solver in enumerate(MARKERS):
            kinds[solver] = (MARKERS[solver], COLOURS[i])
        seen: set[str] = set()
        for point in findings.points:
            spread = point.preconditioner.get("layer_spread")
            kind = point.group if point.group in kinds else point.choice.solver or ""
            if spread is None or kind not in kinds:
                continue
            marker, colour = kinds[kind]
            title = PLAIN.get(kind) or TITLES[kind]
            level = max(FLOOR, mean_share(findings, point)) if share else fmean(point.losses) / fmean(findings.adam.losses)
            hollow = point.digital_share > MOSTLY
            axes.plot(
                spread,
                level,
                marker,
                color=colour,
                markerfacecolor="none" if hollow else colour,
                markersize=7 if kind in ("digital", "control") else 5,
                alpha=0.9 if kind in ("digital", "control") else 0.6,
                linestyle="none",
            )
            if title not in seen:
                axes.plot([], [], marker, color=colour, linestyle="none", label=title)
            seen.add(title)
        for level, dash in ((1.0, ":"), *(((KEPT, "--"), (0.0, ":")) if share else ())):
            axes.axhline(level, color=INK, alpha=0.45, linewidth=0.9, linestyle=dash)
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_yscale("linear" if share else "log")
        axes.set_xlim(0, 1.3 * axes.dataLim.x1)
        axes.set_xlabel("layer spread of the preconditioner (0: one learning rate for each block)", fontsize=10)
        axes.set_ylabel(_level_name(findings))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _level_name(findings: Findings) -> str:
    """What tells how good a point is."""
    return "share of the benefit kept" if findings.shares(findings.digital) else "training loss over AdamW's"


# --- the numbers ---------------------------------------------------------------------------------------------------------


def points_csv(findings: Findings, points: Sequence[Point]) -> str:
    """Every point with everything that is known of it."""
    return table_csv(COLUMNS, [list(row(findings, point).values()) for point in points], digits=5)


COLUMNS = (
    "group",
    "optimizer",
    "solver",
    "lr",
    "damping",
    "matrix bits",
    "read bits",
    "value",
    "final training loss",
    "over AdamW",
    "over digital K-FAC",
    "share kept",
    "lowest share",
    "test metric",
    "largest condition number",
    "median condition number",
    "spread",
    "layer spread",
    "cosine",
    "solved digitally",
    "damped more",
)


def row(findings: Findings, point: Point) -> dict[str, Any]:  # Any: JSON values
    """A point as plain values; None where there is none, or it is infinite."""
    loss, machine, found, shares = fmean(point.losses), point.choice.machine, point.preconditioner, findings.shares(point)
    metric = point.runs[0].target.metric
    values = [
        point.group,
        point.title,
        point.choice.solver,
        point.choice.hyper.lr,
        point.choice.hyper.damping,
        machine.matrix_bits if machine else None,
        machine.read_bits if machine else None,
        point.value,
        loss,
        loss / fmean(findings.adam.losses),
        loss / fmean(findings.digital.losses),
        None if shares is None else fmean(shares),
        None if shares is None else min(shares),
        fmean(run.measured[-1]["metrics"].get(metric) or math.nan for run in point.runs),
        *(found.get(name) for name in ("condition", "median_condition", "spread", "layer_spread", "cosine")),
        point.digital_share,
        point.damped_share,
    ]
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in zip(COLUMNS, values, strict=True)}
