"""The page of the design study: the cheapest machine, what training said, and a Pareto picture."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from heatbath.costs import with_unit
from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.plots import COLOURS, INK, style, tidy
from heatbath.experiments.studies.design import TIME_CONSTANTS, Budget, Candidate, Design, Designed, Tried, frontier
from heatbath.experiments.studies.page import Page, Picture, Table

HEAD = ["machine", "bits", "settling", "τ", "machines", "cells", "couplings (bits)", "seconds a step", "energy", "benefit"]


def design_page(study: Design, found: Designed, budget: Budget) -> Page:
    """Make the page.

    Args:
        study: its setting.
        found: what it found.
        budget: what a step may take.
    """
    task = study.recipe()
    cheapest = found.cheapest(budget)
    best = frontier(found.candidates)
    tried = [found.baseline, found.digital, *found.precisions]
    return Page(
        title=f"The cheapest machine for {task.name}",
        answer=_answer(study, found, budget, cheapest),
        setting=[
            f"Benefit: steps to {task.target.describe()}, measured after every step, {study.seeds} seeds; kept: at least "
            f"{study.keep:.0%} of the steps that digital K-FAC saves over AdamW, every seed arriving, with at most "
            f"{study.fallback:.0%} of the prepared blocks handed to the digital side.",
            "Hyper-parameters are the recipe's defaults for all; machines take over digital K-FAC's. A search for each "
            "precision could save more of them.",
            f"Prices: digital side {study.digital.name}, refreshed every {study.every} steps; τ of "
            f"{', '.join(with_unit(tau, 's') for tau in TIME_CONSTANTS)}; each machine holds the largest factor whole.",
            "Proxy for the price of machines: machines · cells² · matrix bits, which is bits held in couplings; no source "
            "states an area.",
            f"Machine: {study.spec.source}. {study.spec.notes or ''}".strip(),
        ],
        tables={
            "What training said": Table(
                ["optimizer", "settling", "steps to target, by seed", "mean", "handed to the digital side", "benefit"],
                [_trial_row(one, found, study) for one in tried],
                "A matrix that rounding made indefinite is damped more, and if that does not help prepared digitally: a run "
                "that lives on that learns as digital K-FAC does and shows nothing about the machine.",
            ),
            "No cheaper one is as fast": Table(HEAD, [_row(candidate) for candidate in best]),
        },
        pictures=[_picture(found, budget, cheapest)],
        data={},
        result={
            "study": "design",
            "recipe": task.name,
            "budget": vars(budget),
            "digital_seconds": found.digital_seconds,
            "cheapest": None if cheapest is None else dict(zip(HEAD, _row(cheapest), strict=True)),
            "tried": [_plain(one) for one in tried],
        },
    )


def _answer(study: Design, found: Designed, budget: Budget, cheapest: Candidate | None) -> list[str]:
    words = {"seconds": "s a step", "joules": "J a step", "slowdown": "times the best digital K-FAC's time"}
    limits = ", ".join(f"{value:g} {words[name]}" for name, value in vars(budget).items() if value is not None)
    saved = "never arrives with every seed" if found.baseline.mean is None else f"takes {found.baseline.mean:g} steps"
    reached = "never arrives with every seed" if found.digital.mean is None else f"takes {found.digital.mean:g}"
    lines = [f"AdamW {saved} to the target, digital K-FAC {reached}; a step of the best digital K-FAC takes "
             f"{with_unit(found.digital_seconds, 's')}. Budget: {limits}."]  # fmt: skip
    if cheapest is None:
        if not any(candidate.kept for candidate in found.candidates):
            lines.append("**No precision that was tried keeps the benefit.**")
        elif budget.joules is not None and all(candidate.bill.unstated_joules for candidate in found.candidates):
            lines.append(
                "**No machine can be shown to meet the budget**: its source states no energies. Give a file with `cell_power`, "
                "conversion and transfer energies to --machine."
            )
        else:
            fastest = min((c for c in found.candidates if c.kept), key=lambda c: c.bill.seconds)
            lines.append(
                "**No machine that was priced keeps the benefit within the budget.** The fastest that keeps it takes "
                f"{_time(fastest)} a step: {_words(fastest)}."
            )
        return lines
    failed = [one for one in found.precisions if not study.kept(one, found.baseline, found.digital)]
    lost = sorted({one.precision.bits for one in failed if one.precision})
    lines.append(f"**The cheapest that keeps the benefit within the budget: {_words(cheapest)}**, {_time(cheapest)} a step.")
    if lost:
        lines.append(f"Some machines of {', '.join(map(str, lost))} bits lose the benefit; see the table.")
    return lines


def _words(candidate: Candidate) -> str:
    precision = candidate.tried.precision
    assert precision is not None
    number = f"{candidate.machines} machine{'s' if candidate.machines > 1 else ''}"
    return (
        f"{number} of {candidate.cells} cells, {precision.bits} bits, τ = {with_unit(candidate.tau, 's')}, settling for "
        f"{precision.settle:g} τ, {precision.solver.replace('-', ' ')}"
    )


def _time(candidate: Candidate) -> str:
    return ("≥ " if candidate.bill.unstated_seconds else "") + with_unit(candidate.bill.seconds, "s")


def _trial_row(tried: Tried, found: Designed, study: Design) -> list[str]:
    steps = ", ".join("never" if count is None else str(count) for count in tried.steps)
    settle = "–" if tried.precision is None else f"{tried.precision.settle:g} τ"
    verdict = "–" if tried.precision is None else ("kept" if study.kept(tried, found.baseline, found.digital) else "lost")
    handed = "–" if tried.precision is None else f"{tried.fallback:.0%}"
    return [tried.title, settle, steps, "–" if tried.mean is None else f"{tried.mean:g}", handed, verdict]


def _plain(tried: Tried) -> dict[str, Any]:  # Any: JSON values
    machine = {} if tried.precision is None else vars(tried.precision)
    return {"title": tried.title, "steps": list(tried.steps), "fallback": tried.fallback, **machine}


def _row(candidate: Candidate) -> list[str]:
    precision = candidate.tried.precision
    assert precision is not None
    joules = with_unit(candidate.bill.joules, "J")
    return [
        precision.solver.replace("-", " "),
        str(precision.bits),
        f"{precision.settle:g} τ",
        with_unit(candidate.tau, "s"),
        str(candidate.machines),
        str(candidate.cells),
        f"{candidate.couplings:.3g}",
        _time(candidate),
        f"≥ {joules}" if candidate.bill.unstated_joules else joules,
        "kept" if candidate.kept else "lost",
    ]


def _picture(found: Designed, budget: Budget, cheapest: Candidate | None) -> Picture:
    bits = sorted({one.precision.bits for one in found.precisions if one.precision})
    with style():
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        for k, level in enumerate(bits):
            for kept in (True, False):
                some = [c for c in found.candidates if c.kept is kept and c.tried.precision and c.tried.precision.bits == level]
                colour = COLOURS[k % len(COLOURS)]
                axes.plot(
                    [c.couplings for c in some],
                    [c.bill.seconds for c in some],
                    "o" if kept else "x",
                    color=colour,
                    markersize=5,
                    label=f"{level} bits, benefit {'kept' if kept else 'lost'}" if some else None,
                )
        best = frontier(found.candidates)
        axes.plot([c.couplings for c in best], [c.bill.seconds for c in best], drawstyle="steps-post", color=INK, linewidth=1)
        axes.axhline(found.digital_seconds, color=COLOURS[5], linestyle="--", linewidth=1.2, label="best digital K-FAC")
        limit = min(
            (x for x in (budget.seconds, budget.slowdown and budget.slowdown * found.digital_seconds) if x), default=None
        )
        if limit is not None:
            axes.axhline(limit, color=INK, linestyle=":", linewidth=1.2, label="budget")
        if cheapest is not None:
            axes.plot(cheapest.couplings, cheapest.bill.seconds, "o", markersize=13, markerfacecolor="none", color=INK)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bits held in couplings, all machines (proxy for their price)")
        axes.set_ylabel("seconds a step")
        tidy(axes)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    head = ["optimizer", "bits", "settling (τ)", "τ (s)", "machines", "couplings (bits)", "seconds", "joules"]
    rows: list[list[object]] = []
    for c in found.candidates:
        assert c.tried.precision is not None
        machine = [c.tried.precision.bits, c.tried.precision.settle, c.tau, c.machines, c.couplings]
        rows.append([c.tried.title, *machine, c.bill.seconds, c.bill.joules, bool(c.bill.unstated_joules), c.kept])
    head += ["joules unstated", "kept"]
    caption = (
        "Every machine: time of a step against what it holds, by bits; line: no cheaper one is as fast; circle: the cheapest "
        "within the budget"
    )
    return Picture("pareto", caption, figure, table_csv(head, rows))
