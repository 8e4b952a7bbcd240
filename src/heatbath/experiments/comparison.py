"""Several runs of one experiment side by side: the same start, the same batches, one table.

Predicted time is what the counted work of a run would take on given hardware. What runs in k steps (all of them, or those that
refresh) is priced as the average of these k steps, since stacks are batched within a step and not over several:

    predicted = Σ_k k · price(work_k / k)

with the digital kernels on one accelerator and the analog jobs on the run's own machine. It says nothing about the time here,
where the machine is emulated. Time to a target is the price of the work counted up to the step at which the target was reached.
It is no share of the time of the run: refreshes are more frequent at first. Every table takes both from `predict`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heatbath.costs import Bill, Digital, h100, price, send_again, with_unit
from heatbath.experiments.choice import Choice
from heatbath.experiments.counting import split_by_occasions
from heatbath.experiments.experiment import Experiment
from heatbath.experiments.records import Record, Row, RunFiles, read_record
from heatbath.experiments.runner import RunOptions, Watcher, run
from heatbath.machines import MachineSpec, spec_from
from heatbath.work import Work


@dataclass(frozen=True)
class Summary:
    """A run in one line.

    Args:
        title: the optimizer.
        steps_to_target: the first measured step at the target; None if it never was.
        final: the target's metric at the end.
        steps: how many were made.
        seconds: training time here.
        bill: predicted for the whole run; None if it cannot be priced.
        to_target: predicted up to the step at the target; None if it never was there or cannot be priced.
        ended: how it ended.
    """

    title: str
    steps_to_target: int | None
    final: float | None
    steps: int
    seconds: float
    bill: Bill | None
    to_target: Bill | None
    ended: str


def compare(
    experiment: Experiment,
    choices: Sequence[Choice],
    *,
    options: RunOptions,
    folder: Path,
    watch: Callable[[Choice, RunFiles], Iterable[Watcher]] = lambda choice, files: (),
    on_interrupt: Callable[[], None] | None = None,
) -> list[Record]:
    """Run one choice after the other; `options.max_seconds` holds for each. Stops early at Ctrl-C, with the runs so far.

    Args:
        experiment: the task.
        choices: the optimizers; their labels name the files.
        options: the same for all.
        folder: of all records.
        watch: makes the watchers of a run.
        on_interrupt: as in `run`.
    """
    dataset = experiment.source.load()
    fixed = replace(experiment, source=replace(experiment.source, load=lambda: dataset))
    records = []
    for choice in choices:
        files = RunFiles(folder, choice.label)
        record = run(fixed, choice, options=options, files=files, watchers=watch(choice, files), on_interrupt=on_interrupt)
        records.append(record)
        if record.ended == "interrupted":
            break
    return records


def find_records(paths: Iterable[Path]) -> list[Record]:
    """Records from files and from folders (their `*.jsonl`, or else those in their subfolders, by name), each once.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without records.
        ValueError: a file that is no record, or is damaged.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        files = [path]
        if path.is_dir():
            files = sorted(path.glob("*.jsonl")) or sorted(path.rglob("*.jsonl"))
        if not files:
            raise FileNotFoundError(f"the folder {path} holds no records (*.jsonl), nor do its subfolders")
        for file in files:
            found.setdefault(file.resolve(), file)
    return [read_record(file) for file in found.values()]


def machines_of(record: Record) -> dict[str, MachineSpec]:
    """The specification of the machine a run used, by the name its jobs carry; from the record alone."""
    text = record.header["choice"].get("machine")
    if not text:
        return {}
    spec = spec_from(tomllib.loads(text))
    return {spec.name: spec}


def predict(record: Record, *, until: int | None = None, digital: Digital | None = None, copies: int = 1) -> Bill | None:
    """Predicted bill of a run up to one of its measured steps; None before the first step, or where work is not counted.

    Args:
        record: of the run; an old one without occasions is priced as if all its work were spread evenly over its steps, which
            loses the batching of what is refreshed rarely.
        until: a measured step, whose row holds all work so far, however unevenly it was spread; None: the last.
        digital: who does the kernels; None: an H100.
        copies: machines of each kind. What runs in the same steps runs on them side by side. Where they are fewer than the
            matrices that are solved with in a step, each visit that follows no refresh sends its matrix again.

    Raises:
        ValueError: a step that was not measured.
    """
    if until == 0:
        return Bill()
    rows = [row for row in record.measured if row["step"] > 0 and "work" in row]
    if not rows:
        return None
    row = rows[-1] if until is None else next((row for row in rows if row["step"] == until), None)
    if row is None:
        raise ValueError(f"{record.path} has no work at step {until}, only at {', '.join(str(row['step']) for row in rows)}")
    digital, machines = digital or h100(), machines_of(record)
    bills = (
        price(part * (1 / k), digital=digital, machines=machines, copies=copies) * k for part, k in _parts(record, row, copies)
    )
    return sum(bills, Bill())


