from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from heatbath.experiments.records import RecordWriter, RunFiles, read_record
from heatbath.work import Work, matmul

HEADER = {
    **dict.fromkeys(("experiment", "summary", "title", "command", "started"), ""),
    **{"choice": {}, "dataset": {"name": "d", "source": "here", "train": 1, "test": 1}, "versions": {}, "host": {}},
    **{"seed": 0, "steps": 3, "batch_size": 1, "parameters": 1},
    "run": "r",
    "target": {"metric": "accuracy", "value": 0.5, "higher": True},
}

OLD = json.dumps({"format": 1, **HEADER}) + "\n"  # of version 0.1, without a checksum


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.jsonl"


@pytest.fixture
def writer(path: Path) -> Iterator[RecordWriter]:
    writer = RecordWriter(path, HEADER)
    yield writer
    writer.close()


def row(step: int, accuracy: float | None = None) -> dict[str, object]:
    plain: dict[str, object] = {"step": step, "loss": 1.0 / (step + 1), "seconds": 0.1 * step}
    return plain if accuracy is None else {**plain, "metrics": {"accuracy": accuracy}}


def test_rows_reach_the_file_at_once(path: Path, writer: RecordWriter) -> None:
    writer.write([row(0), row(1)])
    assert [json.loads(line).get("step") for line in path.read_text().splitlines()] == [None, 0, 1]


@pytest.mark.parametrize("torn", ['{"step": 2, "loss": 0.', '{"step"', "{", '{"step": 2, "loss": 0.5, "note": "ü'])
def test_a_torn_last_line_is_no_row(path: Path, writer: RecordWriter, torn: str) -> None:
    writer.write([row(0), row(1)])
    with open(path, "ab") as file:
        file.write(torn.encode()[:-1] if torn.endswith("ü") else torn.encode())
    assert [r["step"] for r in read_record(path).rows] == [0, 1]


def test_going_on_cuts_the_torn_line_off_and_keeps_the_rest(path: Path, writer: RecordWriter) -> None:
    writer.write([row(0), row(1)])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "lo')
    again = RecordWriter(path, None)
    again.write([row(2)])
    again.close()
    assert path.read_bytes().startswith(whole)
    assert [r["step"] for r in read_record(path).rows] == [0, 1, 2]


def test_rows_beyond_the_checkpoint_do_not_count_after_resuming(path: Path, writer: RecordWriter) -> None:
    writer.write([row(0), row(1), row(2), {"event": "resumed", "step": 1, "message": ""}, row(2, accuracy=0.9)])
    record = read_record(path)
    assert [r["step"] for r in record.rows] == [0, 1, 2]
    assert record.measured[0]["step"] == 2
    assert record.ended == "running or killed"


def test_numbers_that_are_none_are_written_as_null_and_read_as_nan(path: Path, writer: RecordWriter) -> None:
    writer.write([{"step": 0, "loss": math.inf, "seconds": 0.0, "metrics": {"accuracy": math.nan}}])
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()
    assert math.isnan(read_record(path).metric("loss")[2][0])
    assert read_record(path).reached() is None


def test_the_target_is_reached_at_the_first_measured_row_beyond_it(path: Path, writer: RecordWriter) -> None:
    writer.write([row(0, 0.1), row(5, 0.49), row(10, 0.5), row(15, 0.4)])
    reached = read_record(path).reached()
    assert reached is not None
    assert reached["step"] == 10


def test_work_survives_the_record(path: Path, writer: RecordWriter) -> None:
    work = Work.of(matmul(2, 3, 4), count=7)
    writer.write([{**row(0), "work": work.to_json()}])
    record = read_record(path)
    assert record.work(record.rows[0]) == work


@pytest.mark.parametrize("end", ["finished", "interrupted", "diverged", "failed"])
def test_a_record_says_how_its_run_ended(path: Path, writer: RecordWriter, end: str) -> None:
    writer.write([row(0), {"event": "warning", "step": 0, "message": ""}, {"event": end, "step": 0, "message": ""}])
    assert read_record(path).ended == end


