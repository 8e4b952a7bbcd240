"""One page about a set of runs: a self-contained HTML file that needs no network, on a laptop or a phone, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from heatbath.experiments.bill_split import bill_pictures, bill_tables
from heatbath.experiments.comparison import check_comparable, data_lines, seconds_text
from heatbath.experiments.faults import faults_table
from heatbath.experiments.groups import Group, group, interval_text, steps_text
from heatbath.experiments.page_parts import Picture, Table, pictures_html
from heatbath.experiments.plots import Axis, curves, curves_csv
from heatbath.experiments.records import Record
from heatbath.experiments.web_page import web_page

LISTED = 12  # commands of runs beside a figure


def write_report(records: Sequence[Record], path: Path, *, command: str) -> None:
    """Write the page.

    Args:
        records: runs of one experiment.
        path: of the page.
        command: that made it.

    Raises:
        ValueError: no records, or runs that cannot be compared.
        OSError: the page cannot be written; a folder that is missing is said before any work.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write the report {path}: there is no folder {path.parent}")
    text = render_report(records, command=command)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write the report {path}: {error.strerror or error}") from error


def render_report(records: Sequence[Record], *, command: str) -> str:
    """The page as text; see `write_report`."""
    shown = [record for record in records if record.rows]
    check_comparable(shown, of=len(records))
    groups = group(shown)
    header, made = shown[0].header, _made(shown, command)
    parts = [
        f"<h1>{escape(header['experiment'])}</h1>",
        f"<p>{escape(header['summary'])}.</p>",
        _data(shown),
        _troubles(records, groups),
        f"<h2>Result: {escape(shown[0].target.describe())}</h2>",
        _results(groups).html(),
        "<h2>Curves</h2>",
        pictures_html([_picture(shown, axis, made) for axis in _axes(shown)]),
        '<p class="faint">Long curves are smoothed by a trailing mean over a fortieth of their points, data are not.</p>',
        *_bills(groups, made),
        "<h2>Faults and fallbacks</h2>",
        faults_table(groups).html(),
        "<h2>Runs</h2>",
        *(_run(one, record) for one in groups for record in one.records),
        "<h2>How this page was made</h2>",
        f'<pre class="command">{escape(command)}</pre>',
        _environment(shown).html(),
    ]
    return web_page(f"heatbath: {header['experiment']}", parts)


def _made(records: Sequence[Record], command: str) -> str:
    """The commands that made a figure: those of the runs, unless they are very many, and that of the page."""
    runs = dict.fromkeys(str(record.header["command"]) for record in records)
    return "\n".join(dict.fromkeys([*(runs if len(runs) <= LISTED else ["# the runs: below, under “Runs”"]), command]))


def _data(records: Sequence[Record]) -> str:
    """Which data were really used, and what the runs have in common."""
    lines = data_lines(records)
    common = [
        f"{name} {', '.join(sorted(values))}"
        for name, values in (
            ("parameters", {f"{record.header['parameters']:,}" for record in records}),
            ("batches of", {str(record.header["batch_size"]) for record in records}),
        )
    ]
    text = f'<p class="faint">Data really used: {escape("; ".join(lines))}. {escape("; ".join(common)).capitalize()}.</p>'
    if len(lines) == 1:
        return text
    return text + '<p class="trouble">These runs saw different data: their figures are not comparable.</p>'


def _axes(records: Sequence[Record]) -> list[Axis]:
    """Loss and the judged metric against steps and seconds, then the other metrics against steps."""
    target = records[0].target.metric
    metrics = list(dict.fromkeys(name for record in records for row in record.measured for name in row["metrics"]))
    others = [name for name in metrics if name != target]
    return [
        Axis("loss", label="training loss", log=True),
        Axis(target, label=target),
        Axis("loss", against="seconds", label="training loss", log=True),
        Axis(target, against="seconds", label=target),
        *(Axis(name, label=name, log="loss" in name) for name in others),
    ]


def _picture(records: Sequence[Record], axis: Axis, command: str) -> Picture:
    name = f"{axis.metric}-by-{axis.against}".replace(" ", "-")
    seeds = len({record.header["seed"] for record in records}) > 1
    caption = axis.title + ("; mean over seeds in a band from the lowest to the highest" if seeds else "")
    return Picture(name, caption, curves(records, axis), curves_csv(records, axis), command)


