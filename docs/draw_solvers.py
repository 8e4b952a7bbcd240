"""Draw the figures and fill the tables of docs/solvers.md from benchmarks/results: `python docs/draw_solvers.py`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heatbath.costs.bill import with_unit
from heatbath.experiments.plots import COLOURS

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
Row = dict[str, Any]  # Any: JSON values


def picture(panels: int, legend: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, errors upward on a logarithmic axis, with room for a legend beside them."""
    figure = Figure(figsize=(4.4 * panels + legend, 3.8), layout="constrained")
    axes = [figure.add_subplot(1, panels, k + 1) for k in range(panels)]
    for each in axes:
        each.set_yscale("log")
        each.set_ylabel("relative error")
        each.grid(True, alpha=0.3)
    return figure, axes


def line(axes: Axes, rows: list[Row], x: str, label: str, colour: int, style: str = "o-") -> None:
    """Errors against `x`, where there are any."""
    usable = [row for row in rows if row["error"] is not None]
    axes.plot([row[x] for row in usable], [row["error"] for row in usable], style, color=COLOURS[colour], label=label, ms=4)


def save(figure: Figure, name: str) -> None:
    """As vector graphics that do not change from run to run."""
    with matplotlib.rc_context({"svg.hashsalt": "heatbath", "svg.fonttype": "none"}):
        figure.savefig(HERE / "figures" / name, metadata={"Date": None})


def draw_routes(record: Row) -> None:
    """Mean against covariance, with the error that is predicted of the latter."""
    figure, (axes,) = picture(1)
    rows, n, kappa = record["rows"], record["n"], record["condition"]
    covariance = [row for row in rows if row["route"] == "covariance"]
    for k, noise in enumerate((1e-1, 1e-2, 1e-3)):
        mean = [row for row in rows if row["route"] == "mean" and row["noise"] == noise]
        line(axes, mean, "taus", f"mean, noise {noise:g} of full scale", k)
    line(axes, covariance, "taus", "covariance, any noise", 5, "s-")
    taus = [row["taus"] for row in covariance]
    low, high = ([math.sqrt(bound * (n + 1) / t) for t in taus] for bound in (1, kappa))
    axes.fill_between(taus, low, high, color=COLOURS[5], alpha=0.2, lw=0, label="covariance, predicted range")
    axes.set_xscale("log")
    axes.set_xlabel(f"machine time for the inverse, τ (n = {n}, κ = {kappa:g})")
    axes.set_ylim(3e-6, 2)
    axes.legend(fontsize=7, loc="lower left")
    save(figure, "routes.svg")


def draw_crossbar(record: Row) -> None:
    """Closed loop against thermodynamic, plain and refined."""
    figure, (left, right) = picture(2)
    styles = {"thermodynamic": (0, "o-"), "crossbar": (1, "s-")}
    styles |= {f"{name}, refined": (colour, style[0] + "--") for name, (colour, style) in styles.items()}
    for axes, x in ((left, "bits"), (right, "condition")):
        for name, (colour, style) in styles.items():
            line(axes, [row for row in record["sweeps"][x] if row["solver"] == name], x, name, colour, style)
        axes.axhline(1, color="grey", lw=0.8)
        axes.set_ylim(1e-10, 30)
    left.set_xlabel("bits of matrix, drive and reading (κ = 100)")
    right.set_xlabel("condition number (8 bits)")
    right.set_xscale("log")
    left.legend(fontsize=8)
    save(figure, "crossbar.svg")


def draw_products(record: Row) -> None:
    """Conjugate gradients against refinement on the machine, by products and by predicted seconds."""
    figure, (left, right) = picture(2, legend=2.6)
    conditions = sorted({row["condition"] for row in record["rows"]})
    names = list(dict.fromkeys(row["solver"] for row in record["rows"]))
    for axes, x in ((left, "products"), (right, "seconds")):
        for name, marker in zip(names, ("o", "s", "^"), strict=True):
            for k, kappa in enumerate(conditions):
                rows = [r for r in record["rows"] if (r["solver"], r["condition"]) == (name, kappa) and r["usable"] == 1]
                line(axes, rows, x, f"{name}, κ = {kappa:g}", k, marker + ("-" if name.startswith("conj") else "--"))
        axes.set_ylim(1e-16, 30)
    left.set_xlabel("products with the matrix")
    right.set_xlabel("predicted seconds (one H100, one machine of τ = 1 µs)")
    right.set_xscale("log")
    right.legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    save(figure, "products.svg")


