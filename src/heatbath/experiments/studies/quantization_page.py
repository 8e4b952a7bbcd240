"""The page of the quantization study: which imperfections K-FAC forgives, beside what its preconditioner was like."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from heatbath.experiments.choice import TITLES
from heatbath.experiments.comparison import code_line, data_lines
from heatbath.experiments.optimizers import machine_spec
from heatbath.experiments.studies.grid import DRIFT, DRIFT_SPREAD, SWEEPS
from heatbath.experiments.studies.page import Page, Table
from heatbath.experiments.studies.quantization import KEPT, Findings, Point, Quantization
from heatbath.experiments.studies.quantization_figures import (
    MOSTLY,
    kept,
    mean_share,
    pictures,
    points_csv,
    row,
)
from heatbath.experiments.studies.searches import spread, trials_csv, tuning_table
from heatbath.machines.spec import BOLTZMANN


def quantization_page(study: Quantization, findings: Findings) -> Page:
    """Make the page.

    Args:
        study: its setting.
        findings: what it found.
    """
    header = findings.adam.runs[0].header
    tables = {"Full precision and controls": _plain_points(findings)}
    for solver in study.grid.solvers:
        tables[f"Bits: {TITLES[solver]}"] = _bits(study, findings, solver)
    if study.grid.sweeps:
        tables["One imperfection at a time"] = _alone(study, findings)
    tables["Tuning"] = tuning_table(findings.tuning, [point.title for point in findings.points[:4]])
    return Page(
        title=f"Quantization and other imperfections on {header['experiment']}",
        answer=[f"**{header['summary']}.** " + _scope(study, findings), *_answer(study, findings)],
        setting=_setting(study, findings),
        tables=tables,
        pictures=pictures(study, findings),
        data={"points.csv": points_csv(findings, findings.points), "trials.csv": trials_csv(findings.tuning)},
        result={
            "study": "quantization",
            "recipe": header["experiment"],
            "dataset": header["dataset"],
            "steps": study.setting.steps,
            "batch_size": header["batch_size"],
            "seeds": [run.header["seed"] for run in findings.adam.runs],
            "kept_from": KEPT,
            "tuning": [outcome.tuned.to_json() for outcome in findings.tuning],
            "points": [row(findings, point) for point in findings.points],
        },
    )


# --- words ---------------------------------------------------------------------------------------------------------------


def _scope(study: Quantization, findings: Findings) -> str:
    header = findings.adam.runs[0].header
    return (
        f"{study.setting.steps} steps with batches of {header['batch_size']}, {study.seeds} "
        f"seed{'s' if study.seeds > 1 else ''}: a reduced size, made for few cores; it shows the beginning of training."
    )


def _answer(study: Quantization, findings: Findings) -> list[str]:
    """What was found, in sentences."""
    adam, digital = findings.adam, findings.digital
    start = (
        f"Tuned AdamW ends at a training loss of {spread(adam.losses)}, tuned digital K-FAC at {spread(digital.losses)}. "
        "Shares say how much of this gain is kept, in logarithms of the loss: 100 % is as good as digital K-FAC, 0 % as good "
        "as AdamW, above 100 % better than digital K-FAC."
    )
    if findings.shares(digital) is None:
        return [start, "Digital K-FAC is not better than AdamW here, so there is no benefit whose share could be kept."]
    times = findings.bar / fmean(digital.losses)
    start += (
        f" {KEPT:.0%}, from which on the benefit counts as kept, is a loss of {findings.bar:.3g}, {times:.2g} times K-FAC's."
    )
    lines = [*_region(study, findings), *_limits(study, findings)]
    return [start, "\n".join(f"- {line}" for line in lines), _only_damping(findings)]


def _region(study: Quantization, findings: Findings) -> list[str]:
    """Where the benefit is kept, for each solver and damping."""
    lines = []
    for solver in study.grid.solvers:
        for multiple in study.grid.dampings:
            points = _grid_points(findings, solver, multiple)
            good = [point for point in points if kept(findings, point)]
            handed = sum(point.digital_share > MOSTLY for point in points)
            full = next(p for p in findings.points if p.group == "digital" and p.multiple == multiple)
            text = f"**{TITLES[solver]}, damping × {multiple:g}**"
            text += f" (digital K-FAC: {_percent(findings, full)}): {KEPT:.0%} kept in {len(good)} of {len(points)} cells"
            if good:
                text += f" ({_coarsest(study, good)})"
            if handed:
                text += f"; in {handed} the digital fallback solved more than {MOSTLY:.0%} of the blocks, which does not count"
            lines.append(text + ".")
    return lines


def _coarsest(study: Quantization, good: Sequence[Point]) -> str:
    """For each number of read bits, the fewest matrix bits from which on the benefit is kept."""
    parts = []
    for read in study.grid.read_bits:
        bits = {p.choice.machine.matrix_bits for p in good if p.choice.machine and p.choice.machine.read_bits == read}
        least = None
        for matrix in sorted(study.grid.matrix_bits, reverse=True):
            if matrix not in bits:
                break
            least = matrix
        if least is not None:
            parts.append(f"{read} read bits: from {least} matrix bits")
    return "; ".join(parts) or "scattered"


def _limits(study: Quantization, findings: Findings) -> list[str]:
    """How far each imperfection may go."""
    lines = []
    for name in study.grid.sweeps:
        for solver in study.grid.solvers:
            points = [p for p in findings.points if p.group == name and p.choice.solver == solver]
            good: list[Point] = []
            for point in points:  # from harmless to harmful
                if not kept(findings, point):
                    break
                good.append(point)
            rest = ""
            if len(good) < len(points):
                first = points[len(good)]
                how = "solved digitally" if first.digital_share > MOSTLY else "lost"
                rest = f", {how} at {first.value:g}"
            limit = f"kept up to {good[-1].value:g}" if good else "not kept anywhere"
            lines.append(f"**{SWEEPS[name].label}**, {TITLES[solver]}: {limit}{rest}.")
    return lines


def _only_damping(findings: Findings) -> str:
    """The controls against the points that keep the benefit."""
    control = [point for point in findings.points if point.group == "control"]
    held = [p for p in findings.points if p.choice.machine is not None and kept(findings, p)]
    words = "; ".join(f"{point.title} keeps {mean_share(findings, point):.0%}" for point in control)
    text = f"**Is it only damping?** Controls without curvature, tuned alike: {words}."
    if not held:
        return text
    spreads = [p.preconditioner["layer_spread"] for p in held]
    cosines = [p.preconditioner["cosine"] for p in held]
    worst = [p.preconditioner["condition"] for p in held]
    return text + (
        f" Where the machine keeps at least {KEPT:.0%}, the largest condition number of a damped factor is "
        f"{min(worst):.3g} to {max(worst):.3g}, the eigenvalues of the preconditioner spread by {min(spreads):.2g} to "
        f"{max(spreads):.2g} of their mean within a block (0 for a learning rate), and the update has a cosine of "
        f"{min(cosines):.2f} to {max(cosines):.2f} with the gradient (1 for a learning rate)."
    )


def _setting(study: Quantization, findings: Findings) -> list[str]:
    """How it was done."""
    adam, sgd, digital, huge = findings.tuning
    spec = machine_spec(study.machine, None)
    lines = data_lines([run for point in findings.points[:3] for run in point.runs])
    lines.append(code_line([run for point in findings.points for run in point.runs]))
    lines.append(
        f"Tuning: trials of {study.setting.steps} steps with {_count(study.search_seeds)}, on nine tenths of the "
        f"training examples, by the training loss at the end; compass search on one lattice for all. {adam.title} "
        f"{adam.tuned.trials} trials, {sgd.title} {sgd.tuned.trials}, {digital.title} {digital.tuned.trials}, its control with "
        f"huge damping {huge.tuned.trials}; at most {study.trials} each. K-FAC at other dampings searched its rate anew."
    )
    lines.append(
        f"The machine ({spec.name}, {spec.matrix_bits} bits) takes over learning rate, damping and clip of digital K-FAC and "
        "is not tuned. The grid changes matrix and read bits; the sweeps change one figure of the machine as it is."
    )
    lines.append(
        "Loss at the end: mean over the last tenth of the steps, at least five. Shares are of logarithms of losses, taken seed "
        "by seed; one seed is one start and one order of batches for all."
    )
    lines.append(
        "A matrix that is not positive definite as held is damped more, and after three tries solved digitally (`Guarded`): "
        "both are counted, and a cell where more than a tenth of the blocks was solved digitally does not count as kept."
    )
    lines.append(
        "Layer spread: √(Σ‖P_l − p̄_l I‖²_F / Σ n_l p̄_l²) of the preconditioner P as the run's solver applies it, at the end "
        "of the run, p̄_l = tr P_l/n_l; spread: the same for the whole network at once. Condition numbers are of damped "
        "factors before the machine's diagonal scaling."
    )
    if "drift" in study.grid.sweeps:
        lines.append(
            f"Drift: conductances fall as (1 + t/1 s)^-ν with ν = {DRIFT:g}, rms spread {DRIFT_SPREAD:.0%} between entries: "
            "illustrative figures; t is the time from programming to use."
        )
    if "noise" in study.grid.sweeps and spec.capacitance is not None:
        kelvin = (0.01 * spec.volts) ** 2 * spec.capacitance / BOLTZMANN
        lines.append(
            f"Noise: that of the machine as it is has an rms of {spec.noise**0.5:.1e} of full scale; to make 0.01 of full "
            f"scale, {spec.volts:g} V, out of the heat of a cell of {spec.capacitance:g} F takes {kelvin:.1e} K."
        )
    return lines


def _count(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds, of which the worst counts"


# --- tables --------------------------------------------------------------------------------------------------------------


def _grid_points(findings: Findings, solver: str, multiple: float) -> list[Point]:
    return [p for p in findings.points if p.group == "grid" and (p.choice.solver, p.multiple) == (solver, multiple)]


def _percent(findings: Findings, point: Point) -> str:
    share = mean_share(findings, point)
    text = "diverged" if share == float("-inf") else "–" if share != share else f"{share:.0%}" if share > -1 else "< -100%"
    helped = [f"{sign} {share:.0%}" for sign, share in (("d", point.digital_share), ("r", point.damped_share)) if share > 0.005]
    return text + (f" ({', '.join(helped)})" if helped else "")


def _curvature(point: Point) -> list[str]:
    """Condition number, spread, layer spread and cosine as cells."""
    found = point.preconditioner
    return [
        f"{found[name]:{how}}" if name in found else "–"
        for name, how in (("condition", ".3g"), ("spread", ".2g"), ("layer_spread", ".2g"), ("cosine", ".2f"))
    ]


CURVATURE = ["largest κ of a factor", "spread", "layer spread", "cosine"]


def _plain_points(findings: Findings) -> Table:
    metric = findings.adam.runs[0].target.metric
    head = ["optimizer", "lr", "training loss", "over AdamW", "over K-FAC", "share kept", metric, *CURVATURE]
    rows = []
    for point in findings.points:
        if point.choice.machine is None:
            plain = row(findings, point)
            ratios = ["–" if plain[k] is None else f"{plain[k]:.3g}" for k in ("over AdamW", "over digital K-FAC")]
            ends = [run.measured[-1]["metrics"].get(metric) or float("nan") for run in point.runs]
            cells = [f"{point.choice.hyper.lr:g}", spread(point.losses), *ratios, _percent(findings, point), spread(ends)]
            rows.append([point.title, *cells, *_curvature(point)])
    return Table(head, rows)


def _bits(study: Quantization, findings: Findings, solver: str) -> Table:
    reads = study.grid.read_bits
    head = ["damping ×, matrix bits", *(f"{bits} read bits" for bits in reads), *CURVATURE]
    rows = []
    for multiple in study.grid.dampings:
        points = _grid_points(findings, solver, multiple)
        for matrix in study.grid.matrix_bits:
            line = [p for p in points if p.choice.machine and p.choice.machine.matrix_bits == matrix]
            rows.append([f"{multiple:g}, {matrix}", *(_percent(findings, p) for p in line), *_curvature(line[-1])])
    note = (
        "Share kept, mean over seeds; d: share of the blocks that the digital fallback solved, r: that the machine could hold "
        f"only with more damping. The last columns are of the runs with {reads[-1]} read bits; those of the others: points.csv."
    )
    return Table(head, rows, note)


def _alone(study: Quantization, findings: Findings) -> Table:
    head = ["imperfection", "value", "solver", "share kept", "training loss", *CURVATURE]
    rows = []
    for name in study.grid.sweeps:
        for point in findings.points:
            if point.group == name:
                loss = fmean(point.losses)
                cells = [f"{point.value:g}", TITLES[point.choice.solver or ""], _percent(findings, point), f"{loss:.4g}"]
                rows.append([SWEEPS[name].label, *cells, *_curvature(point)])
    return Table(head, rows)
