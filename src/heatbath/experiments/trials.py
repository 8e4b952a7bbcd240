"""Many runs as one piece of work: resumable, in parallel, one record each.

A `Trial` says everything about one run, so a folder of records tells which trials are done: a finished one is never run again,
an unfinished one is run anew from its seed. Trials run in processes of one thread each: on few cores that is faster than one
process with many threads, and how many run side by side changes no number.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch

from heatbath.experiments.checkpoint import check_folder, one_writer
from heatbath.experiments.choice import Choice
from heatbath.experiments.experiment import Experiment, on_held_out_data
from heatbath.experiments.records import Record, RunFiles, read_record
from heatbath.experiments.runner import Ending, RunOptions, run
from heatbath.experiments.tensorboard import TensorBoardLog

Recipe = Callable[[], Experiment]  # a function of a module, so that another process can import it
DONE = ("finished", "diverged")  # ends after which a trial has its result
RECORD_BYTES = 2**20


@dataclass(frozen=True)
class Trial:
    """One run of a search or a study.

    Args:
        name: stem of its record; unique in its folder.
        recipe: returns the task.
        choice: the optimizer.
        steps: how many updates.
        seed: of everything random.
        held_out: measure on held-out training data, and leave the test split alone.
        batch_size: training examples per step; None: the recipe's.
        eval_every: steps between two measurements; None: the recipe's.
        device: where to compute.
        ending: stop early, look at the end.
    """

    name: str
    recipe: Recipe
    choice: Choice
    steps: int
    seed: int = 0
    held_out: bool = False
    batch_size: int | None = None
    eval_every: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ending: Ending = Ending()  # noqa: RUF009  # immutable

    def experiment(self) -> Experiment:
        """The task as this trial runs it."""
        return _loaded(self.recipe, self.held_out, self.batch_size, self.eval_every)


@lru_cache(maxsize=4)
def _loaded(recipe: Recipe, held_out: bool, batch_size: int | None, eval_every: int | None) -> Experiment:
    """A task whose data are loaded once per process."""
    task = recipe()
    task = on_held_out_data(task) if held_out else task
    return replace(
        task,
        source=replace(task.source, load=lru_cache(maxsize=1)(task.source.load)),
        batch_size=batch_size or task.batch_size,
        eval_every=eval_every or task.eval_every,
    )


Watch = Callable[[Trial, Record, bool], None]  # told of a trial that is done, its record, and whether it was run just now


def unwatched(trial: Trial, record: Record, fresh: bool) -> None:
    """Nobody looks."""


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    *,
    jobs: int = 1,
    watch: Watch = unwatched,
) -> list[Record]:
    """Run the trials that are not done yet.

    Args:
        trials: names must differ.
        folder: of their records.
        jobs: processes; 1: in this process.
        watch: told of every trial that is done, and whether it was run just now.

    Returns:
        The records, in the order of the trials.

    Raises:
        ValueError: jobs below 1, names that repeat, a folder with other trials under these names, or other data than before.
        OSError: the folder cannot be written, or another process makes trials in it.
        KeyboardInterrupt: Ctrl-C; finished trials are kept.
    """
    names = [trial.name for trial in trials]
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if len(set(names)) < len(names):
        raise ValueError(f"trials need different names, got {sorted({n for n in names if names.count(n) > 1})} more than once")
    check_folder(folder, needed_bytes=RECORD_BYTES)
    with one_writer(folder / "trials"):
        return _run_missing(trials, folder, jobs, watch)


def _run_missing(trials: Sequence[Trial], folder: Path, jobs: int, watch: Watch) -> list[Record]:
    """`run_trials`, once the lock is held."""
    done = {trial.name: record for trial in trials if (record := _finished(trial, folder)) is not None}
    for trial in trials:
        if trial.name in done:
            watch(trial, done[trial.name], False)
    for trial in _as_they_end([trial for trial in trials if trial.name not in done], folder, jobs):
        done[trial.name] = read_record(RunFiles(folder, trial.name).record)
        _check_data(done.values())
        watch(trial, done[trial.name], True)
    return [done[trial.name] for trial in trials]


def _check_data(records: Iterable[Record]) -> None:
    """Refuse to mix a set with its stand-in.

    Raises:
        ValueError: two records saw different data.
    """
    first, *others = [record.header["dataset"] for record in records]
    for other in others:
        if (other["name"], other["train"], other["test"]) != (first["name"], first["train"], first["test"]):
            raise ValueError(
                f"these trials saw different data, {first['name']} and {other['name']}: {first['source']}; {other['source']}. "
                "Make the data available, or choose another folder with --out"
            )


def _finished(trial: Trial, folder: Path) -> Record | None:
    """The record of a trial that is done; the remains of one that is not are cleared away.

    Raises:
        ValueError: the record is of another trial.
    """
    files = RunFiles(folder, trial.name)
    if not files.record.exists():
        return None
    if files.record.stat().st_size == 0:  # killed before its first line
        files.record.unlink()
        return None
    record = read_record(files.record)
    task = trial.recipe()
    expected = {
        "experiment": task.name,
        "choice": trial.choice.to_json(),
        "steps": trial.steps,
        "seed": trial.seed,
        "target": vars((on_held_out_data(task) if trial.held_out else task).target),
        "batch_size": min(trial.batch_size or task.batch_size, record.header["dataset"]["train"]),
        "until": None if trial.ending.target is None else vars(trial.ending.target),
    }
    for key, value in expected.items():
        held = record.header.get(key)
        if held != value:
            raise ValueError(
                f"{files.record} is of another search: its {key} is {_brief(held)}, now it is {_brief(value)}. "
                f"Choose another folder with --out. It was made by: {record.header['command']}"
            )
    if record.ended in DONE:
        return record
    files.record.unlink()
    return None


def _brief(value: object) -> str:
    text = repr({k: v for k, v in value.items() if k != "machine"} if isinstance(value, dict) else value)
    return text if len(text) < 200 else text[:197] + "..."


def _as_they_end(trials: Sequence[Trial], folder: Path, jobs: int) -> Iterator[Trial]:
    """Run trials, and yield each when its record is written."""
    if jobs == 1 or len(trials) < 2:
        for trial in trials:
            with _one_thread():
                _checked(trial, _run(trial, folder))
            yield trial
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in mid-air
    pool = ProcessPoolExecutor(min(jobs, len(trials)), mp_context=context, initializer=_quiet)
    try:
        waiting = {pool.submit(_run, trial, folder): trial for trial in trials}
        for future in as_completed(waiting):
            _checked(waiting[future], future.result())
            yield waiting[future]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run(trial: Trial, folder: Path) -> str:
    """Run one trial and say how it ended."""
    options = RunOptions(steps=trial.steps, seed=trial.seed, device=trial.device, checkpoint_every=0, ending=trial.ending)
    files = RunFiles(folder, trial.name)
    shutil.rmtree(files.tensorboard, ignore_errors=True)  # of a trial that was killed, which starts anew
    return run(trial.experiment(), trial.choice, options=options, files=files, watchers=[TensorBoardLog(files)]).ended


def _checked(trial: Trial, ended: str) -> None:
    """Raises KeyboardInterrupt if the trial was interrupted."""
    if ended not in DONE:
        raise KeyboardInterrupt(f"{trial.name} was {ended}")


def _quiet() -> None:
    """In a process of the pool: one thread, and a Ctrl-C between two trials is the parent's business."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _one_thread() -> Iterator[None]:
    """In this process: one thread for the length of the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