def test_a_record_that_exists_is_not_written_over(path: Path, writer: RecordWriter) -> None:
    with pytest.raises(FileExistsError, match="already holds a run: choose another folder"):
        RecordWriter(path, HEADER)


def test_a_record_that_cannot_be_opened_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write the record .*No such file.*choose another folder with --out"):
        RecordWriter(tmp_path / "missing" / "r.jsonl", HEADER)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_with_a_way_out(path: Path, writer: RecordWriter) -> None:
    writer.write([row(0)])
    writer.close()
    writer._file = open("/dev/full", "wb")  # noqa: SIM115  # the fixture closes it
    with pytest.raises(OSError, match=r"No space left.*earlier rows are kept\. Free some space, then --resume"):
        writer.write([row(1)])
    assert [r["step"] for r in read_record(path).rows] == [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OLD + '{"step": \n{"step": 1}\n', "line 2 is not JSON"),
        (OLD + "[1, 2]\n", "line 2 is not a JSON object"),
        (OLD + "[" * 100_000 + "\n", "line 2 is not JSON"),
        (OLD + "\udcff\n", "line 2 is not JSON"),
        ('{"step": 1}\n', "line 1 is no header"),
        ("", "is empty: the run was killed before its first line"),
        ('{"format": 1}\n', "line 1 lacks experiment"),
        (OLD.replace('"seed": 0', '"seed": "<script>"'), "line 1 has seed = '<script>', which is of the wrong type"),
        (OLD.replace("0.5", '"0.5"'), "line 1 has value = '0.5', which is of the wrong type"),
        (OLD + '{"step": 1}\n', "line 2 is neither a row .* nor an event"),
        (OLD + '{"step": true, "loss": 1, "seconds": 1}\n', "line 2 has step = True, which is of the wrong type"),
        (
            OLD + '{"step": 1, "loss": 1, "seconds": 1, "metrics": {"a": "b"}}\n',
            "line 2 has a = 'b', which is of the wrong type",
        ),
        (OLD + '{"step": 1, "loss": 1, "seconds": 1, "metrics": []}\n', "line 2 has metrics = "),
        ('{"format": 99}\n', "has format 99, this version reads 1"),
    ],
)
def test_a_file_that_is_no_record_is_refused(path: Path, content: str, message: str) -> None:
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_a_record_of_version_0_1_without_checksums_is_read_and_gone_on_with(path: Path) -> None:
    path.write_text(OLD + json.dumps(row(0)) + "\n")
    writer = RecordWriter(path, None)
    writer.write([row(1)])
    writer.close()
    assert [r["step"] for r in read_record(path).rows] == [0, 1]
    assert "crc" not in path.read_text()


def test_a_changed_missing_or_repeated_line_is_found(path: Path, writer: RecordWriter) -> None:
    writer.write([row(0), row(1), row(2)])
    lines = path.read_bytes().splitlines(keepends=True)
    changed = [
        [*lines[:2], lines[2].replace(b'"step": 1', b'"step": 9'), lines[3]],
        [*lines[:2], lines[3]],
        [*lines[:3], *lines[2:]],
        [*lines[:2], lines[2].replace(b"crc", b"csc"), lines[3]],
        [lines[0].replace(b"crc", b"csc"), *lines[1:]],
    ]
    for content in changed:
        path.write_bytes(b"".join(content))
        with pytest.raises(ValueError, match=r"is damaged: line \d .*checksum"):
            read_record(path)


def test_a_record_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no record"):
        read_record(path)


def test_runs_of_different_names_share_a_folder(tmp_path: Path) -> None:
    one, other = RunFiles(tmp_path, "one"), RunFiles(tmp_path, "other")
    assert len({one.record, one.checkpoint, one.tensorboard, other.record, other.checkpoint, other.tensorboard}) == 6