def error(value: float | None) -> str:
    """An error as text."""
    return "none" if value is None else f"{value:.1e}"


def solver_table(record: Row) -> str:
    """Every solver on the same matrices, as Markdown."""
    lines = [
        "| solver | error | 10⁹ operations | machines | drives each | digital | machine |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["solvers"]:
        machines = row["machines"]
        cells = [row["solver"], error(row["error"]), f"{row['gigaflops']:.3f}"]
        cells += [f"{machines:g}", f"{row['drives'] / machines:g}"] if machines else ["–", "–"]
        cells += [with_unit(row["digital seconds"], "s")]
        cells += [with_unit(row["machine seconds"], "s") if machines else "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fault_table(record: Row) -> str:
    """Training under faults, as Markdown."""
    lines = ["| method | what is wrong | loss, whole run | loss, last 10 | test accuracy | the report counts |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in record["rows"]:
        counts = ", ".join(f"{name} {count:g}" for name, count in row["counts"].items()) or "nothing"
        lines.append(
            f"| {row['method']} | {row['fault']} | {row['mean loss']:.3f} | {row['loss']:.3f} | {100 * row['accuracy']:.1f} % "
            f"| {counts} |"
        )
    return "\n".join(lines)


def emulator_table(record: Row) -> str:
    """CPU seconds of this library and of thermox, as Markdown."""
    lines = ["| n | task | thermox | heatbath | times |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        own, rival = row["heatbath"], row["thermox"]
        pairs = [
            ("solve, first, exact law", rival["solve"]["uncached"], own["exact law"]["uncached"]),
            ("solve, first, fast law", rival["solve"]["uncached"], own["fast law"]["uncached"]),
            ("solve, cached, exact law", rival["solve"]["cached"], own["exact law"]["cached"]),
            ("the same, per drive of 64", rival["solve"]["cached"], own["exact law"]["cached, per drive of 64"]),
        ]
        if "every read" in own:
            pairs.append(("solve, first, every read drawn", rival["solve"]["uncached"], own["every read"]["uncached"]))
            pairs.append(("solve, cached, every read drawn", rival["solve"]["cached"], own["every read"]["cached"]))
        pairs.append(("inverse from the covariance", rival["inverse"]["uncached"], own["inverse"]["uncached"]))
        for task, theirs, ours in pairs:
            lines.append(f"| {row['n']} | {task} | {with_unit(theirs, 's')} | {with_unit(ours, 's')} | {theirs / ours:.3g} |")
    return "\n".join(lines)


def rounding_table(record: Row) -> str:
    """Errors of rounded inverses, as Markdown."""
    bits = record["bits"]
    lines = ["| κ | " + " | ".join(f"{b} bits" for b in bits) + " |", "|---|" + "---|" * len(bits)]
    for condition in record["conditions"]:
        cells = []
        for b in bits:
            row = next(r for r in record["rows"] if (r["condition"], r["bits"]) == (condition, b) and r["range"] == "entry")
            text = f"{100 * row['median']:.2g} % ({100 * row['low']:.2g}–{100 * row['high']:.2g})"
            cells.append("indefinite" if row["indefinite"] > 0.5 else text)
        lines.append(f"| {condition:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill(name: str, text: str, page: Path) -> None:
    """Put `text` between the page's marks of this name."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    page.write_text(pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", page.read_text("utf-8"), count=1), "utf-8")


def read(name: str) -> Row:
    """One record of results."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text("utf-8")))


def main() -> None:
    (HERE / "figures").mkdir(exist_ok=True)
    solvers = read("solvers")
    draw_routes(solvers["routes"])
    draw_crossbar(solvers["crossbar"])
    draw_products(solvers["products"])
    fill("table of solvers", solver_table(solvers["table"]), HERE / "solvers.md")
    fill("table of faults", fault_table(read("faults")), HERE / "solvers.md")
    fill("table of rounding", rounding_table(read("rounding")), HERE / "emulator.md")
    fill("table of emulators", emulator_table(read("emulators")), HERE / "emulator.md")


if __name__ == "__main__":
    main()
