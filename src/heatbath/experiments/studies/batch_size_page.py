"""The page of the batch-size study: steps to a target, the critical batch size, and where that stands in the literature."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from heatbath.experiments.comparison import code_line, data_lines
from heatbath.experiments.csv_text import table_csv
from heatbath.experiments.optimizers import CURVED
from heatbath.experiments.plots import COLOURS, style
from heatbath.experiments.studies.batch_size import BatchSize, Scaling
from heatbath.experiments.studies.critical import CONFIDENCE, Estimate
from heatbath.experiments.studies.page import Page, Picture, Table
from heatbath.experiments.studies.searches import best_and_tried, finite, trials_csv

MARKS = "osD^vP"


def batch_size_page(study: BatchSize, found: Sequence[Scaling]) -> Page:
    """Make the page.

    Args:
        study: its setting.
        found: one for each contender, in their order.
    """
    first = next(iter(found[0].outcomes.values())).runs[0].header
    goal = found[0].target
    return Page(
        title=f"Batch size on {first['experiment']}",
        answer=[f"**{first['summary']}.** " + _scope(study, found), _findings(found), *_literature(study, found)],
        setting=_setting(study, found),
        tables={
            f"Steps to {goal.describe()}": _steps_table(found),
            "Critical batch size": _fits_table(found),
            "Tuning": _tuning(found),
        },
        pictures=[
            Picture(
                "steps",
                f"steps to {goal.describe()} against batch size: every run, and S_min (1 + B_crit/B) fitted",
                _figure(found, examples=False),
                _csv(found),
            ),
            Picture(
                "examples",
                f"examples to {goal.describe()} against batch size: level where twice the batch halves the steps",
                _figure(found, examples=True),
                _csv(found),
            ),
        ],
        data={"trials.csv": trials_csv([outcome for one in found for outcome in one.outcomes.values()])},
        result={
            "study": "batch-size",
            "recipe": first["experiment"],
            "dataset": first["dataset"],
            "target": vars(goal),
            "most_steps": study.setting.steps,
            "seeds": list(range(1, study.seeds + 1)),
            "trials": study.trials,
            "optimizers": [_plain(one) for one in found],
        },
    )


# --- words ---------------------------------------------------------------------------------------------------------------


def _scope(study: BatchSize, found: Sequence[Scaling]) -> str:
    sizes = list(found[0].outcomes)
    return (
        f"Batch sizes {sizes[0]} to {sizes[-1]}, {study.seeds} seeds, {study.trials} trials of each optimizer at each batch "
        "size: a small task and a reduced size, made for few cores."
    )


def _range(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:.3g} ({low:.3g} to {high:.3g})" if high < 1e6 else f"{estimate.value:.3g} (not determined)"


def _findings(found: Sequence[Scaling]) -> str:
    lines = []
    for one in found:
        steps = one.steps
        missed = [str(size) for size, reached in steps.items() if None in reached]
        whole = [size for size in steps if str(size) not in missed]
        text = f"**{one.title}**: "
        if whole:
            small, large = (fmean(s for s in steps[size] if s is not None) for size in (whole[0], whole[-1]))
            text += f"{small:.3g} steps with batches of {whole[0]}, {large:.3g} with {whole[-1]}"
        fit = one.fit
        if fit is not None:
            text += f"; critical batch size {_range(fit.critical)}, fewest steps {_range(fit.smallest)}"
        if missed:
            text += f"; the target was not reached by every seed within the steps allowed at {', '.join(missed)}"
        lines.append(f"- {text}.")
    return "\n".join(lines)


def _literature(study: BatchSize, found: Sequence[Scaling]) -> list[str]:
    """Which of the published findings this run agrees with."""
    by_kind = dict(zip(study.contenders, found, strict=True))
    plain = next((one for c, one in by_kind.items() if c.optimizer == "sgd"), None)
    lines = [
        "Shallue et al. (2018, arXiv 1811.03600) find perfect scaling up to a batch size that depends on task and optimizer, "
        "then diminishing returns. Zhang et al. (2019, arXiv 1907.04164) find, and predict by a noisy quadratic model, much "
        "larger critical batch sizes for Adam and K-FAC than for SGD with momentum. Ma et al. (2019, arXiv 1903.06237) find "
        "that K-FAC scales no better to large batches than SGD."
    ]
    if plain is None or plain.fit is None:
        return lines
    verdicts = []
    for contender, one in by_kind.items():
        if one is plain or one.fit is None:
            continue
        ratio = one.fit.critical.over(plain.fit.critical)
        low, high = ratio.interval
        if low > 1:
            verdict = "larger, as Zhang et al. say"
        elif high < 1:
            verdict = "smaller, against Zhang et al." + (" and with Ma et al." if contender.optimizer in CURVED else "")
        else:
            verdict = "not told apart from 1 here: neither finding is contradicted"
        verdicts.append(
            f"- **{one.title}** against SGD: critical batch size × {_range(ratio)}: {verdict} ({_fewer(one, plain)})."
        )
    return [*lines, "\n".join(verdicts)] if verdicts else lines


def _fewer(one: Scaling, plain: Scaling) -> str:
    """Steps of one over those of another, at the smallest and the largest batch size that both were fitted at."""
    steps = [{size: [s for b, s in each.reached if b == size] for size, _ in each.reached} for each in (one, plain)]
    sizes = sorted(steps[0].keys() & steps[1].keys())
    if not sizes:
        return "no batch size in common"
    ratios = [fmean(steps[0][size]) / fmean(steps[1][size]) for size in (sizes[0], sizes[-1])]
    return f"{ratios[0]:.2f} of SGD's steps with batches of {sizes[0]}, {ratios[1]:.2f} with {sizes[-1]}"


def _often(eval_every: int | None) -> str:
    if eval_every is None:
        return "measured as often as the recipe says"
    return "measured after every step" if eval_every == 1 else f"measured every {eval_every} steps"


def _setting(study: BatchSize, found: Sequence[Scaling]) -> list[str]:
    runs = [run for one in found for outcome in one.outcomes.values() for run in outcome.runs]
    goal = found[0].target
    return [
        *data_lines(runs),
        code_line(runs),
        f"Target: {goal.describe()}, {_often(study.setting.eval_every)}; a run ends when it is there, at most "
        f"{study.setting.steps} steps. Steps are counted to the first measurement at the target, so that few steps are rough.",
        f"Tuning: {study.trials} trials for every optimizer at every batch size, seed 0, trained on nine tenths of the "
        "training examples, for the fewest steps to the same value on the rest; compass search over learning rate and "
        "momentum (SGD), learning rate, β₁ and β₂ (Adam), learning rate, damping and clip (K-FAC), from the best at the next "
        "smaller batch size, at the smallest from the recipe's defaults.",
        f"Runs: seeds 1 to {study.seeds} on all training data, measured on the test split.",
        f"Fit: least squares in log S over all runs at batch sizes where every seed reached the target; {CONFIDENCE:.0%} "
        "intervals in parentheses from the covariance of the residuals and Student's t. They hold the scatter between seeds "
        "and the misfit of the law, not what more tuning would change.",
    ]


# --- tables --------------------------------------------------------------------------------------------------------------


def _steps_table(found: Sequence[Scaling]) -> Table:
    rows = []
    for size in found[0].outcomes:
        cells = []
        for one in found:
            steps = one.steps[size]
            known = [s for s in steps if s is not None]
            text = "–" if not known else f"{fmean(known):.3g} ({min(known)} to {max(known)})"
            cells.append(text + ("" if len(known) == len(steps) else f", {len(steps) - len(known)} of {len(steps)} missed"))
        rows.append([str(size), *cells])
    return Table(["batch size", *(one.title for one in found)], rows, "Mean over seeds, lowest and highest in parentheses.")


def _fits_table(found: Sequence[Scaling]) -> Table:
    rows = []
    for one in found:
        fit = one.fit
        cells = ["–", "–"] if fit is None else [_range(fit.critical), _range(fit.smallest)]
        rows.append([one.title, *cells, str(len({size for size, _ in one.reached}))])
    return Table(["optimizer", "B_crit (examples)", "S_min (steps)", "batch sizes fitted"], rows)


def _tuning(found: Sequence[Scaling]) -> Table:
    rows = []
    for one in found:
        for size, outcome in one.outcomes.items():
            rows.append([one.title, str(size), str(outcome.tuned.trials), *best_and_tried(outcome)])
    return Table(["optimizer", "batch size", "trials", "best", "neighbours tried"], rows)


# --- pictures and numbers ------------------------------------------------------------------------------------------------


def _figure(found: Sequence[Scaling], *, examples: bool) -> Figure:
    """Steps, or examples, against batch size, on logarithmic axes."""
    sizes = list(found[0].outcomes)
    with style():
        figure = Figure(figsize=(6.8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for i, one in enumerate(found):
            colour = COLOURS[i % len(COLOURS)]
            shift = 1.03 ** (i - len(found) / 2)  # so that points of different optimizers do not hide each other
            points = [(b * shift, s * (b if examples else 1)) for b, steps in one.steps.items() for s in steps if s]
            axes.plot(
                [b for b, _ in points],
                [s for _, s in points],
                MARKS[i % len(MARKS)],
                color=colour,
                markersize=4.5,
                alpha=0.75,
                linestyle="none",
                label=one.title,
            )
            fit = one.fit
            if fit is not None:
                curve = [sizes[0] * (sizes[-1] / sizes[0]) ** (k / 60) for k in range(61)]
                axes.plot(curve, [fit.steps(b) * (b if examples else 1) for b in curve], color=colour, linewidth=1.5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(b) for b in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("batch size B (examples)")
        axes.set_ylabel("examples to the target" if examples else "steps to the target")
        axes.grid(True, which="both", alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _csv(found: Sequence[Scaling]) -> str:
    rows: list[list[object]] = []
    for one in found:
        fit = one.fit
        for size, steps in one.steps.items():
            fitted = "" if fit is None else f"{fit.steps(size):.4g}"
            for run, step in zip(one.outcomes[size].runs, steps, strict=True):
                rows.append([one.title, size, run.header["seed"], step, None if step is None else step * size, fitted])
    return table_csv(["optimizer", "batch size", "seed", "steps", "examples", "fitted steps"], rows)


def _plain(one: Scaling) -> dict[str, Any]:  # Any: JSON values
    fit = one.fit
    fitted = None if fit is None else {"B_crit": _numbers(fit.critical), "S_min": _numbers(fit.smallest)}
    return {
        "title": one.title,
        "fit": fitted,
        "batch_sizes": {str(size): {"steps": one.steps[size], **o.tuned.to_json()} for size, o in one.outcomes.items()},
    }


def _numbers(estimate: Estimate) -> dict[str, Any]:  # Any: JSON values
    return {"value": estimate.value, "interval": finite(estimate.interval), "log_error": finite([estimate.error])[0]}
