from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from heatbath.experiments.data import shakespeare as module
from heatbath.experiments.data.shakespeare import ALPHABET, encode, load_shakespeare, python_manual, windows

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20


@pytest.fixture
def folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$HEATBATH_DATA/tinyshakespeare with a short text that has the right hash."""
    place = root / "tinyshakespeare"
    place.mkdir()
    (place / "input.txt").write_text(TEXT)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(TEXT.encode()).hexdigest())
    return place


def read(codes: torch.Tensor) -> str:
    return "".join(ALPHABET[code] for code in codes.flatten().tolist())


def test_the_alphabet_has_65_characters_in_order() -> None:
    assert len(ALPHABET) == 65
    assert list(ALPHABET) == sorted(set(ALPHABET))


def test_windows_are_the_text_and_targets_the_text_one_later(folder: Path) -> None:
    dataset = load_shakespeare(10)
    border = int(0.9 * len(TEXT))
    for split, text in ((dataset.train, TEXT[:border]), (dataset.test, TEXT[border:])):
        inputs, target = split.batch(torch.arange(len(split)))
        used = len(split) * 10
        assert read(inputs) == text[:used]
        assert read(target) == text[1 : used + 1]
        assert len(text) - 1 - used < 10


def test_a_local_file_with_the_right_hash_is_tiny_shakespeare(folder: Path) -> None:
    dataset = load_shakespeare(10)
    assert dataset.name == "tiny-shakespeare"
    assert dataset.source.startswith("local files, $HEATBATH_DATA/tinyshakespeare, content checked; windows of 10")


def test_a_local_file_with_another_text_is_named_so(folder: Path) -> None:
    (folder / "input.txt").write_text(TEXT + "!")
    dataset = load_shakespeare(10)
    assert dataset.name == "text-unverified"
    assert "the content is not tiny-shakespeare's" in dataset.source


def test_a_download_comes_second(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEATBATH_DATA")
    asked = []

    def fetch(url: str, known_hash: str, name: str) -> Path:
        asked.append(known_hash)
        return folder / "input.txt"

    dataset = load_shakespeare(10, fetch)
    assert dataset.name == "tiny-shakespeare"
    assert dataset.source.startswith("downloaded from raw.githubusercontent.com, hash checked")
    assert asked == [f"sha256:{module.SHA256}"]


def test_a_wrong_hash_leads_to_the_manual_under_its_own_name_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEATBATH_DATA", raising=False)

    def tampered(url: str, known_hash: str, name: str) -> Path:
        raise ValueError("SHA256 hash of downloaded file does not match")

    dataset = load_shakespeare(64, tampered)
    assert dataset.name == "python-manual"
    assert "ship with Python" in dataset.source
    assert "SHA256 hash of downloaded file does not match" in dataset.source
    assert len(dataset.train) > 1000


def test_characters_beyond_the_alphabet_are_spaces() -> None:
    assert read(encode("naïve [x] = 3")) == "na ve  x    3"
    assert len(python_manual()) > 100_000


def test_a_text_shorter_than_a_window_is_refused(folder: Path) -> None:
    (folder / "input.txt").write_text("short")
    with pytest.raises(ValueError, match="a text of 4 characters is too short for windows of 10: give a longer one"):
        load_shakespeare(10)
    assert len(windows(torch.arange(11), 10)) == 1