def _results(groups: Sequence[Group]) -> Table:
    target = groups[0].target.metric
    metrics = list(dict.fromkeys(name for one in groups for row in one.records[0].measured for name in row["metrics"]))
    metrics.sort(key=lambda name: name != target)
    head = ["optimizer", "seeds", "steps to target", *(f"final {name}" for name in metrics), "steps", "seconds here"]
    rows = [[one.title, *_cells(one, metrics)] for one in groups]
    note = (
        "± is the 95 % interval of the mean over seeds (Student's t). Steps to target are from the fastest to the slowest "
        "seed, to the nearest measurement. “Seconds here” is training time on this computer, where machines are emulated. "
        "“Predicted” prices counted work: digital kernels on one NVIDIA H100, analog jobs on one machine of the run's own "
        "specification; ≥ where something is not stated. “To target” is the price of the work counted up to each seed's "
        "own step at the target; – where a seed was never there."
    )
    return Table([*head, "predicted time, run", "predicted time to target"], rows, note)


def _cells(one: Group, metrics: Sequence[str]) -> list[str]:
    diverged = sum(record.ended == "diverged" for record in one.records)
    made = sorted({record.rows[-1]["step"] for record in one.records})
    ends = sorted({record.ended for record in one.records} - {"finished"})
    seconds = [record.rows[-1]["seconds"] for record in one.records]
    return [
        ", ".join(map(str, sorted(one.seeds))),
        steps_text(one.reached()),
        *(interval_text(one.final(metric), missing=diverged) for metric in metrics),
        (f"{made[0]} to {made[-1]}" if len(made) > 1 else f"{made[0]}") + (f" ({', '.join(ends)})" if ends else ""),
        f"{sum(seconds) / len(seconds):.3g} s",
        seconds_text(one.bill_of_run()),
        seconds_text(one.bill_to_target()),
    ]


def _bills(groups: Sequence[Group], command: str) -> list[str]:
    bills = [(one.title, bill) for one in groups if (bill := one.bill()) is not None]
    if not bills:
        return []
    tables = [f"<h2>{escape(heading)}</h2>{table.html()}" for heading, table in bill_tables(bills).items()]
    missing = [one.title for one in groups if one.title not in dict(bills)]
    note = f'<p class="faint">Work is not counted for: {escape(", ".join(missing))}.</p>' if missing else ""
    return [*tables, note, pictures_html(bill_pictures(bills, command=command))]


def _troubles(records: Sequence[Record], groups: Sequence[Group]) -> str:
    """Warnings and runs that did not finish, records without a row, and repeats that were left out."""
    shown = {id(record): one.title for one in groups for record in one.records}
    lines = []
    for record in records:
        if not record.rows:
            lines.append(f"{record.path} holds no step and is left out: the run was killed at its start")
        elif id(record) not in shown:
            lines.append(f"{record.path} is left out: the same setting was run again with seed {record.header['seed']}, later")
        else:
            name = f"{shown[id(record)]}, seed {record.header['seed']}"
            kinds = ("warning", "diverged", "interrupted", "failed")
            lines += [f"{name}: {event['message']}" for event in record.events if event["event"] in kinds]
            if record.ended == "running or killed":
                lines.append(f"{name}: the record stops at step {record.rows[-1]['step']}; it is running, or was killed")
    return f'<ul class="trouble">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def _run(one: Group, record: Record) -> str:
    choice = record.header["choice"]
    settings = ", ".join(f"{name} {value}" for name, value in choice.items() if value is not None and name != "machine")
    parts = [
        f"<p>{escape(settings)}. {escape(record.ended)} after {int(record.rows[-1]['step'])} steps.</p>",
        f'<pre class="command">{escape(record.header["command"])}</pre>',
    ]
    reports = [row["optimizer"] for row in record.rows if "optimizer" in row]
    if reports:
        facts = [[str(k), f"{v:.4g}" if isinstance(v, float) else str(v)] for k, v in reports[-1].items()]
        parts += ["<p>What the optimizer reports:</p>", Table(["what", "value"], facts).html()]
    if record.header.get("coverage"):
        parts.append(f"<pre>{escape(record.header['coverage'])}</pre>")
    if choice.get("machine"):
        parts.append(f"<pre>{escape(choice['machine'])}</pre>")
    if record.events:
        events = (f"<li>{escape(event['event'])}: {escape(str(event['message']))}</li>" for event in record.events)
        parts.append(f"<ul>{''.join(events)}</ul>")
    parts.append(f'<p class="faint">{escape(str(record.path))}, started {escape(record.header["started"])}</p>')
    summary = escape(f"{one.title}, seed {record.header['seed']}")
    return f"<details><summary>{summary}</summary>{''.join(parts)}</details>"


def _environment(records: Sequence[Record]) -> Table:
    """Hardware and versions; where runs differ, all that there were."""
    facts: dict[str, dict[str, None]] = {}
    for record in records:
        own: dict[str, Any] = {**record.header["host"], **record.header["versions"]}  # Any: JSON values
        for name, value in own.items():
            facts.setdefault(name, {})[str(value)] = None
    return Table(["hardware and versions", ""], [[name, " / ".join(values)] for name, values in facts.items()])
