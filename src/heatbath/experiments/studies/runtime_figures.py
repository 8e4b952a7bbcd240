"""Figures of the runtime study, each with its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heatbath.costs import PARTS, Bill, Hardware, rescaled, step_prices
from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.plots import COLOURS, DASHES, style, tidy
from heatbath.experiments.studies.crossover import best_digital, seconds_of
from heatbath.experiments.studies.page import Picture
from heatbath.experiments.studies.runtime import Counted, Runtime, with_time_constant
from heatbath.experiments.studies.step_work import FULL
from heatbath.machines.spec import SETTLE_TAUS
from heatbath.machines.spec.derived import settle_seconds

SHOWN = 10  # the interval of the figures
PART_COLOURS = dict(zip(PARTS, ("#7a8794", "#d55e00", "#c79a00", "#b07ad1", "#2e8fd6", "#12a37a"), strict=True))


def parts_picture(study: Runtime, counted: Sequence[Counted]) -> Picture:
    """A step of each network by each method, by part."""
    rows: list[Sequence[object]] = []
    with style():
        figure = Figure(figsize=(7.6, 3.4 * len(counted)), layout="constrained")
        for axes, one in zip(figure.subplots(len(counted), 1, squeeze=False)[:, 0], counted, strict=True):
            shown = [method for method in one.shown(study.methods) if method.name != "fluctuations"]
            for place, method in enumerate(shown):
                bill = step_prices(one.steps[method.name], study.hardware, half=method.half).per_step(SHOWN)
                _bar(axes, place, bill)
                rows.append([one.network.name, method.title, *(bill.seconds_by_part.get(part, 0.0) for part in PARTS)])
            axes.set_yticks(range(len(shown)), [method.title for method in shown], fontsize=8)
            axes.set_ylim(len(shown) - 0.4, -0.6)
            axes.set_title(one.network.title, fontsize=9, loc="left")
            axes.set_xlabel("seconds a step", fontsize=9)
            tidy(axes)
        handles = [figure.axes[0].barh(0, 0, color=PART_COLOURS[part], label=part) for part in PARTS]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    caption = (
        f"Time of a step by part, refreshed every {SHOWN} steps, one machine for each matrix. “digital” includes forward and "
        "backward; “drive” is transfer that settling does not hide"
    )
    return Picture("step-time", caption, figure, table_csv(["network", "method", *(f"{p} (s)" for p in PARTS)], rows))


def _bar(axes: Axes, place: int, bill: Bill) -> None:
    left = 0.0
    for part in PARTS:
        value = bill.seconds_by_part.get(part, 0.0)
        axes.barh(place, value, left=left, color=PART_COLOURS[part], height=0.7)
        left += value


def layers_picture(study: Runtime, layers: Mapping[int, Counted]) -> Picture:
    """Seconds of the preconditioner against the size of a square layer."""
    sizes = sorted(layers)
    by_name = {method.name: method for method in study.methods}
    curves: list[tuple[str, list[float], str, str]] = []
    for k, every in enumerate(study.intervals):
        values = [best_digital(layers[n], study.methods, study.hardware, every)[0] for n in sizes]
        curves.append((f"best digital, refreshed every {every}", values, COLOURS[5], ("-", "--", ":")[k % 3]))
    quick = replace(with_time_constant(study.spec, 1e-8), bandwidth=1e12)
    fast = Hardware(study.digital, quick)
    for colour, name in ((COLOURS[0], "inverse"), (COLOURS[1], "solve"), (COLOURS[2], "fluctuations")):
        method = by_name[name]
        values = [seconds_of(layers[n].steps[name], method, study.hardware, SHOWN) for n in sizes]
        curves.append((f"{method.title}, every {SHOWN}", values, colour, "-"))
        if name != "fluctuations":
            factor = quick.time_constant / study.spec.time_constant
            values = [seconds_of(rescaled(layers[n].steps[name], time=factor), method, fast, SHOWN) for n in sizes]
            curves.append((f"{method.title}, τ = 10 ns, 1 Tbit/s", values, colour, "--"))
    with style():
        figure = Figure(figsize=(7.4, 5.0), layout="constrained")
        axes = figure.add_subplot()
        for title, values, colour, dash in curves:
            axes.plot(sizes, values, dash, color=colour, linewidth=1.7, label=title)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("size n of a square layer")
        axes.set_ylabel("seconds a step for the preconditioner")
        tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    data = [[title, n, value] for title, values, *_ in curves for n, value in zip(sizes, values, strict=True)]
    caption = (
        "Renewing and applying the preconditioner of one layer n × n (passes and outer products left out); machine "
        f"{study.spec.name}, one for each of the two factors; dashed: the same with a hundred times shorter τ and 20 times the "
        "bandwidth"
    )
    return Picture("layer-time", caption, figure, table_csv(["method", "n", "seconds"], data))


def sweeps_picture(study: Runtime, one: Counted) -> Picture:
    """A step of one network against condition number, bits, time constant and machines."""
    by_name = {method.name: method for method in study.methods}
    names = ("inverse", "solve")
    digital = min(
        step_prices(one.steps[m.name], study.hardware, half=m.half).per_step(SHOWN).seconds
        for m in study.methods
        if not m.analog and m.optimizer is None and m.form == FULL
    )
    stated = study.spec.settle_taus or SETTLE_TAUS
    bits = study.spec.matrix_bits or 32

    def settled(condition: float, name: str) -> float:
        taus = settle_seconds(study.spec, condition=condition) / study.spec.time_constant
        return _seconds(one, name, study.hardware, time=taus / stated)

    panels: list[tuple[str, list[float], Callable[[float, str], float]]] = [
        (
            "condition number κ, settled to half a step",
            [1, 3, 10, 30, 100, 300, 1000],
            settled,
        ),
        (
            "bits of all converters",
            [4, 6, 8, 10, 12, 14, 16],
            lambda x, name: _seconds(one, name, study.hardware, bits=x / bits),
        ),
        (
            "time constant τ (s)",
            [1e-9, 1e-8, 1e-7, 1e-6],
            lambda x, name: _seconds(one, name, study.hardware, time=x / study.spec.time_constant),
        ),
        ("machines in all", [1, 4, 16, 64, 256], lambda x, name: _seconds(one, name, replace(study.hardware, machines=int(x)))),
    ]
    rows: list[Sequence[object]] = []
    with style():
        figure = Figure(figsize=(7.8, 5.6), layout="constrained")
        for axes, (label, values, seconds) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for k, name in enumerate(names):
                times = [seconds(x, name) for x in values]
                axes.plot(values, times, DASHES[k], marker="o", markersize=3, color=COLOURS[k], label=by_name[name].title)
                rows += [[label, x, by_name[name].title, t] for x, t in zip(values, times, strict=True)]
            axes.axhline(digital, color=COLOURS[5], linestyle="--", linewidth=1.2, label="best digital K-FAC, factors in full")
            if not label.startswith("bits"):
                axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel(label, fontsize=9)
            axes.set_ylabel("seconds a step", fontsize=9)
            tidy(axes)
        figure.axes[0].legend(frameon=False, fontsize=8)
    rows.append(["best digital K-FAC", "", "", digital])
    caption = (
        f"{one.network.title}: a step against what a machine is, one thing at a time, refreshed every {SHOWN} steps; a "
        "crossbar takes as long as the solve"
    )
    return Picture("sweeps", caption, figure, table_csv(["what", "value", "method", "seconds"], rows))


def _seconds(one: Counted, name: str, hardware: Hardware, *, time: float = 1.0, bits: float = 1.0) -> float:
    return step_prices(rescaled(one.steps[name], time=time, bits=bits), hardware).per_step(SHOWN).seconds
