from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from heatbath.experiments.checkpoint import (
    check_folder,
    load_checkpoint,
    one_writer,
    previous,
    random_state,
    resume_checkpoint,
    save_checkpoint,
    set_random_state,
)

Usage = namedtuple("Usage", "total used free")


def test_a_checkpoint_comes_back_bit_equal(tmp_path: Path, generator: torch.Generator) -> None:
    tensor = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    save_checkpoint(tmp_path / "c.pt", {"tensor": tensor, "nested": {"list": [1, "two", None]}})
    state = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(state["tensor"], tensor)
    assert state["nested"] == {"list": [1, "two", None]}


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1})

    def half(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*No space left on device.*the one before it is kept"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume: start without --resume"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"tensor": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"is damaged.*start anew in another folder"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02.", b"no checkpoint", b"\0" * 5000])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.+\): start anew in another folder"):
        load_checkpoint(path)


def test_one_flipped_bit_of_a_weight_is_found(tmp_path: Path) -> None:
    """`torch.load` alone reads it without a word."""
    path, weights = tmp_path / "c.pt", torch.arange(100.0)
    save_checkpoint(path, {"weights": weights})
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 40] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["weights"], weights)
    with pytest.raises(ValueError, match=r"is damaged \(the checksum of .*/data/0 is wrong\)"):
        load_checkpoint(path)


def test_the_checkpoint_before_the_last_is_kept_and_resumed_from(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    for step in (1, 2, 3):
        save_checkpoint(path, {"step": step})
    assert (load_checkpoint(path)["step"], load_checkpoint(previous(path))["step"]) == (3, 2)
    path.write_bytes(path.read_bytes()[:300])
    state, why = resume_checkpoint(path)
    assert state["step"] == 2
    assert re.search(r"c\.pt was damaged and is kept as c\.pt\.damaged, so from .*c\.pt\.1", why)
    save_checkpoint(path, {"step": 3})
    assert resume_checkpoint(path)[0]["step"] == 3
    assert load_checkpoint(previous(path))["step"] == 2  # not pushed out by the damaged one


def test_a_kill_between_the_two_renames_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1})
    path.rename(previous(path))
    state, why = resume_checkpoint(path)
    assert (state["step"], "is missing" in why) == (1, True)


def test_two_damaged_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(b""), previous(path).write_bytes(b"")
    with pytest.raises(ValueError, match=r"c\.pt is damaged.*c\.pt\.1 is damaged"):
        resume_checkpoint(path)


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with one_writer(path):
        with one_writer(tmp_path / "other.jsonl"):
            pass
        with pytest.raises(OSError, match=r"another process is writing .*run\.jsonl.*another folder"), one_writer(path):
            pass
    with one_writer(path):
        pass


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from heatbath.experiments.checkpoint import one_writer\n"
        "with one_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / "run.jsonl"
    with subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(OSError, match="another process is writing"), one_writer(path):
            pass
        process.kill()
    with one_writer(path):
        pass


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"format": 7})
    with pytest.raises(ValueError, match="has format 7, this version reads 1"):
        load_checkpoint(tmp_path / "c.pt")


def test_random_states_are_restored() -> None:
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        states = random_state(device)
        first = torch.rand(5)
        set_random_state(states, device)
        assert torch.equal(torch.rand(5), first)


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", needed_bytes=10)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_may_be_tried_by_many_at_once(tmp_path: Path) -> None:
    """Runs side by side share their folder: nobody takes another's probe away."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: check_folder(tmp_path / "new", needed_bytes=0), range(2000)))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written \(Not a directory\): choose another with --out"):
        check_folder(tmp_path / "file" / "b", needed_bytes=0)


def test_a_folder_on_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 30 * 2**20))
    check_folder(tmp_path, needed_bytes=2**20)
    with pytest.raises(OSError, match="has 30 MiB left and this run needs about 46 MiB: free some space"):
        check_folder(tmp_path, needed_bytes=10 * 2**20)
