"""The page of the runtime study: what the prices say, in words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from heatbath.costs import Bill, Hardware, cell_seconds, rescaled, step_prices, with_unit
from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.plots import COLOURS, style, tidy
from heatbath.experiments.studies.crossover import best_digital, crossover, seconds_of
from heatbath.experiments.studies.networks import Network
from heatbath.experiments.studies.page import Page, Picture, Table
from heatbath.experiments.studies.runtime import WARM_STEPS, Counted, Method, Runtime, with_time_constant
from heatbath.experiments.studies.runtime_figures import (
    SHOWN,
    layers_picture,
    parts_picture,
    sweeps_picture,
)
from heatbath.experiments.studies.step_work import DEFAULT
from heatbath.layers import symmetric_layers
from heatbath.optim import EquilibriumPropagation

TIME_CONSTANTS = (1e-6, 1e-7, 1e-8, 1e-9)
BANDWIDTHS = (50e9, 1e12)
REPLICAS = (1, 16)
DEPTHS = (1, 32)
ROUTES = ("inverse", "solve")


@dataclass(frozen=True)
class Bounded:
    """The network that equilibrium propagation is priced on.

    Args:
        sizes: of its layers, inputs first.
        batch: examples a step.
    """

    sizes: tuple[int, ...] = (64, 256, 128, 10)
    batch: int = 128

    def trainer(self) -> EquilibriumPropagation:
        """Of a network of these sizes."""
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        parts = [part for i, o in pairs for part in (nn.Linear(i, o), nn.Hardtanh(0.0, 1.0))]
        return EquilibriumPropagation(nn.Sequential(*parts[:-1]))


def runtime_page(
    study: Runtime,
    counted: Sequence[Counted],
    layers: Mapping[int, Counted],
) -> Page:
    """Make the page.

    Args:
        study: its setting.
        counted: steps of the networks.
        layers: steps of square layers, by size.
    """
    crossings = _crossings(study, layers)
    tables = {f"Time of a step: {one.network.title}": _step_table(study, one) for one in counted}
    tables["From which size on machines are faster"] = _crossing_table(study, crossings)
    tables["What the cells may draw"] = _power_table(study, counted)
    tables["The rival that is bound to one architecture"] = _bounded_table(study, [one.network for one in counted])
    return Page(
        title="Predicted runtime of a training step",
        answer=_answer(study, counted, crossings),
        setting=_setting(study, counted),
        tables=tables,
        pictures=[
            parts_picture(study, counted),
            layers_picture(study, layers),
            _crossing_picture(study, crossings),
            sweeps_picture(study, counted[0]),
        ],
        data={},
        result={
            "study": "runtime",
            "machine": study.spec.name,
            "digital": study.digital.name,
            "intervals": list(study.intervals),
            "networks": {one.network.name: _plain(study, one) for one in counted},
            "crossovers": [{**dict(zip(CROSSING_HEAD, key, strict=True)), "n": n} for key, n in crossings.items()],
        },
    )


def _bills(study: Runtime, one: Counted, method: Method) -> list[Bill]:
    prices = step_prices(one.steps[method.name], study.hardware, half=method.half)
    return [prices.per_step(every) for every in study.intervals]


def _bill(study: Runtime, one: Counted, method: Method) -> Bill:
    """Of a step at the interval that is shown."""
    return step_prices(one.steps[method.name], study.hardware, half=method.half).per_step(SHOWN)


def _text(bill: Bill, amount: str) -> str:
    unit, unstated = ("s", bill.unstated_seconds) if amount == "seconds" else ("J", bill.unstated_joules)
    value = getattr(bill, amount)
    if unstated and not value:
        return "not stated"
    return ("≥ " if unstated else "") + with_unit(value, unit)


def _step_table(study: Runtime, one: Counted) -> Table:
    head = ["method", *(f"every {every}" for every in study.intervals)]
    head += [f"at {SHOWN}: digital", "upload", "drive", "convert", "settle", "read", "energy"]
    rows = []
    for method in one.shown(study.methods):
        bills = _bills(study, one, method)
        shown = _bill(study, one, method)
        parts = []
        for part in ("digital", "upload", "drive", "convert", "settle", "read"):
            value = shown.seconds_by_part.get(part, 0.0)
            unstated = part in shown.unstated_seconds
            parts.append(with_unit(value, "s") if value else ("not stated" if unstated else "–"))
        rows.append([method.title, *(_text(bill, "seconds") for bill in bills), *parts, _text(shown, "joules")])
    note = (
        "“every” is the interval between refreshes; one machine for each matrix. ≥: the source leaves a part unstated. Factors "
        "are kept in full where no form is named; forms that change no factor of this network are left out."
    )
    return Table(head, rows, note)


def break_even_power(study: Runtime, one: Counted, method: Method) -> float | None:
    """Watts a cell may draw until a step costs as much energy as the best digital K-FAC's; None: it costs more without them.

    Converters and transfer are left out, so a real cell may draw less.
    """
    shown = one.shown(study.methods)
    rivals = [m for m in shown if not m.analog and m.optimizer is None and m.form == method.form]
    digital = min(_bill(study, one, m).joules for m in rivals)
    spare = digital - _bill(study, one, method).joules
    return spare / cell_seconds(one.steps[method.name], SHOWN) if spare > 0 else None


def _power_table(study: Runtime, counted: Sequence[Counted]) -> Table:
    shown = [method for method in study.methods if method.name in ("inverse", "solve")]
    rows = []
    for one in counted:
        powers = [break_even_power(study, one, method) for method in shown]
        rows.append([one.network.title, *("none" if power is None else with_unit(power, "W") for power in powers)])
    note = (
        f"Power of one cell at which a step, refreshed every {SHOWN} steps, costs as much energy as the best digital K-FAC's; "
        "below it the machines save energy. Converters and transfer, whose energies no source states, are left out: an upper "
        "bound. The digital side draws its limit of power whenever it works, and nothing while machines do. none: the digital "
        "part alone costs more."
    )
    if study.spec.resistance is not None:
        watts = study.spec.volts**2 / study.spec.resistance
        note += (
            f" To compare: one coupling of {study.spec.resistance:g} Ω with {study.spec.volts:g} V across it draws "
            f"{with_unit(watts, 'W')}, and a cell has as many couplings as there are cells."
        )
    return Table(["network", *(method.title for method in shown)], rows, note)


CROSSING_HEAD = ("τ", "bandwidth", "layers", "machines a matrix", "method", "every")
Crossings = dict[tuple[float, float, int, int, str, int], float | None]


def _crossings(study: Runtime, layers: Mapping[int, Counted]) -> Crossings:
    """The size from which a route is faster than the best digital method at the same interval."""
    sizes = sorted(layers)
    by_name = {method.name: method for method in study.methods}
    found: Crossings = {}
    for depth in DEPTHS:
        deep = {n: layers[n].times(depth) for n in sizes}
        digital = {e: [best_digital(deep[n], study.methods, study.hardware, e)[0] for n in sizes] for e in study.intervals}
        for tau, bandwidth, replicas in product(TIME_CONSTANTS, BANDWIDTHS, REPLICAS):
            spec = replace(with_time_constant(study.spec, tau), bandwidth=bandwidth)
            factor = spec.time_constant / study.spec.time_constant
            hardware = Hardware(study.digital, spec, replicas=replicas)
            for name, every in product(ROUTES, study.intervals):
                steps = [rescaled(deep[n].steps[name], time=factor) for n in sizes]
                times = [seconds_of(step, by_name[name], hardware, every) for step in steps]
                found[tau, bandwidth, depth, replicas, name, every] = crossover(sizes, times, digital[every])
    return found


def _crossing_table(study: Runtime, crossings: Crossings) -> Table:
    titles = {method.name: method.title.removeprefix("thermodynamic ") for method in study.methods}
    head = [*CROSSING_HEAD[:4], *(f"{titles[n]}, every {e}" for n in ROUTES for e in study.intervals)]
    rows = []
    for tau, bandwidth, depth, replicas in dict.fromkeys(key[:4] for key in crossings):
        cells = [crossings[tau, bandwidth, depth, replicas, name, every] for name in ROUTES for every in study.intervals]
        found = ["never" if n is None else f"{n:,.0f}" for n in cells]
        rows.append([with_unit(tau, "s"), with_unit(bandwidth, "bit/s"), str(depth), str(replicas), *found])
    note = (
        "Smallest n of square layers n × n, one or 32 of them, from which the machines' preconditioner takes no longer than "
        "the best digital one (Cholesky, eigenbases, warm Newton–Schulz, the same in bf16) at the same interval, both with "
        "factors in full; “never”: not up to 16,384, the largest size counted; 64, the smallest: everywhere."
    )
    return Table(head, rows, note)


def _crossing_picture(study: Runtime, crossings: Crossings) -> Picture:
    titles = {method.name: method.title for method in study.methods}
    with style():
        figure = Figure(figsize=(7.8, 3.8), layout="constrained")
        for axes, every in zip(figure.subplots(1, len(study.intervals), sharey=True), study.intervals, strict=True):
            for k, name in enumerate(ROUTES):
                for bandwidth, dash in zip(BANDWIDTHS, ("-", "--"), strict=True):
                    line = [crossings[tau, bandwidth, DEPTHS[-1], 1, name, every] for tau in TIME_CONSTANTS]
                    label = f"{titles[name]}, {with_unit(bandwidth, 'bit/s')}"
                    points = [(tau, n) for tau, n in zip(TIME_CONSTANTS, line, strict=True) if n is not None]
                    axes.plot(
                        *(zip(*points, strict=True) if points else ((), ())), dash, marker="o", color=COLOURS[k], label=label
                    )
            axes.set_xscale("log")
            axes.set_yscale("log", base=2)
            axes.set_xlim(5e-10, 2e-6)
            axes.set_ylim(48, 24000)
            axes.set_xlabel("time constant τ (s)", fontsize=9)
            axes.set_title(f"refreshed every {every}", fontsize=9, loc="left")
            tidy(axes)
        figure.axes[0].set_ylabel("size n from which it is faster")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    rows = [[*key, "never" if n is None else n] for key, n in crossings.items()]
    caption = (
        f"Where machines overtake the best digital method at the same interval: {DEPTHS[-1]} layers n × n, one machine for "
        "each of their matrices; no point: not up to n = 16,384"
    )
    return Picture("crossover", caption, figure, table_csv([*CROSSING_HEAD, "n"], rows))


def _bounded_table(study: Runtime, networks: Sequence[Network]) -> Table:
    """Equilibrium propagation: a price where it works, the reason where it does not."""
    case = Bounded()
    rows = []
    for machines in (1, case.batch):
        work = case.trainer().machine_work(case.batch, study.spec, machines=machines)
        bill = replace(study.hardware, machines=machines).cost(work)
        name = f"perceptron {'-'.join(map(str, case.sizes))} with clipped units, batch {case.batch}"
        rows.append([name, f"yes, {_text(bill, 'seconds')} a step on {machines} machine{'s' if machines > 1 else ''}", ""])
    for network in networks:
        with torch.device("meta"):
            model = network.model()
        try:
            symmetric_layers(model)
        except TypeError as error:
            rows.append([network.title, "no", str(error).removeprefix("equilibrium propagation ")])
        else:
            rows.append([network.title, "yes", ""])
    note = (
        "Equilibrium propagation (Scellier & Bengio 2017) trains a network whose units are the machine's own cells; here on "
        "the same machine, three settlings an example, weights sent at every step, the optimizer's update left out. K-FAC's "
        "machines hold factors, whatever the network: every network above is treated by them."
    )
    return Table(["network", "trained by equilibrium propagation", "why not"], rows, note)


def _answer(study: Runtime, counted: Sequence[Counted], crossings: Crossings) -> list[str]:
    lines = [
        f"Predicted, not measured: operations are counted by stepping this library's own optimizers on shapes, and priced on "
        f"one {study.digital.name} and machines of the kind {study.spec.name}, one for each matrix: many "
        "machines beside one accelerator."
    ]
    for one in counted:
        lines.append(_finding(study, one))
    stated = {k: n for k, n in crossings.items() if k[0] == TIME_CONSTANTS[0] and k[1] == BANDWIDTHS[0] and k[3] == 1}
    for every, depth in product(study.intervals, DEPTHS):
        best = {k[4]: n for k, n in stated.items() if k[5] == every and k[2] == depth and n is not None}
        scope = (
            f"- {depth} square layer{'s' if depth > 1 else ''}, refreshed every {every} step{'s' if every > 1 else ''}, with "
        )
        scope += (
            f"τ = {with_unit(TIME_CONSTANTS[0], 's')}, {with_unit(BANDWIDTHS[0], 'bit/s')} and one machine for each matrix: "
        )
        if best:
            name = min(best, key=lambda k: best[k])
            lines.append(scope + f"the thermodynamic {name} overtakes the best digital method at n ≈ {best[name]:,.0f}.")
        else:
            lines.append(scope + "no route overtakes the best digital method up to n = 16,384.")
    return lines


def _finding(study: Runtime, one: Counted) -> str:
    """The fastest digital and the fastest with machines: with the same factors, then in any form."""
    shown = one.shown(study.methods)
    adam = _bill(study, one, next(m for m in shown if m.name == "adam")).seconds
    sentences = []
    for form in dict.fromkeys(m.form for m in shown):
        digital, analog = (_fastest(study, one, [m for m in shown if m.form == form], analog=side) for side in (False, True))
        seconds, machine = _bill(study, one, digital).seconds, _bill(study, one, analog)
        sentences.append(
            f"with {form.title} the best digital K-FAC ({digital.short}) takes {with_unit(seconds, 's')}, {seconds / adam:.3g} "
            f"times Adam's {with_unit(adam, 's')}; the best of the machines ({analog.short}) {_text(machine, 'seconds')}, "
            f"{machine.seconds / seconds:.3g} times as long"
        )
    best = [_bill(study, one, _fastest(study, one, shown, analog=side)).seconds for side in (True, False)]
    rest = "; the library's default changes no factor here" if all(m.form != DEFAULT for m in shown) else ""
    if len(sentences) > 1:
        rest += f"; the fastest with machines over the fastest digital one, whatever the form: {best[0] / best[1]:.3g}"
    held = one.steps["inverse"].programming.jobs
    return (
        f"- **{one.network.title}**, refreshed every {SHOWN} steps: {'; '.join(sentences)}{rest}. Factors in full take "
        f"{sum(held.values()):,.0f} machines of up to {max(job.cells for job in held):,} cells."
    )


def _fastest(study: Runtime, one: Counted, methods: Sequence[Method], *, analog: bool) -> Method:
    able = [m for m in methods if m.analog is analog and m.optimizer is None]
    return min(able, key=lambda m: _bill(study, one, m).seconds)


def _setting(study: Runtime, counted: Sequence[Counted]) -> list[str]:
    lines = [f"{one.network.title}: {one.network.source}." for one in counted]
    lines.append(f"Digital side: {study.digital.source}. Products in TF32, also in forward and backward.")
    lines.append(f"Machine: {study.spec.source}. {study.spec.notes or ''}".strip())
    lines.append(
        "Phases of a step wait for one another and nothing is overlapped. Products that follow one another (Newton–Schulz) are "
        "priced as if they were one stack, which favours the digital side; “in bf16” prices all of them in bf16."
    )
    lines.append(
        f"Newton–Schulz takes {WARM_STEPS} steps from the last inverse ({2 * WARM_STEPS + 1} products). "
        "That is enough where a refresh finds the factors near those of the last one, and not always: what has not converged "
        "is handed to Cholesky, which is not priced here. In bf16 it converges for condition numbers well below 256 only."
    )
    lines.append(
        "Blocks and sketches are other preconditioners than factors in full: how many steps they take has to be measured as "
        "well. Machines are compared with digital K-FAC of the same form."
    )
    lines.append("Norms, embeddings and the output layer over a vocabulary are trained by AdamW, for every K-FAC alike.")
    lines.append(
        "Machines settle for the stated time to converge, whatever the matrix, but where a figure varies the condition number."
    )
    return lines


def _plain(study: Runtime, one: Counted) -> dict[str, Any]:  # Any: JSON values
    return {
        method.name: {str(e): bill.to_json() for e, bill in zip(study.intervals, _bills(study, one, method), strict=True)}
        for method in study.methods
        if method.name in one.steps
    }
