"""The loop around a training run: log, measure, checkpoint, notice, stop, resume.

Losses stay on the device until a handful is written at once, so a step waits for nothing. Rows are written before the
checkpoint that covers them, hence a killed run can always go on from its last checkpoint to the same trajectory, bit for bit
on the CPU, and its record tells so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import torch
from torch import Tensor

from heatbath.experiments.checkpoint import check_folder, one_writer, resume_checkpoint, save_checkpoint
from heatbath.experiments.choice import Choice
from heatbath.experiments.data import Dataset
from heatbath.experiments.divergence import Judgement, judge
from heatbath.experiments.environment import command, host, versions
from heatbath.experiments.experiment import Experiment, Target
from heatbath.experiments.interrupts import Interrupt, interruptible
from heatbath.experiments.records import Record, RecordWriter, Row, RunFiles, read_record
from heatbath.experiments.training import Training

CHECKPOINT_BYTES_PER_PARAMETER = 24  # weights, two averages, factors and their inverses, roughly


class Watcher(Protocol):
    """Sees a run as it goes: a progress bar, a TensorBoard log."""

    def start(self, header: Row, step: int) -> None:
        """The run starts, or goes on after `step`."""

    def row(self, row: Row) -> None:
        """A row was written."""

    def event(self, event: Row) -> None:
        """An event was written."""

    def close(self) -> None:
        """The run is over, however it ended."""


@dataclass(frozen=True)
class Ending:
    """How a run ends, apart from its number of steps.

    Args:
        target: stop at the first measurement that reaches it; None: go on.
        preconditioner: write with the last row what the preconditioner is like ("preconditioner", see `optim.anisotropy`).
    """

    target: Target | None = None
    preconditioner: bool = False


@dataclass(frozen=True)
class RunOptions:
    """How long and how to run, whatever is run.

    Args:
        steps: how many updates in all, counted from the start of the run and not from where it resumes.
        seed: of the start, the order of examples and the optimizer's noise.
        device: where to compute.
        log_every: steps between two rows.
        flush_every: rows written at once; losses wait on the device until then.
        checkpoint_every: steps between two checkpoints; 0: none, and the run cannot be resumed.
        max_seconds: stop after this much training time; None: never.
        resume: go on from the last checkpoint.
        ending: stop early, look at the end.

    Raises:
        ValueError: a number out of range.
    """

    steps: int
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log_every: int = 1
    flush_every: int = 10
    checkpoint_every: int = 100
    max_seconds: float | None = None
    resume: bool = False
    ending: Ending = Ending()  # immutable

    def __post_init__(self) -> None:
        if self.steps < 1 or self.log_every < 1 or self.flush_every < 1 or self.checkpoint_every < 0:
            raise ValueError(
                "steps, log_every and flush_every must be at least 1 and checkpoint_every at least 0, got "
                f"{self.steps}, {self.log_every}, {self.flush_every}, {self.checkpoint_every}"
            )
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds}")


def run(
    experiment: Experiment,
    choice: Choice,
    *,
    options: RunOptions,
    files: RunFiles,
    dataset: Dataset | None = None,
    watchers: Iterable[Watcher] = (),
    on_interrupt: Callable[[], None] | None = None,
) -> Record:
    """Train, and return the record.

    Args:
        experiment: the task.
        choice: the optimizer.
        options: how long and how.
        files: where records and checkpoints go.
        dataset: the data, if it is already loaded.
        watchers: told about every row and event.
        on_interrupt: called at the first Ctrl-C, which ends the run after the step it is in.

    Raises:
        OSError: the folder cannot be written, or another process writes this run; said before any work.
        FileExistsError: the folder already holds this run and `options.resume` is off.
        ValueError: what is resumed is damaged, or was started with other options.
    """
    check_folder(files.folder, needed_bytes=0)
    with one_writer(files.record):
        return _run(experiment, choice, options, files, dataset, list(watchers), on_interrupt)


def _run(
    experiment: Experiment,
    choice: Choice,
    options: RunOptions,
    files: RunFiles,
    dataset: Dataset | None,
    watchers: list[Watcher],
    on_interrupt: Callable[[], None] | None,
) -> Record:
    """`run`, once the lock is held."""
    if not options.resume and files.record.exists():
        raise FileExistsError(
            f"{files.record} already holds a run: choose another folder with --out, or go on with it by train --resume"
        )
    checkpoint, why = resume_checkpoint(files.checkpoint) if options.resume else (None, "")
    if options.resume:
        read_record(files.record)  # damage is found before the training
    dataset = dataset or experiment.source.load()
    devices = [options.device] if options.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), interruptible(on_interrupt) as interrupt:
        training = Training(experiment, dataset=dataset, choice=choice, seed=options.seed, device=options.device)
        loop = _Loop(training, choice, options=options, files=files, watchers=watchers)
        try:
            loop.begin(checkpoint, why)
            loop.go(interrupt)
        except Exception as error:
            loop.fail(error)
            with suppress(OSError):  # the first error counts
                loop.close()
            raise
        finally:
            loop.close()
    return read_record(files.record)


class _Loop:
    """The state of `run`: clock, rows that wait, writer."""

    def __init__(
        self, training: Training, choice: Choice, *, options: RunOptions, files: RunFiles, watchers: list[Watcher]
    ) -> None:
        self.training, self.choice, self.options, self.files, self.watchers = training, choice, options, files, watchers
        self.started_by = command()
        self.writer: RecordWriter | None = None
        self.waiting: list[tuple[int, float, Tensor]] = []
        self.recent: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.start_loss = float("nan")
        self.warned = False
        self.ended = False
        self.reached = False

    # --- beginning and end -------------------------------------------------------------------------------------------

    def begin(self, checkpoint: Row | None, why: str) -> None:
        """Write the header and row 0, or restore a checkpoint; `why` it is not the last one."""
        header = self._header()
        check_folder(self.files.folder, needed_bytes=CHECKPOINT_BYTES_PER_PARAMETER * self.training.parameters)
        if checkpoint is None:
            self.writer = RecordWriter(self.files.record, header)
            self._tell("start", header, 0)
            self.start_loss = self.training.start_loss()
            self._write_row({"step": 0, "loss": self.start_loss, "seconds": 0.0}, measured=True)
            self._save()
            return
        _check_same(checkpoint["header"], header)
        self.started_by = checkpoint["header"]["command"]
        self.training.load(checkpoint["training"])
        if self.options.steps < self.training.step:
            raise ValueError(
                f"this run has made {self.training.step} steps, more than the {self.options.steps} asked for: "
                "resume with more steps (--steps), or start anew in another folder"
            )
        self.seconds, self.start_loss, self.warned = checkpoint["seconds"], checkpoint["start_loss"], checkpoint["warned"]
        self.recent = [tuple(pair) for pair in checkpoint["recent"]]
        self.writer = RecordWriter(self.files.record, None)
        self._tell("start", header, self.training.step)
        by = f"{header['command']}; commit {header['versions']['commit']}"
        self._event("resumed", f"from step {self.training.step} by: {by}" + (f"; {why}" if why else ""))

    def fail(self, error: Exception) -> None:
        """Leave the reason in the record, if it can still be written."""
        if self.writer is not None:
            with suppress(OSError):
                self._event("failed", f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Close files and watchers, whatever happened."""
        if self.writer is not None:
            self.writer.close()
        for watcher in self.watchers:
            watcher.close()

    def _header(self) -> Row:
        experiment, training, options = self.training.experiment, self.training, self.options
        return {
            "run": self.files.name,
            "experiment": experiment.name,
            "summary": experiment.summary,
            "dataset": {
                "name": training.dataset.name,
                "source": training.dataset.source,
                "train": len(training.dataset.train),
                "test": len(training.dataset.test),
            },
            "choice": self.choice.to_json(),
            "title": self.choice.title,
            "target": vars(experiment.target),
            "seed": options.seed,
            "steps": options.steps,
            "batch_size": training.order.batch_size,
            "parameters": training.parameters,
            "coverage": training.coverage(),
            "versions": versions(),
            "host": host(options.device),
            "command": command(),
            **({"until": vars(options.ending.target)} if options.ending.target else {}),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    # --- the loop ----------------------------------------------------------------------------------------------------

    def go(self, interrupt: Interrupt) -> None:
        """Step until done, diverged, out of time or asked to stop."""
        options, training = self.options, self.training
        while not self.ended:
            if training.step >= options.steps:
                return self._end("finished", f"after {training.step} steps")
            if self.reached:
                return self._end("finished", f"at the target after {training.step} steps")
            if self._out_of_time():
                return self._end(
                    "finished", f"after {self.seconds:.1f} s, the most allowed ({training.step} of {options.steps} steps)"
                )
            if interrupt.requested:
                return self._end("interrupted", f"after step {training.step} of {options.steps}")
            began = time.perf_counter()
            loss = training.advance()
            self.seconds += time.perf_counter() - began
            training.count()
            step = training.step
            measured = step % training.experiment.eval_every == 0 or step == options.steps or self._out_of_time()
            if step % options.log_every == 0 or measured:
                self.waiting.append((step, self.seconds, loss))
            if measured or len(self.waiting) >= options.flush_every:
                self._flush(measured=measured)
            if not self.ended and options.checkpoint_every and step % options.checkpoint_every == 0:
                self._flush(measured=False)
                self._save()

    def _out_of_time(self) -> bool:
        return self.options.max_seconds is not None and self.seconds >= self.options.max_seconds

    def _flush(self, *, measured: bool) -> None:
        """Fetch the losses that wait, write their rows, and judge them."""
        if not self.waiting:
            return
        began = time.perf_counter()
        losses = torch.stack([loss for _, _, loss in self.waiting]).tolist()
        self.seconds += time.perf_counter() - began  # on an accelerator the steps are finished only now
        waiting, self.waiting = self.waiting, []
        self._check_not_deleted()
        rows: list[Row] = [
            {"step": step, "loss": loss, "seconds": seconds} for (step, seconds, _), loss in zip(waiting, losses, strict=True)
        ]
        for row in rows[:-1]:
            self._write_row(row, measured=False)
        self._write_row({**rows[-1], "seconds": self.seconds}, measured=measured)
        self.recent = [*self.recent, *((row["step"], row["loss"]) for row in rows)]
        judgement = judge(
            self.start_loss, [s for s, _ in self.recent], [v for _, v in self.recent], advice=self.choice.advice()
        )
        self.recent = self.recent[-self.options.flush_every :]
        if judgement is not None:
            self._heed(judgement)

    def _heed(self, judgement: Judgement) -> None:
        if judgement.fatal:
            self._event("diverged", judgement.message)
            self.ended = True
        elif not self.warned:
            self.warned = True
            self._event("warning", judgement.message)

    def _end(self, event: str, message: str) -> None:
        self._flush(measured=False)
        if self.ended:  # the last losses were no numbers
            return
        self._save()
        self._event(event, message)
        self.ended = True

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write_row(self, row: Row, *, measured: bool) -> None:
        if measured:
            row = {**row, "metrics": self.training.measure()}
            self.reached = self._reached(row)
            if self.options.ending.preconditioner and (self.reached or row["step"] == self.options.steps):
                row["preconditioner"] = self.training.preconditioner()
            work = self.training.work()
            if work is not None:
                row["work"] = work.to_json()
                row["occasions"] = self.training.occasions.steps.to_json()
            report = self.training.report()
            if report:
                row["optimizer"] = report
        assert self.writer is not None
        self.writer.write([row])
        self._tell("row", row)

    def _reached(self, row: Row) -> bool:
        """Whether a measured row is where the run was to stop."""
        target = self.options.ending.target
        return target is not None and row["step"] > 0 and target.reached(row["metrics"].get(target.metric, math.nan))

    def _event(self, event: str, message: str) -> None:
        entry = {"event": event, "step": self.training.step, "message": message}
        assert self.writer is not None
        self.writer.write([entry])
        self._tell("event", entry)

    def _tell(self, what: str, *args: Any) -> None:  # Any: the arguments of that method
        for watcher in self.watchers:
            getattr(watcher, what)(*args)

    def _check_not_deleted(self) -> None:
        """What is written into a deleted file reaches nobody."""
        if not self.files.record.exists():
            raise FileNotFoundError(
                f"the output folder {self.files.folder} or its record was deleted while the run was writing: "
                "start anew, with --out for another folder"
            )

    def _save(self) -> None:
        if not self.options.checkpoint_every:
            return
        header = {**self._header(), "command": self.started_by}
        header.pop("versions"), header.pop("host")
        state = {
            "header": header,
            "training": self.training.state(),
            "seconds": self.seconds,
            "start_loss": self.start_loss,
            "warned": self.warned,
            "recent": [list(pair) for pair in self.recent],
        }
        assert self.writer is not None
        self._check_not_deleted()
        self.writer.sync()
        save_checkpoint(self.files.checkpoint, state)


def _check_same(old: Row, new: Row) -> None:
    """Whether a checkpoint was made by the run that wants to go on with it; only the number of steps may differ."""
    for key in ("experiment", "dataset", "choice", "target", "seed", "batch_size", "parameters"):
        if old[key] != new[key]:
            raise ValueError(
                f"this run cannot be resumed with another {key}: it was started with {_short(old[key], new[key])}, now it is "
                f"{_short(new[key], old[key])}. It was started by: {old['command']}"
            )


def _short(value: Any, other: Any) -> str:  # Any: JSON values
    """A value, or of a table the entries in which it differs from another."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{k} = {v!r}" for k, v in value.items() if other.get(k) != v) or "fewer entries"
    return repr(value)
