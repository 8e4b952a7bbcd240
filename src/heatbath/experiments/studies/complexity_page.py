"""The page of the complexity study: fitted exponents beside claimed ones."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.plots import COLOURS, DASHES, style, tidy
from heatbath.experiments.studies.complexity import (
    COVARIANCE_ERROR,
    ERROR,
    FIXED_CONDITION,
    FIXED_SIZE,
    MEASURED,
    Complexity,
    Growth,
)
from heatbath.experiments.studies.page import Page, Picture, Table

CLOSE = 0.25  # exponents that differ by less are called equal


def complexity_page(study: Complexity, found: Sequence[Growth]) -> Page:
    """Make the page.

    Args:
        study: its setting.
        found: what grows how.
    """
    head = ["quantity", "grows with", "fitted exponent", "claimed", "verdict", "claimed by"]
    rows = [
        [g.quantity, g.variable, g.law.text(), "–" if g.claimed is None else f"{g.claimed:g}", verdict(g), g.source or "–"]
        for g in found
    ]
    note = (
        "Exponents of least squares in logarithms, ± the standard error of the slope; “as claimed” is within "
        f"{CLOSE:g}. A logarithm shows as a small exponent with a large error."
    )
    return Page(
        title="How cost grows: measured exponents",
        answer=_answer(found),
        setting=_setting(study),
        tables={"Exponents": Table(head, rows, note)},
        pictures=[_picture(found, "κ"), _picture(found, "n")],
        data={},
        result={
            "study": "complexity",
            "growths": [{**vars(g), "exponent": g.law.exponent, "error": g.law.error, "factor": g.law.factor} for g in found],
        },
    )


def verdict(growth: Growth) -> str:
    """Whether the claim holds."""
    if growth.claimed is None:
        return "–"
    off = growth.law.exponent - growth.claimed
    if abs(off) <= CLOSE:
        return "as claimed"
    return "grows faster" if off > 0 else "grows more slowly"


def _answer(found: Sequence[Growth]) -> list[str]:
    by = {(g.quantity, g.variable): g for g in found}
    title = {key: quantity for key, quantity, *_ in MEASURED}

    def p(key: str, variable: str) -> str:
        return by[title[key], variable].law.text()

    drives = by["drives of a step, solve", "n"].law
    claim = (
        "Claimed for a layer by method 2: O(n²κ²) (arXiv 2502.08603). A step drives each factor as often as the other one has "
        f"rows (n to the {drives.exponent:.2f}), so the claim is n κ² a drive. Measured for one drive:"
    )
    return [
        claim,
        f"- **Settling**, without noise: n to the {p('settling', 'n')}, κ to the {p('settling', 'κ')}.",
        f"- **Noise**, for drives without a preferred direction: n to the {p('noise', 'n')}, κ to the {p('noise', 'κ')}. Small "
        "eigenvalues make the noise large, and the answer with it.",
        f"- **Noise**, for the worst drive, along the largest eigenvalue: n to the {p('worst', 'n')}, κ to the "
        f"{p('worst', 'κ')}. The law has tr Â⁻² here, which is up to n κ²; drives fill the converters' range whatever n, "
        "and with drives of a fixed norm there would be one n more.",
        f"- **Covariance** (method 1 as published): n to the {p('fluctuations', 'n')}, κ to the {p('fluctuations', 'κ')}.",
        "- Digital rivals: conjugate gradients need κ to the "
        f"{p('gradients', 'κ')} products of n² operations for each drive, Newton–Schulz κ to the {p('newton-schulz', 'κ')} (a "
        "logarithm) steps of n³ for all drives.",
        "- Applying an inverse digitally (method 1) stays n³ operations a step, at every step: only its refresh is cheaper.",
    ]


def _setting(study: Complexity) -> list[str]:
    return [
        f"Counted: steps of one layer n × n, n from {min(study.layers)} to {max(study.layers)}, by the optimizer on shapes.",
        f"Measured: emulated machines with random matrices, eigenvalues evenly spread in logarithm from 1/κ to 1; against n at "
        f"κ = {FIXED_CONDITION:g}, n from {min(study.sizes)} to {max(study.sizes)}; against κ at n = {FIXED_SIZE}, κ from "
        f"{min(study.conditions):g} to {max(study.conditions):g}; mean of {study.seeds} matrices, seeds from 0.",
        f"Relative error asked for: {ERROR:g} of means and digital solvers, {COVARIANCE_ERROR:g} of the covariance.",
        "“From memory of the paper” marks claims whose text was not at hand when this was written.",
    ]


def _picture(found: Sequence[Growth], variable: str) -> Picture:
    names = {quantity for _, quantity, *_ in MEASURED}
    shown = [g for g in found if g.variable == variable and g.quantity in names]
    with style():
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.add_subplot()
        for k, growth in enumerate(shown):
            label = f"{growth.quantity}: {variable}^{growth.law.exponent:.2f}"
            colour = COLOURS[k % len(COLOURS)]
            axes.plot(growth.x, growth.y, "o", color=colour, markersize=5)
            fit = [growth.law.factor * x**growth.law.exponent for x in growth.x]
            axes.plot(growth.x, fit, DASHES[k % len(DASHES)], color=colour, linewidth=1.3, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("condition number κ" if variable == "κ" else "size n")
        axes.set_ylabel("time constants; products; steps")
        tidy(axes)
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    rows = [[g.quantity, x, y, g.law.exponent] for g in shown for x, y in zip(g.x, g.y, strict=True)]
    fixed = f"n = {FIXED_SIZE}" if variable == "κ" else f"κ = {FIXED_CONDITION:g}"
    caption = f"What is measured against {variable}, at {fixed}: points, and the fitted power laws as lines"
    stem = "condition" if variable == "κ" else "size"
    return Picture(f"against-{stem}", caption, figure, table_csv(["quantity", variable, "value", "fitted exponent"], rows))
