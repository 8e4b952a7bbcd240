"""What do other curvature optimizers for PyTorch do in everyday situations, and what does heatbath do?

A table, peer × situation, every cell measured: `peers_situations.py` lists the situations, `peers_judges.py` judges them, and
`peers_adapters.py` has the peers, used as their documentation shows. It needs a Python that has them; what is missing is left
out:

    python -m venv peers-venv && peers-venv/bin/pip install -e . heavyball asdfghjkl singd
    git clone https://github.com/gpauloski/kfac_pytorch && peers-venv/bin/pip install ./kfac_pytorch
    peers-venv/bin/python benchmarks/peers.py --write

`--write` also makes docs/peers.md; `--page` makes only that, from the results that are there. Each cell is a process of its
own, so that a crash or a standstill is a result like any other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
from dataclasses import asdict
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peers_adapters import PEERS, Adapter
from peers_judges import TOLERANCE, Cell
from peers_situations import SITUATIONS, look
from rich.console import Console
from rich.progress import track
from rich.table import Table

from heatbath.experiments.environment import host, versions

RESULTS = Path(__file__).parent / "results" / "peers.json"
PAGE = Path(__file__).parent.parent / "docs" / "peers.md"
LIMIT = 300.0  # seconds per cell
GOOD = ("right", "trains", "bit-equal", "left alone")
DEFECT = ("wrong", "raises", "hangs", "dies", "not trained", "moves too much", "processes drift apart", "unstable")
STYLES = {"good": "green", "defect": "red", "absent": "dim", "other": "yellow"}

Record = dict[str, Any]  # Any: JSON values


def kind(verdict: str) -> str:
    """How a verdict is to be seen: good, defect, absent, or other, which is a matter of taste."""
    if verdict == "not offered":
        return "absent"
    if verdict in GOOD:
        return "good"
    return "defect" if verdict.startswith(DEFECT) else "other"


def text(cell: Record) -> str:
    """A cell in a few characters."""
    return f"{cell['verdict']} {cell['number']:.0e}" if cell["number"] else cell["verdict"]


def alone(peer: type[Adapter], title: str) -> Cell:
    """One cell, in a process of its own."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=answer, args=(peer, title, there))
    child.start()
    there.close()
    try:
        if not here.poll(LIMIT):
            return Cell("hangs", None, f"no result after {LIMIT:.0f} s")
        cell: Cell | str = here.recv()
    except EOFError:
        child.join()
        return Cell("dies", None, f"exit code {child.exitcode}")
    finally:
        if child.is_alive():
            child.join(1.0)
            child.kill()
    if isinstance(cell, str):
        raise RuntimeError(f"{peer.name}, {title}: {cell}")
    return cell


def answer(peer: type[Adapter], title: str, pipe: Connection) -> None:
    """In that process: the cell, or what went wrong with the script itself."""
    torch.set_num_threads(1)
    try:
        pipe.send(look(peer, SITUATIONS[title]))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def measure(peers: list[type[Adapter]], console: Console) -> Record:
    """Every cell."""
    cells: dict[str, dict[str, Record]] = {}
    todo = [(title, peer) for title in SITUATIONS for peer in peers]
    for title, peer in track(todo, "measuring", console=console, transient=True):
        cells.setdefault(title, {})[peer.name] = asdict(alone(peer, title))
    return {
        "question": (__doc__ or "").split("\n", 1)[0],
        "date": date.today().isoformat(),
        "tolerance": TOLERANCE,
        "environment": {**host(torch.device("cpu")), "packages": versions()},
        "peers": {peer.name: {"version": peer.version(), "settings": peer.settings} for peer in peers},
        "cells": cells,
    }


def draw(record: Record) -> Table:
    """The table for a terminal."""
    table = Table(title="peer × situation", title_justify="left")
    for head in ("situation", *(f"{name} {facts['version']}" for name, facts in record["peers"].items())):
        table.add_column(head, overflow="fold")
    for title, row in record["cells"].items():
        table.add_row(title, *(f"[{STYLES[kind(row[p]['verdict'])]}]{text(row[p])}[/]" for p in record["peers"]))
    return table


def page(record: Record) -> str:
    """The page for the documentation; details are numbered below the table."""
    notes: list[str] = []

    def shown(title: str, name: str) -> str:
        cell = record["cells"][title][name]
        words = f"**{text(cell)}**" if kind(cell["verdict"]) == "defect" else text(cell)
        if cell["detail"] and cell["verdict"] != "not offered":
            detail = re.sub(r"\b\d{12,}\b", "(an address)", cell["detail"])  # of memory: another in every run
            notes.append(f"{len(notes) + 1}. {name}, {title}: `{detail.replace('`', chr(39))}`")
            words += f" [{len(notes)}]"
        return words

    peers = record["peers"]
    head = ["situation", *(f"{name} {facts['version']}" for name, facts in peers.items())]
    rows = [[title, *(shown(title, name) for name in peers)] for title in record["cells"]]
    table = [head, ["---"] * len(head), *rows]
    lines = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table)
    packages = record["environment"]["packages"]
    settings = "\n".join(f"- {name} {facts['version']}: `{facts['settings']}`" for name, facts in peers.items())
    return f"""# Peers

<!-- made by benchmarks/peers.py from benchmarks/results/peers.json: do not edit -->

What other curvature optimizers for PyTorch do in everyday situations, and what heatbath does. Measured on {record["date"]} with
PyTorch {packages["torch"]} on a CPU by `python benchmarks/peers.py --write`; nothing here is written by hand. **Bold** is a
defect: an error, a wrong number, a parameter left behind. A number is a relative error, none where it is 0, and right means
below {record["tolerance"]}.

{lines}

How each line is judged:

- *convolution …, layer used twice, inputs not contiguous, in-place activation, activation checkpointing, two forwards*: the
  layer's curvature block against Σ g gᵀ ⊗ Σ a aᵀ by autograd, both of trace 1. HeavyBall has no such block, so only training is
  seen.
- *every example four times*: the direction of a step against that of the plain batch. *Four micro-batches, GradScaler, eval and
  no-grad pass, two processes*: the step itself against one batch in one process. Averages settle first.
- *MultiheadAttention … layer frozen in mid-training*: which parameters three steps move.
- *checkpoint*: factors every 2 steps, what is made of them every 4, saved after 7 of 12; the number is relative to the way gone
  since.
- *.grad after a step*: preconditioners replace it by design, and HeavyBall clears it unless told `consume_grad=False`.
- *not offered*: the library's interface has no such thing.

Some errors go away when the layer is left to another optimizer: kfac-pytorch's `skip_layers`, ASDL's `ignore_modules`, SINGD's
`params`. A two-process result of kfac-pytorch differs for the same reason as its first line: its output factors depend on the
number of examples per process. ASDL joins processes on GPUs only, and everything here ran on a CPU.

Settings, where not the defaults:

{settings}

Errors and warnings in full:

{chr(10).join(notes)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write docs/peers.md too")
    parser.add_argument("--page", action="store_true", help="measure nothing, write docs/peers.md from the results")
    options = parser.parse_args()
    console = Console()
    if options.page:
        PAGE.write_text(page(json.loads(options.out.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    wanted = [peer for peer in PEERS if options.peers is None or peer.name in options.peers]
    for peer in wanted:
        if peer.version() is None:
            console.print(f"{peer.name}: not installed, left out ({peer.install})", highlight=False)
    record = measure([peer for peer in wanted if peer.version() is not None], console)
    console.print(draw(record))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.write:
        PAGE.write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
