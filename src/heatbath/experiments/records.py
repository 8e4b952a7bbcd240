"""The record of a run: a text file with one JSON object per line, readable while it grows and after any kind of end.

    line 1      the header: what was run, on which data, with which versions, how
    a row       {"step": k, "loss": ..., "seconds": ...} after the k-th update; `loss` is the mini-batch loss that update was
                made from, `seconds` the training time so far without measuring. Where metrics were measured the row also has
                "metrics", where it is counted "work" (cumulative, `Work.to_json`) with the "occasions" of each kernel and
                job (in how many steps it ran, in the same form; missing in old records) and, if the optimizer reports,
                "optimizer"; the last one, where that was asked for, "preconditioner" (`optim.Anisotropy`). Row 0 is the start.
    an event    {"event": "warning" | "resumed" | "interrupted" | "diverged" | "failed" | "finished", "step": k, "message": ...}

Every line ends with "crc", the CRC-32 of the whole file up to there: of the line without it, continued from the line before.
So a changed, missing or repeated line is found; records without, which version 0.1 wrote, are read as they are.

Lines are only ever appended. A run that was killed leaves rows beyond its last checkpoint; resuming adds an event "resumed"
at step k, after which earlier rows with a step above k no longer count. A torn last line is no row. NaN and infinity, which
JSON lacks, are written as null.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from heatbath.experiments.experiment import Target
from heatbath.work import Work

FORMAT = 1
HEADER = {
    **dict.fromkeys(("experiment", "summary", "title", "command", "started"), str),
    **dict.fromkeys(("choice", "dataset", "target", "versions", "host"), dict),
    **dict.fromkeys(("seed", "steps", "batch_size", "parameters"), int),
}
DATASET = {"name": str, "source": str, "train": int, "test": int}
TARGET = {"metric": str, "value": int | float, "higher": bool}
ROW = {"step": int, "loss": int | float | None, "seconds": int | float}
EVENT = {"event": str, "step": int, "message": str}
ENDS = ("finished", "interrupted", "diverged", "failed")

CHECKED_LINE = re.compile(rb'(.+), "crc": "([0-9a-f]{8})"\}')

Row = dict[str, Any]  # Any: JSON values


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps its files; several runs may share a folder under different names.

    Args:
        folder: of the run.
        name: of the run, the stem of its files.
    """

    folder: Path
    name: str = "run"

    @property
    def record(self) -> Path:
        """The record, JSON lines."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return self.folder / f"{self.name}.pt"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.folder / "tensorboard" / self.name


class RecordWriter:
    """Appends lines to a record; every call reaches the operating system before it returns, so a killed run keeps them.

    Args:
        path: of the record.
        header: for a new record; None to go on with an existing one, whose torn last line is then cut off.

    Raises:
        FileExistsError: a new record where one already is.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any] | None) -> None:  # Any: JSON values
        self.path = path
        if header is not None and path.exists():
            raise FileExistsError(
                f"{path} already holds a run: choose another folder with --out, or go on with it by train --resume"
            )
        self._crc: int | None = 0  # None: a record without, which goes on as it is
        try:
            if header is None:
                self._crc = _cut_torn_line(path)
            self._file: IO[bytes] = open(path, "ab")  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise OSError(
                f"cannot write the record {path}: {error.strerror or error}; choose another folder with --out"
            ) from error
        if header is not None:
            self.write([{"format": FORMAT, **header}])

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:  # Any: JSON values
        """Append rows or events.

        Raises:
            OSError: the disk is full or the file went away; what was written before stays readable.
        """
        lines = [json.dumps(_plain(row), ensure_ascii=False, allow_nan=False).encode() for row in rows]
        if self._crc is not None:
            for i, line in enumerate(lines):
                self._crc = zlib.crc32(line[:-1], self._crc)
                lines[i] = line[:-1] + b', "crc": "%08x"}' % self._crc
        try:
            self._file.write(b"".join(line + b"\n" for line in lines))
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"cannot write to {self.path}: {error.strerror or error}; earlier rows are kept. Free some space, then --resume"
            ) from error

    def sync(self) -> None:
        """Reach the disk, as a checkpoint does that counts on these rows."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError:  # a full disk was already reported by write()
            pass


def _cut_torn_line(path: Path) -> int | None:
    """Cut it off, and return the CRC-32 of what is left; None: a record without."""
    with open(path, "r+b") as file:
        whole, _, _ = file.read().rpartition(b"\n")
        file.truncate(len(whole) + 1 if whole else 0)
    last = CHECKED_LINE.fullmatch(whole.rpartition(b"\n")[2])
    return int(last[2], 16) if last else None


def _plain(value: Any) -> Any:  # Any: JSON values
    """The same value without NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


