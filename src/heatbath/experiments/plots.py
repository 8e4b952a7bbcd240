"""Curves of runs as SVG text, labelled, one colour per run throughout."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from heatbath.experiments.records import Record

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")  # Okabe & Ito


def curves(records: Sequence[Record]) -> Figure:
    """Training loss and the judged metric against steps, and the metric against seconds."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss, by_step, by_second = figure.subplots(1, 3)
    metric = records[0].target.metric
    for colour, record in zip(COLOURS * (1 + len(records) // len(COLOURS)), records, strict=False):
        steps, _, values = record.metric("loss")
        loss.plot(steps, values, color=colour, lw=1.2, label=record.name)
        steps, seconds, values = record.metric(metric)
        by_step.plot(steps, values, color=colour, lw=1.5)
        by_second.plot(seconds, values, color=colour, lw=1.5)
    loss.set(xlabel="steps", ylabel="training loss (mini-batch)", yscale="log")
    by_step.set(xlabel="steps", ylabel=metric)
    by_second.set(xlabel="seconds here (emulation included)", ylabel=metric)
    for axes in (by_step, by_second):
        axes.axhline(records[0].target.value, color="0.5", lw=0.8, ls="--")
    for axes in (loss, by_step, by_second):
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=min(len(records), 2), frameon=False)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without XML prologue or date."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "heatbath", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save(figure: Figure, path: Path) -> None:
    """Write the figure to a file whose ending names the format."""
    figure.savefig(path, dpi=110)