def _parts(record: Record, row: Row, copies: int) -> list[tuple[Work, float]]:
    """Work up to a row, by the number of steps in which it was asked for."""
    work, occasions = record.work(row), record.occasions(row)
    if occasions is None:
        steps = float(row["step"])
        occasions = Work(dict.fromkeys(work.kernels, steps), dict.fromkeys(work.jobs, steps))
    drives = Work(jobs={job: count for job, count in work.jobs.items() if job.drives})
    if copies < sum(count / occasions.jobs[job] for job, count in drives.jobs.items()):
        programming = Work(jobs={job: count for job, count in work.jobs.items() if not job.drives})
        sending = send_again(drives, programming, already=programming)
        held = {replace(job, upload_bits=0.0): job for job in drives.jobs}
        times = {job: occasions.jobs[held[replace(job, upload_bits=0.0)]] for job in sending.jobs}
        work = Work(work.kernels, {**programming.jobs, **sending.jobs})
        occasions = Work(occasions.kernels, {**occasions.jobs, **times})
    return split_by_occasions(work, occasions)


def predict_mean(records: Sequence[Record], steps: Sequence[int | None]) -> Bill | None:
    """Mean predicted bill of runs, each up to a step of its own; None if one has no such step, or cannot be priced."""
    bills = [None if step is None else predict(record, until=step) for record, step in zip(records, steps, strict=True)]
    known = [bill for bill in bills if bill is not None]
    return sum(known, Bill()) * (1 / len(known)) if known and len(known) == len(bills) else None


def summarize(record: Record) -> Summary:
    """A run in one line."""
    reached = record.reached()
    at_target = None if reached is None else int(reached["step"])
    measured = [row["metrics"].get(record.target.metric) for row in record.measured]
    return Summary(
        title=record.title,
        steps_to_target=at_target,
        final=measured[-1] if measured else None,
        steps=record.rows[-1]["step"] if record.rows else 0,
        seconds=record.rows[-1]["seconds"] if record.rows else 0.0,
        bill=predict(record),
        to_target=predict_mean([record], [at_target]),
        ended=record.ended,
    )


def check_comparable(records: Sequence[Record], *, of: int = 0) -> None:
    """Whether runs belong in one table.

    Args:
        records: that hold at least one row.
        of: how many there were before those without a row were left out.

    Raises:
        ValueError: no records, or records of different recipes or with different targets.
    """
    if not records:
        raise ValueError(
            f"none of the {of} records holds a step: the runs were killed at their start" if of else "there are no records"
        )
    recipes = _by(records, lambda record: str(record.header["experiment"]))
    if len(recipes) > 1:
        raise ValueError(f"only runs of one recipe can be compared, got {_listed(recipes)}; make a page for each")
    targets = _by(records, lambda record: record.target.describe())
    if len(targets) > 1:
        raise ValueError(f"only runs with one target can be compared, got {_listed(targets)}; make a page for each")


def _by(records: Sequence[Record], key: Callable[[Record], str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record.path)
    return found


def _listed(found: Mapping[str, Sequence[Path]]) -> str:
    return ", ".join(f"{name} ({len(paths)}, such as {paths[0]})" for name, paths in found.items())


def comparison_table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text; `record.target.describe()` belongs beside it.

    Raises:
        ValueError: as in `check_comparable`.
    """
    check_comparable(records)
    target = records[0].target
    head = [
        "optimizer",
        "steps to target",
        f"final {target.metric}",
        "steps",
        "seconds here",
        "predicted to target",
        "predicted seconds",
        "of it analog",
    ]
    return head, [_cells(summarize(record)) for record in records]


def _cells(summary: Summary) -> list[str]:
    bill = summary.bill
    analog = 0.0 if bill is None else bill.seconds - bill.seconds_by_part.get("digital", 0.0)
    return [
        summary.title,
        "not reached" if summary.steps_to_target is None else str(summary.steps_to_target),
        "–" if summary.final is None else f"{summary.final:.4g}",
        f"{summary.steps}" + ("" if summary.ended == "finished" else f" ({summary.ended})"),
        f"{summary.seconds:.2f} s",
        seconds_text(summary.to_target),
        seconds_text(bill),
        "–" if not analog else with_unit(analog, "s"),
    ]


def seconds_text(bill: Bill | None) -> str:
    """Predicted seconds in a table: a lower bound where something is not stated.

    >>> seconds_text(Bill({"settle": 0.25}, unstated_seconds=frozenset({"convert"}))), seconds_text(None)
    ('≥ 250 ms', '–')
    """
    return "–" if bill is None else ("≥ " if bill.unstated_seconds else "") + with_unit(bill.seconds, "s")


def data_lines(records: Sequence[Record]) -> list[str]:
    """Which data the runs really used, one line for each different set."""
    lines: Mapping[str, None] = dict.fromkeys(
        f"{d['name']}: {d['train']:,} training and {d['test']:,} test examples ({d['source']})"
        for d in (record.header["dataset"] for record in records)
    )
    return list(lines)


def code_line(records: Sequence[Record]) -> str:
    """Of which commits the code was that made runs, as a sentence; "unknown" also for records older than that line."""
    commits = dict.fromkeys(str(record.header.get("versions", {}).get("commit", "unknown")) for record in records)
    return f"Code of the runs: commit {', '.join(commits)}."
