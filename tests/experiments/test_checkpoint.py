from __future__ import annotations

import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from heatbath.experiments.checkpoint import (
    check_folder,
    load_checkpoint,
    random_state,
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
    with pytest.raises(OSError, match="has 30 MiB left and this run needs about 36 MiB: free some space"):
        check_folder(tmp_path, needed_bytes=10 * 2**20)
