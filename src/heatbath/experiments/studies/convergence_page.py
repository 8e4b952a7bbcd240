"""The page of the convergence study: what the outcomes say, in words, one table, and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from heatbath.costs import Bill
from heatbath.experiments.comparison import code_line, data_lines, predict_mean, seconds_text
from heatbath.experiments.groups import steps_text
from heatbath.experiments.plots import Axis, band_csv, band_curves
from heatbath.experiments.records import Record
from heatbath.experiments.studies.bench import Outcome
from heatbath.experiments.studies.convergence import Convergence
from heatbath.experiments.studies.page import Page, Picture, Table
from heatbath.experiments.studies.searches import finite, spread, trials_csv, tuning_table
from heatbath.experiments.tuned import RULE

SMOOTH = 5  # losses of mini-batches that are averaged before they are compared
TAKEN_OVER = {
    "kfac": "damping and clip and searches its learning rate alone",
    "kfac-quadratic": "first damping and searches it further",
}


def convergence_page(study: Convergence, outcomes: Sequence[Outcome]) -> Page:
    """Make the page.

    Args:
        study: its setting.
        outcomes: the baseline first.
    """
    header = outcomes[0].runs[0].header
    target = outcomes[0].runs[0].target
    judged, other = target.metric, _loss_metric(outcomes[0].runs[0])
    groups = [(outcome.title, outcome.runs) for outcome in outcomes]
    axes = [Axis(judged, label=judged, log=not target.higher), Axis("loss", label="training loss", log=True)]
    return Page(
        title=f"Convergence on {header['experiment']}",
        answer=[f"**{header['summary']}.** " + _scope(study, outcomes), *_findings(outcomes)],
        setting=_setting(study, outcomes),
        tables={"Result": _results(outcomes, judged, other), "Tuning": tuning_table(outcomes)},
        pictures=[
            Picture(
                axis.metric.replace(" ", "-"),
                f"{axis.label} against training step: mean over {study.seeds} seeds, band from the lowest to the highest",
                band_curves(groups, axis),
                band_csv(groups, axis),
            )
            for axis in axes
        ],
        data={"trials.csv": trials_csv(outcomes)},
        result={
            "study": "convergence",
            "recipe": header["experiment"],
            "dataset": header["dataset"],
            "steps": study.steps,
            "batch_size": header["batch_size"],
            "seeds": [run.header["seed"] for run in outcomes[0].runs],
            "outcomes": [_plain(outcome, outcomes[0]) for outcome in outcomes],
        },
    )


def steps_to_level(outcome: Outcome, baseline: Outcome, metric: str) -> list[int | None]:
    """For each seed, the first step at which a run is as good as the baseline's run of that seed is at its end.

    Args:
        outcome: whose runs.
        baseline: whose ends.
        metric: of the records; `"loss"` is the training loss, of which `SMOOTH` steps are averaged.
    """
    return [
        _first(_series(run, metric), _series(other, metric)[-1][1], higher=run.target.higher and metric == run.target.metric)
        for run, other in zip(outcome.runs, baseline.runs, strict=True)
    ]


def _series(run: Record, metric: str) -> list[tuple[int, float]]:
    steps, _, values = run.metric(metric)
    if metric != "loss":
        return list(zip(steps, values, strict=True))
    width = min(SMOOTH, len(values) - 1)  # row 0 is the loss of another mini-batch, before any step
    return [(steps[i], fmean(values[i + 1 - width : i + 1])) for i in range(width, len(values))]


def _first(series: Sequence[tuple[int, float]], level: float, *, higher: bool) -> int | None:
    return next((step for step, value in series if (value >= level if higher else value <= level)), None)


def _loss_metric(run: Record) -> str:
    """The other metric of the test split."""
    names = [name for name in run.measured[-1]["metrics"] if name != run.target.metric]
    return names[0] if names else run.target.metric


def _ends(outcome: Outcome, metric: str) -> list[float]:
    return [run.metric(metric)[2][-1] for run in outcome.runs]


def _seconds(outcome: Outcome) -> float:
    return fmean(run.rows[-1]["seconds"] for run in outcome.runs)


def _predicted(outcome: Outcome) -> Bill | None:
    """Predicted bill of a run, mean over seeds."""
    return predict_mean(outcome.runs, [run.measured[-1]["step"] for run in outcome.runs])


def _results(outcomes: Sequence[Outcome], judged: str, other: str) -> Table:
    baseline = outcomes[0]
    grid = [step for step, _ in _series(baseline.runs[0], judged)]
    shown = [step for step in _quarters(grid) if step]
    head = [
        "optimizer",
        *(f"{judged}, step {step}" for step in shown),
        f"{other}, step {shown[-1]}",
        f"steps to {baseline.title}'s final {judged}",
        "seconds here",
        "predicted seconds",
        "predicted seconds to there",
    ]
    rows = []
    for outcome in outcomes:
        level = steps_to_level(outcome, baseline, judged)
        cells = [spread([dict(_series(run, judged)).get(step, math.nan) for run in outcome.runs]) for step in shown]
        cells.append(spread(_ends(outcome, other)))
        cells.append(steps_text(level))
        cells.append(f"{_seconds(outcome):.0f}")
        cells.append(seconds_text(_predicted(outcome)))
        cells.append(seconds_text(predict_mean(outcome.runs, level)))
        rows.append([outcome.title, *cells])
    note = (
        f"Mean over {len(baseline.runs)} seeds, ± half the distance from the lowest to the highest. Seconds are of one run: "
        "here, where the machine is emulated and the computer was shared, so only roughly; predicted, from counted work on one "
        "NVIDIA H100 and one such machine, ≥ where the machine's source leaves something unstated; to there: the work counted "
        "up to each seed's own step, – where a seed was never there."
    )
    return Table(head, rows, note)


def _quarters(grid: Sequence[int]) -> list[int]:
    """The measured steps nearest to a quarter, a half and all of the run."""
    return list(dict.fromkeys(min(grid, key=lambda step: abs(step - grid[-1] * share)) for share in (0.25, 0.5, 1.0)))


def _scope(study: Convergence, outcomes: Sequence[Outcome]) -> str:
    header = outcomes[0].runs[0].header
    examples = study.steps * header["batch_size"]
    return (
        f"{study.steps} steps with batches of {header['batch_size']}: {examples:,} examples, "
        f"{examples / header['dataset']['train']:.2g} passes over the training data. A reduced size, made for few cores: it "
        "shows the beginning of training, not its end."
    )


def _findings(outcomes: Sequence[Outcome]) -> list[str]:
    """What the table says, in sentences."""
    baseline, *others = outcomes
    judged, steps = baseline.runs[0].target.metric, baseline.runs[0].header["steps"]
    lines = []
    for outcome in others:
        level = steps_to_level(outcome, baseline, judged)
        loss = steps_to_level(outcome, baseline, "loss")
        lines.append(
            f"- **{outcome.title}** {_verdict(level, steps)}: it is at {baseline.title}'s final {judged} "
            f"{_when(level, f' of {steps}')}, and at its final training loss {_when(loss)}. After {steps} steps its "
            f"{judged} is {spread(_ends(outcome, judged))}, against {spread(_ends(baseline, judged))}"
            f"{_when_predicted(outcome, baseline, judged)}."
        )
    return ["\n".join(lines)]


def _when_predicted(outcome: Outcome, baseline: Outcome, metric: str) -> str:
    """When both are there, in predicted seconds; nothing where one is not with every seed, or its work is not counted."""
    bills = [predict_mean(one.runs, steps_to_level(one, baseline, metric)) for one in (outcome, baseline)]
    if None in bills:
        return ""
    here, there = map(seconds_text, bills)
    return f"; predicted, it is there after {here}, {baseline.title} after {there}"


def _when(steps: Sequence[int | None], whole: str = "") -> str:
    """At which steps seeds were there, in the middle of a sentence.

    >>> _when([25, 30, None], " of 60"), _when([25]), _when([None])
    ('at step 25 to 30 of 60 with 2 of 3 seeds', 'at step 25', 'at no step')
    """
    known = [step for step in steps if step is not None]
    if not known:
        return "at no step"
    some = "" if len(known) == len(steps) else f" with {len(known)} of {len(steps)} seeds"
    return f"at step {steps_text(known)}{whole}{some}"


def _verdict(level: Sequence[int | None], steps: int) -> str:
    if any(step is None for step in level):
        return "does not win with every seed"
    worst = max(step for step in level if step is not None)
    if 2 * worst <= steps:
        return f"needs at most {worst / steps:.0%} of the steps with every seed"
    return f"needs up to {worst / steps:.0%} of the steps, more than half"


def _setting(study: Convergence, outcomes: Sequence[Outcome]) -> list[str]:
    baseline = outcomes[0]
    digital = next(outcome for outcome in outcomes if outcome.tuned.choice.optimizer == study.contender and not outcome.analog)
    analog = [outcome for outcome in outcomes if outcome.analog]
    judged = baseline.runs[0].target.metric.removeprefix("test ")
    runs = [run for outcome in outcomes for run in outcome.runs]
    lines = [*(f"Data: {line}." for line in data_lines(runs)), code_line(runs)]
    lines.append(
        f"Tuning: trials of {study.steps} steps with seed 0, trained on nine tenths of the training examples and measured on "
        f"the rest; the test split is not looked at. Rule: {RULE.format(metric=judged)}."
    )
    lines.append(
        "Search: compass search from the recipe's defaults on one lattice for all (half decades for learning rate, damping, "
        "clip and 1 − β₂, factors of two for 1 − β₁), until every neighbour of the best is worse."
    )
    baselines = [outcome for outcome in outcomes if outcome is not digital and not outcome.analog]
    had = ", ".join(f"{outcome.title} {outcome.tuned.trials}" for outcome in baselines)
    lines.append(f"{digital.title} had {digital.tuned.trials} trials, {had}.")
    if any(outcome.tuned.near_edge for outcome in outcomes):
        lines.append(
            f"A search ends after {study.trials} trials at the latest; the table says whose best was not walked around."
        )
    if analog:
        most = max(outcome.tuned.trials for outcome in analog)
        lines.append(
            f"Thermodynamic K-FAC takes over the digital one's {TAKEN_OVER[study.contender]}, with at most {most} trials each."
        )
    lines.append(
        f"Runs: the best of each, from scratch on all training data, seeds 1 to {study.seeds}; with one seed all optimizers "
        "have the same start and the same batches."
    )
    return lines


def _plain(outcome: Outcome, baseline: Outcome) -> dict[str, Any]:  # Any: JSON values
    judged = baseline.runs[0].target.metric
    other = _loss_metric(baseline.runs[0])
    predicted, reached = _predicted(outcome), predict_mean(outcome.runs, steps_to_level(outcome, baseline, judged))
    return {
        **outcome.tuned.to_json(),
        "searched": list(outcome.searched),
        "final": {judged: finite(_ends(outcome, judged)), other: finite(_ends(outcome, other))},
        "steps_to_baseline": {m: steps_to_level(outcome, baseline, m) for m in (judged, "loss")},
        "seconds_here": _seconds(outcome),
        "predicted": None if predicted is None else predicted.to_json(),
        "predicted_to_baseline": None if reached is None else reached.to_json(),
        "work": [run.measured[-1].get("work") for run in outcome.runs][:1],
    }
