"""What one linear system on one machine leaves behind: tables for the terminal, a picture, its data, a summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.table import Table

from heatbath.costs import Bill, h100, price, with_unit
from heatbath.experiments.environment import versions
from heatbath.experiments.plots import COLOURS, save_figure
from heatbath.experiments.solving import BEFORE, Settling, Solved, Task, budget
from heatbath.machines import machine_toml

CLIPPED = ("matrix", "drive", "read")


def bill_of(task: Task, solved: Solved) -> Bill:
    """Seconds and joules of the run: digital kernels on one H100, the rest on one such machine."""
    spec = task.machine.spec
    return price(solved.result.work, digital=h100(), machines={spec.name: spec})


def clip_counts(solved: Solved) -> dict[str, int]:
    """How many entries of the matrix, of the drives and of the readings were beyond full scale."""
    return {name: int(solved.result.notes.get(f"{name}_clipped", 0)) for name in CLIPPED}


def accuracy_table(task: Task, solved: Solved, study: Settling) -> Table:
    """Errors, by how they are known, and what else the run reports."""
    result = solved.result
    table = Table(title="accuracy", title_justify="left", title_style="", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    one = "one drive; " if task.solver == "refined" else ""
    parts = ", ".join(f"{name} {float(value):.1e}" for name, value in budget(solved.prediction).items())
    table.add_row("relative error", f"{solved.error:.3e}", "‖x − x*‖/‖x*‖, x* solved digitally in float64")
    table.add_row("predicted before", f"{float(solved.prediction.total):.3e}", f"{one}{parts}")
    table.add_row("expected", f"{study.expected[BEFORE]:.3e}", f"{one}closed form for what the machine holds, root mean square")
    table.add_row("relative residual", f"{float(result.notes['residual']):.3e}", "‖b − Mx‖/‖b‖, measured digitally")
    table.add_row("condition number", f"{float(result.notes['condition']):.3e}", "of the matrix as given")
    table.add_row("outcome", "", "; ".join(result.messages))
    counts = clip_counts(solved)
    table.add_row("clipped", str(sum(counts.values())), ", ".join(f"{name} {count}" for name, count in counts.items()))
    return table


def bill_table(bill: Bill) -> Table:
    """Predicted seconds and joules by part."""
    table = Table(title="predicted time and energy", title_justify="left", title_style="", header_style="bold")
    table.add_column("part", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("energy", justify="right", no_wrap=True)
    for row in bill.rows():
        table.add_row(*row, style="bold" if row[0] == "total" else None)
    return table


def settling_figure(study: Settling, *, title: str) -> Figure:
    """Relative error against the time of a drive: every measured solve, their root mean square, and the closed form."""
    with rc_context({"font.size": 11}):
        figure = Figure(figsize=(6.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        microseconds = [1e6 * t for t in study.seconds]
        scattered = [(t, e) for t, row in zip(microseconds, study.measured, strict=True) for e in row]
        solve = "refined solve" if study.refined else "solve"
        axes.plot(
            *zip(*scattered, strict=True), ".", color=COLOURS[1], alpha=0.25, markersize=4, label=f"one {solve}, emulated"
        )
        axes.plot(
            microseconds, study.rms, "o", color=COLOURS[1], markersize=5, label=f"root mean square of {len(study.measured[0])}"
        )
        label = "closed form, without refinement" if study.refined else "closed form"
        axes.plot(microseconds, study.expected, color=COLOURS[0], linewidth=1.6, label=label)
        axes.axvline(microseconds[BEFORE], color=COLOURS[5], linewidth=1, linestyle=(0, (4, 3)), label="the machine's own time")
        axes.set(xscale="log", yscale="log", xlabel="time of one drive (µs)", ylabel="relative error of the solution")
        axes.set_title(title, fontsize=11, loc="left")
        axes.grid(True, which="major", alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure


def summary(task: Task, solved: Solved, study: Settling, bill: Bill, *, command: str) -> dict[str, Any]:  # Any: JSON values
    """Everything in the tables, and what it takes to do it again."""
    return {
        "command": command,
        "versions": versions(),
        "size": len(task.matrix),
        "rows": task.rhs.reshape(-1, len(task.matrix)).shape[0],
        "solver": task.solver,
        "seed": task.seed,
        "serial": task.machine.serial,
        "machine": machine_toml(task.machine.spec),
        "condition": float(solved.result.notes["condition"]),
        "relative_error": solved.error,
        "predicted": {**{k: float(v) for k, v in budget(solved.prediction).items()}, "total": float(solved.prediction.total)},
        "expected": study.expected[BEFORE],
        "relative_residual": float(solved.result.notes["residual"]),
        "outcome": solved.result.messages,
        "clipped": clip_counts(solved),
        "bill": bill.to_json(),
    }


def write_solution(folder: Path, task: Task, solved: Solved, study: Settling, bill: Bill, *, command: str) -> list[Path]:
    """result.npy, result.json, settling.png, settling.svg and settling.csv.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "result.npy", solved.result.value.numpy())
        record = summary(task, solved, study, bill, command=command)
        (folder / "result.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "settling.csv").write_text(study.to_csv(), encoding="utf-8")
        figure = settling_figure(study, title=f"n = {len(task.matrix)}, {task.solver} on {task.machine.spec.name}")
        for ending in ("png", "svg"):
            save_figure(figure, folder / f"settling.{ending}")
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be written: {error}; choose another with --out") from error
    return sorted(folder.glob("result.*")) + sorted(folder.glob("settling.*"))


def headline(task: Task) -> str:
    """The task in one line."""
    spec, n = task.machine.spec, len(task.matrix)
    rows = task.rhs.reshape(-1, n).shape[0]
    bits = "/".join("–" if b is None else str(b) for b in (spec.matrix_bits, spec.drive_bits, spec.read_bits))
    time = with_unit(task.schedule().seconds, "s")
    what = f"{rows} right-hand side{'s' if rows > 1 else ''} of size {n}"
    return f"{what} by {task.solver} on {spec.name} (bits {bits}, {time} a drive)"
