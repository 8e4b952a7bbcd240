"""One self-contained page about some runs: table, curves, bills, what was run and on what. No external resources."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from heatbath.experiments.compare import HEAD, compare, predicted_bill
from heatbath.experiments.plots import curves, svg
from heatbath.experiments.records import Record
from heatbath.machines import MachineSpec

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #222; --line: #ccc; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181c; --ink: #e6e6e6; --line: #444; --paper: #f4f4f4; } }
body { font: 16px/1.5 system-ui, sans-serif; background: var(--ground); color: var(--ink); margin: 0 auto; padding: 1rem;
  max-width: 75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92em; }
th, td { text-align: left; padding: 0.3em 0.8em; border-bottom: 1px solid var(--line); white-space: nowrap; }
figure { margin: 1rem 0; background: var(--paper); border-radius: 6px; padding: 0.5rem; }
figure svg { width: 100%; height: auto; min-width: 40rem; }
pre { overflow-x: auto; font-size: 0.85em; padding: 0.6rem; border: 1px solid var(--line); border-radius: 6px; }
"""


def write_report(records: Sequence[Record], path: Path, machines: Mapping[str, MachineSpec] | None = None) -> Path:
    """Write the page.

    Args:
        records: of runs of one task.
        path: of the HTML file.
        machines: by name, for the bills; None: the presets.

    Raises:
        ValueError: no records.
        OSError: the file cannot be written.
    """
    if not records:
        raise ValueError("a report needs at least one record")
    header = records[0].header
    data = header["dataset"]
    parts = [
        f"<h1>{_e(header['experiment'])}</h1>",
        f"<p>{_e(header['summary'])}. Data: {_e(data['name'])} ({_e(data['source'])}), {data['train']} training and "
        f"{data['test']} test examples. Target: {_e(records[0].target.describe())}.</p>",
        _table(HEAD, [line.cells() for line in compare(records, machines)]),
        "<p>Steps and seconds were run here; the thermodynamic machine is <b>emulated</b>. The prediction prices the counted "
        "work: digital kernels on an H100 by its measured table, analog work on one machine as its specification states.</p>",
        f'<figure class="scroll">{svg(curves(records))}</figure>',
        *(_run(record, machines) for record in records),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_e(header['experiment'])}: heatbath report</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")
    return path


def _run(record: Record, machines: Mapping[str, MachineSpec] | None) -> str:
    """Details of one run: its bill, its words, its environment."""
    last = record.measured[-1] if record.measured else None
    bill = _table(("part", "seconds", "energy"), predicted_bill(last, machines=machines).rows()) if last else ""
    events = "".join(f"<li>{_e(e['event'])} at step {e['step']}: {_e(e['message'])}</li>" for e in record.events)
    keep = ("choice", "seed", "steps", "batch_size", "parameters", "versions", "host", "command", "started")
    details = json.dumps({key: record.header[key] for key in keep if key in record.header}, indent=1, ensure_ascii=False)
    coverage = record.header.get("coverage")
    return (
        f"<details><summary><b>{_e(record.name)}</b></summary><p>Predicted bill of the whole run:</p>{bill}<ul>{events}</ul>"
        + (f"<pre>{_e(coverage)}</pre>" if coverage else "")
        + f"<pre>{_e(details)}</pre></details>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table that scrolls on narrow screens."""
    top = "".join(f"<th>{_e(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _e(text: object) -> str:
    """Escaped for HTML."""
    return html.escape(str(text))
