"""A machine, checked: what its specification says, what it leaves open, and what follows, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from rich.table import Table

from heatbath.costs import Bill, h100, price, with_unit
from heatbath.machines import Figures, Machine, MachineSpec, SettledApproximation, describe, figures
from heatbath.machines.converters import lsb
from heatbath.machines.rounding import simulated_condition
from heatbath.solvers import default_schedule
from heatbath.solvers.prediction import Prediction, predict
from heatbath.work import Work

LARGEST = 4096  # cells; checking costs a factorization of this size
SIMULATED = 256  # cells of the rounding simulation at most
PRICED = {
    "bandwidth": "time of transfers",
    "sample_rate": "time of conversions",
    "cell_power": "energy of settling and reading",
    "drive_conversion_energy": "energy of conversions",
    "read_conversion_energy": "energy of conversions",
    "transfer_energy": "energy of transfers",
    "cell_area": "area",
}  # what cannot be told without them; every other field left out is ideal
TEXTS = ("name", "source", "notes")


@dataclass(frozen=True, eq=False)
class Check:
    """What follows from a specification.

    Args:
        spec: the machine.
        figures: one for each condition number.
        predictions: error budget of a solve by the machine's own schedule, one for each condition number; none if the mean is
            no solution.
        upload: bill of programming one matrix.
        drive: bill of one drive; None if the mean is no solution.
        simulated: the condition number at which the inverse of what is held is off by half; None: beyond 10¹².
        simulated_cells: size of the matrices of that simulation.
    """

    spec: MachineSpec
    figures: tuple[Figures, ...]
    predictions: tuple[Prediction, ...]
    upload: Bill
    drive: Bill | None
    simulated: float | None
    simulated_cells: int


def check_machine(spec: MachineSpec, *, cells: int, conditions: Sequence[float]) -> Check:
    """Derive the figures of a machine for matrices of one size and several condition numbers.

    Raises:
        ValueError: a size below 1, above the machine's or above 4,096, or a condition number below 1.
    """
    if cells > LARGEST:
        raise ValueError(f"a machine is checked for matrices of at most {LARGEST} cells, got {cells}; take fewer")
    derived = tuple(figures(spec, cells=cells, condition=condition) for condition in conditions)
    simulated_cells = min(cells, SIMULATED)
    simulated = None
    if cells > 1:
        simulated = simulated_condition(spec, cells=simulated_cells, generator=torch.Generator().manual_seed(0))
    machine = Machine(spec)
    programmed = machine.program(
        torch.eye(cells, dtype=torch.float64), circuit=SettledApproximation, check=False
    )  # only its work is of interest
    drive, predictions = None, []
    if spec.coupling is None:
        schedule = default_schedule(machine)
        rows = torch.ones(1, cells, dtype=torch.float64)
        drive = _bill(machine.run(programmed, rows, schedule=schedule, keep_end=False).work, spec)
        predictions = [predict(machine, _spectrum(cells, condition), schedule, 1.0) for condition in conditions]
    upload = _bill(programmed.work, spec)
    return Check(spec, derived, tuple(predictions), upload, drive, simulated, simulated_cells)


def _bill(work: Work, spec: MachineSpec) -> Bill:
    return price(work, digital=h100(), machines={spec.name: spec})


def _spectrum(cells: int, condition: float) -> torch.Tensor:
    """Evenly spaced logarithms, with the mean 1 of a matrix of unit diagonal."""
    values = torch.logspace(-math.log10(condition), 0, cells, dtype=torch.float64)
    return values * cells / values.sum()


def fields_table(spec: MachineSpec) -> Table:
    """Every field that is set, with its unit and meaning."""
    table = Table(header_style="bold", title=f"machine {spec.name}", title_justify="left", title_style="bold")
    table.add_column("field", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for name, unit, meaning in describe():
        value = getattr(spec, name)
        if value is None or name in TEXTS:
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value)
        table.add_row(name, f"{text} {unit}".strip(), meaning.split("; None")[0])
    return table


def left_out(spec: MachineSpec) -> list[str]:
    """What the specification does not say, in two lines: what cannot be priced, and what is taken as ideal."""
    missing = [f.name for f in fields(spec) if getattr(spec, f.name) is None and f.name not in TEXTS]
    unpriced = [f"{name} ({PRICED[name]})" for name in missing if name in PRICED]
    ideal = [name for name in missing if name not in PRICED and not _follows(spec, name)]
    lines = [f"not stated, so not priced: {', '.join(unpriced)}"] if unpriced else []
    return [*lines, f"left out, so ideal or by default: {', '.join(ideal)}"] if ideal else lines


def _follows(spec: MachineSpec, name: str) -> bool:
    """Whether a field that is left out follows from others, or stands for a choice rather than a quality."""
    return name in ("cells", "coupling", "inductance") or (
        name in ("tau", "resistance", "capacitance") and (spec.tau is not None or name == "tau")
    )


def figures_table(check: Check) -> Table:
    """A column for each condition number."""
    n = check.figures[0].cells
    table = Table(header_style="bold", title=f"derived, for matrices of size {n}", title_justify="left", title_style="bold")
    table.add_column("condition number", no_wrap=True)
    for derived in check.figures:
        table.add_column(f"{derived.condition:g}", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    tau = check.spec.time_constant

    def row(name: str, values: Iterable[str], meaning: str) -> None:
        table.add_row(name, *values, meaning)

    how = "10⁻³" if check.spec.read_bits is None else "half a step of the read converter"
    row("settling time", (with_unit(f.settle_seconds, "s") for f in check.figures), f"until a start is forgotten to {how}")
    row("  in time constants", (f"{f.settle_seconds / tau:.3g}" for f in check.figures), f"of {with_unit(tau, 's')}")
    row("rounding, by rule", (f"{f.rounding_error:.1e}" for f in check.figures), "2 (LSB/√12) √n κ, relative, of the inverse")
    if check.predictions:
        own = with_unit(default_schedule(Machine(check.spec)).seconds, "s")
        row("error of a solve", (f"{float(p.total):.1e}" for p in check.predictions), f"predicted, unit vector, {own} a drive")
        for part in ("rounding", "settling", "noise", "conversion"):
            row(f"  {part}", (f"{float(getattr(p, part)):.1e}" for p in check.predictions), "")
    return table


def limits(check: Check) -> list[tuple[str, str]]:
    """What does not depend on the condition number: name and value."""
    spec, first = check.spec, check.figures[0]
    rule = "no limit by bits" if first.largest_condition is None else f"{first.largest_condition:.3g}"
    seen = "beyond 10¹²" if check.simulated is None else f"{check.simulated:.3g}"
    rms = "none" if spec.noise == 0 else f"{with_unit(spec.noise**0.5 * spec.volts, 'V')} rms"
    rows = [
        ("largest usable condition number, by rule", f"{rule} (rounding error ½)"),
        ("  simulated", f"{seen} (inverse of what is held off by half, size {check.simulated_cells})"),
        ("noise of a cell of conductance 1", rms),
        ("  error of one read of a unit vector", f"{first.noise_error:.1e}"),
    ]
    if spec.read_bits is not None:
        rows.append(("step of the read converter", with_unit(float(lsb(spec.read_bits)) * spec.volts, "V")))
    return rows


def bills_table(check: Check) -> Table:
    """Time and energy of programming, of one drive, of both, and of an inverse by unit vectors."""
    n = check.figures[0].cells
    table = Table(header_style="bold", title="time and energy on one machine", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("time", "energy"):
        table.add_column(column, justify="right", no_wrap=True)
    bills = [("upload of one matrix", check.upload)]
    if check.drive is not None:
        bills += [("one drive", check.drive), ("one solve: both", check.upload + check.drive)]
        bills += [(f"one inverse: upload and {n} drives", check.upload + check.drive * n)]
    for name, bill in bills:
        table.add_row(name, *bill.rows()[-1][1:])
    return table
