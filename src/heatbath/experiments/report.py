"""One page about a set of runs: a self-contained HTML file that needs no network, on a laptop or a phone, light or dark."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from heatbath.experiments.comparison import comparison_table, data_lines, predict
from heatbath.experiments.plots import Axis, curves, curves_csv, inline_svg
from heatbath.experiments.records import Record

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1c2430; --faint: #667085; --rule: #d9dee5; --panel: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #12161c; --ink: #e6e9ee; --faint: #98a2b3; --rule: #303844; --panel: #1a2029; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p, li { max-width: 75ch; }
.faint, figcaption { color: var(--faint); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; }
td:not(:first-child) { white-space: nowrap; }
td.words { white-space: normal; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--panel); border-radius: 8px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
pre { background: var(--panel); padding: .75rem; border-radius: 8px; overflow-x: auto; font-size: .85rem; }
details { border-top: 1px solid var(--rule); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
.trouble { border-left: 4px solid #d55e00; padding-left: .75rem; }
a { color: inherit; }
"""


def write_report(records: Sequence[Record], path: Path, *, command: str) -> None:
    """Write the page.

    Args:
        records: runs of one experiment.
        path: of the page.
        command: that made it.

    Raises:
        ValueError: no records, or runs that cannot be compared.
        OSError: the page cannot be written.
    """
    try:
        path.write_text(render_report(records, command=command), encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write the report {path}: {error.strerror or error}") from error


def render_report(records: Sequence[Record], *, command: str) -> str:
    """The page as text; see `write_report`."""
    head, rows = comparison_table(records)
    header = records[0].header
    data = "; ".join(data_lines(records))
    parts = [
        f"<h1>{escape(header['experiment'])}</h1>",
        f"<p>{escape(header['summary'])}.<br><span class=faint>Data: {escape(data)}. "
        f"{header['parameters']:,} parameters, batches of {header['batch_size']}, seed {header['seed']}.</span></p>",
        _troubles(records),
        f"<h2>Result: {escape(records[0].target.describe())}</h2>",
        _table(head, rows),
        "<p class=faint>“Seconds here” is training time on this computer, where the analog machine is emulated. “Predicted” "
        "prices the counted work of the whole run: digital kernels on one NVIDIA H100, analog jobs on one machine of the "
        "run's own specification. What a specification does not state is left out, and the figure is a lower bound (≥).</p>",
        "<h2>Curves</h2>",
        "<div class=figures>",
        *(_figure(records, axis, i) for i, axis in enumerate(_axes(records))),
        "</div>",
        "<h2>Runs</h2>",
        *(_run(record) for record in records),
        "<h2>How this page was made</h2>",
        f"<pre>{escape(command)}</pre>",
        _environment(records[0]),
    ]
    title = f"heatbath: {header['experiment']}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"
    )


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


def _figure(records: Sequence[Record], axis: Axis, number: int) -> str:
    svg = inline_svg(curves(records, axis), name=f"figure{number}")
    data = base64.b64encode(curves_csv(records, axis).encode()).decode()
    file = f"{axis.metric.replace(' ', '-')}-by-{axis.against}.csv"
    link = f'<a download="{escape(file)}" href="data:text/csv;base64,{data}">data (CSV)</a>'
    caption = axis.title[0].upper() + axis.title[1:]
    return f'<figure role="img" aria-label="{escape(caption)}">{svg}<figcaption>{escape(caption)}. {link}</figcaption></figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def _troubles(records: Sequence[Record]) -> str:
    lines = [
        f"<li>{escape(record.title)}: {escape(event['message'])}</li>"
        for record in records
        for event in record.events
        if event["event"] in ("warning", "diverged", "interrupted")
    ]
    return f"<ul class=trouble>{''.join(lines)}</ul>" if lines else ""


def _run(record: Record) -> str:
    choice = record.header["choice"]
    settings = ", ".join(f"{k} {v}" for k, v in choice.items() if v is not None and k != "machine")
    parts = [f"<p>{escape(settings)}. {escape(record.ended)} after {record.rows[-1]['step'] if record.rows else 0} steps.</p>"]
    bill = predict(record)
    if bill is not None:
        parts += ["<p>Predicted bill of the run:</p>", _table(["part", "time", "energy"], bill.rows())]
    reports = [row["optimizer"] for row in record.rows if "optimizer" in row]
    if reports:
        facts = [[str(k), f"{v:.4g}" if isinstance(v, float) else str(v)] for k, v in reports[-1].items()]
        parts += ["<p>What the optimizer reports:</p>", _table(["what", "value"], facts)]
    if record.header.get("coverage"):
        parts.append(f"<pre>{escape(record.header['coverage'])}</pre>")
    if choice.get("machine"):
        parts.append(f"<pre>{escape(choice['machine'])}</pre>")
    if record.events:
        parts.append(
            "<ul>" + "".join(f"<li>{escape(e['event'])}: {escape(str(e['message']))}</li>" for e in record.events) + "</ul>"
        )
    parts.append(f"<p class=faint>{escape(record.path.name)}</p>")
    return f"<details><summary>{escape(record.title)}</summary>{''.join(parts)}</details>"


def _environment(record: Record) -> str:
    facts = {**record.header["versions"], **record.header["host"], "started": record.header["started"]}
    rows = [[str(k), v if isinstance(v, str) else json.dumps(v)] for k, v in facts.items()]
    return _table(["environment", ""], rows)