@dataclass(frozen=True)
class Record:
    """A record that was read.

    Args:
        path: of the file.
        header: its first line.
        rows: those that count, in order of steps.
        events: all events in order.
    """

    path: Path
    header: Row
    rows: Sequence[Row]
    events: Sequence[Row] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.header.get("run", self.path.stem))

    @property
    def title(self) -> str:
        """The optimizer, for people."""
        return str(self.header.get("title", self.name))

    @property
    def ended(self) -> str:
        """How the run ended: "finished", "interrupted", "diverged", "failed", or "running or killed"."""
        ends = [e["event"] for e in self.events if e["event"] in (*ENDS, "resumed")]
        return ends[-1] if ends and ends[-1] in ENDS else "running or killed"

    @property
    def target(self) -> Target:
        """What counted as learned."""
        return Target(**self.header["target"])

    @property
    def measured(self) -> list[Row]:
        """Rows with metrics."""
        return [row for row in self.rows if "metrics" in row]

    def metric(self, name: str) -> tuple[list[int], list[float], list[float]]:
        """Steps, seconds and values of a metric; `"loss"` is the training loss of every logged step."""
        rows = self.rows if name == "loss" else [r for r in self.measured if name in r["metrics"]]
        values = [r["loss"] if name == "loss" else r["metrics"][name] for r in rows]
        return (
            [r["step"] for r in rows],
            [r["seconds"] for r in rows],
            [math.nan if v is None else float(v) for v in values],
        )

    def reached(self) -> Row | None:
        """The first row whose metrics are at the target."""
        target = self.target
        for row in self.measured:
            value = row["metrics"].get(target.metric)
            if value is not None and target.reached(value):
                return row
        return None

    @staticmethod
    def work(row: Row) -> Work:
        """Cumulative work at a row that has it."""
        return Work.from_json(row["work"])

    @staticmethod
    def occasions(row: Row) -> Work | None:
        """In how many steps each kernel and job of `work` ran, as counts; None in an old record."""
        return Work.from_json(row["occasions"]) if "occasions" in row else None


def read_record(path: Path) -> Record:
    """Read a record, whole or torn.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a record, or damaged elsewhere than in its last line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no record {path}")
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path} is empty: the run was killed before its first line; delete the file or run it again")
    parsed: list[Row] = []
    crc: int | None = None  # None: a record without
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip() and number == len(lines):
            break
        try:
            row, crc = _parsed(line, crc, first=number == 1)
            _check_line(row, first=number == 1)
        except ValueError as error:
            if number == len(lines) > 1:  # no newline after it: torn
                break
            raise ValueError(
                f"{path} is damaged: line {number} {error}; delete the file and run it again, or choose another folder"
            ) from error
        parsed.append(row)
    rows, events = _counting(parsed[1:])
    return Record(path, parsed[0], rows, events)


def _parsed(line: bytes, crc: int | None, *, first: bool) -> tuple[Row, int | None]:
    """A line without its CRC-32, and that of the file up to it.

    Args:
        line: without its newline.
        crc: of the file before it; None: its lines have none.
        first: whether this is the header, which decides whether lines have one.

    Raises:
        ValueError: not a JSON object, or the CRC-32 is not that of the file.
    """
    checked = CHECKED_LINE.fullmatch(line)
    if checked:
        if crc is None and not first:
            raise ValueError("has a checksum and the header has none")
        crc, line = zlib.crc32(checked[1], crc or 0), checked[1] + b"}"
        if crc != int(checked[2], 16):
            raise ValueError("is not as it was written: its checksum is wrong")
    elif crc is not None:
        raise ValueError("has no checksum")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ValueError(f"is not JSON ({getattr(error, 'msg', None) or error})") from error
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    return row, crc


def _check_line(row: Row, *, first: bool) -> None:
    """Refuse a line whose keys or types are not those of a record.

    Raises:
        ValueError: they are not.
    """
    if first and "format" not in row:
        raise ValueError("is no header, so this is not a record of a run")
    if first and row["format"] != FORMAT:
        raise ValueError(f"has format {row['format']!r}, this version reads {FORMAT}")
    if first:
        _check_kinds(row, HEADER)
        _check_kinds(row["dataset"], DATASET)
        _check_kinds(row["target"], TARGET)
        _check_kinds(row, dict.fromkeys({"coverage", "run"} & row.keys(), str | None))
        return
    if not (row.keys() >= ROW.keys() or row.keys() >= EVENT.keys()):
        raise ValueError("is neither a row (step, loss, seconds) nor an event")
    _check_kinds(row, EVENT if "event" in row else ROW)
    measured = {"metrics", "work", "occasions", "optimizer", "preconditioner"} & row.keys()
    _check_kinds(row, dict.fromkeys(measured, dict))
    _check_kinds(row.get("metrics", {}), dict.fromkeys(row.get("metrics", {}), int | float | None))


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:  # Any: JSON values; types
    """Refuse values that are missing or of another type."""
    for key, kind in kinds.items():
        if key not in values:
            raise ValueError(f"lacks {key}")
        if not isinstance(values[key], kind) or (isinstance(values[key], bool) and kind is not bool):
            raise ValueError(f"has {key} = {values[key]!r:.60}, which is of the wrong type")


def _counting(lines: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that count, and events."""
    rows: list[Row] = []
    events: list[Row] = []
    for line in lines:
        if "event" not in line:
            rows.append(line)
            continue
        events.append(line)
        if line["event"] == "resumed":
            rows = [row for row in rows if row["step"] <= line["step"]]
    return rows, events
