"""Records written by hand, whose predicted times can be worked out on paper.

All their work is done by one machine of which a visit with one drive takes a second; the digital side does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from heatbath.experiments import Choice, Hyper, Record
from heatbath.machines import MachineSpec
from heatbath.work import Job, Work

MACHINE = MachineSpec(name="hand", tau=1.0, bandwidth=1e6)
VISIT = Job("hand", 4, drives=1, settle_seconds=1.0)  # one second
ANALOG = Choice("kfac", Hyper(lr=0.1, damping=0.1, kl_clip=0.01), "thermodynamic-inverse", MACHINE)
PLAIN = Choice("adamw", Hyper(lr=0.1))


def record(
    seed: int,
    measured: Mapping[int, tuple[float, float]],
    *,
    choice: Choice = ANALOG,
    target: float = 0.5,
    losses: Sequence[float] | None = None,
    seconds: float = 10.0,
    **header: object,
) -> Record:
    """A run.

    Args:
        seed: of it.
        measured: step: error on the test split, visits so far, each in a step of its own.
        choice: the optimizer.
        target: error to be reached.
        losses: training loss by step; None: 1 throughout.
        seconds: training time of the whole run.
        header: further fields.
    """
    steps = max(measured)
    losses = [1.0] * (steps + 1) if losses is None else losses
    rows: list[dict[str, object]] = []
    for step, loss in enumerate(losses):
        row: dict[str, object] = {"step": step, "loss": loss, "seconds": seconds * step / steps}
        if step in measured:
            error, visits = measured[step]
            row["metrics"] = {"test error": error, "test loss": 2 * error}
            if step:
                work = Work.of(VISIT, visits).to_json() if visits else Work().to_json()
                row |= {"work": work, "occasions": work}
        rows.append(row)
    plain = {
        "run": f"{choice.label}-{seed}",
        "title": choice.title,
        "experiment": "task",
        "summary": "a task",
        "choice": choice.to_json(),
        "dataset": {"name": "d", "source": "made here", "train": 100, "test": 10},
        "target": {"metric": "test error", "value": target, "higher": False},
        "seed": seed,
        "steps": steps,
        "batch_size": 5,
        "parameters": 12,
        "command": "heatbath train task",
        "versions": {"commit": "unknown"},
        "host": {"cores": 1},
        "started": "2026-01-01",
        **header,
    }
    return Record(Path(f"{seed}.jsonl"), plain, rows, [{"event": "finished", "step": steps, "message": ""}])


def cells(table: tuple[Sequence[str], Sequence[Sequence[str]]]) -> dict[str, dict[str, str]]:
    """Of a table (head, rows): by name of the row, then of the column."""
    head, rows = table
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
