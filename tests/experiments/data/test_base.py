from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heatbath.experiments.data import Dataset, Remote, Source, Tensors, locate, reconstruction

FILES = {
    "a.gz": Remote(("https://one.example/a.gz", "https://two.example/a.gz"), "md5:0"),
    "b.gz": Remote(("https://one.example/b.gz",), "md5:1"),
}


class Network:
    """A fake downloader: some hosts answer."""

    def __init__(self, folder: Path, *answering: str) -> None:
        self.folder, self.answering, self.asked = folder, answering, list[str]()

    def __call__(self, url: str, known_hash: str, name: str) -> Path:
        self.asked.append(url)
        if url.split("/")[2] not in self.answering:
            raise TimeoutError("no answer")
        return self.folder / url.split("/")[-1]


def test_local_files_come_first_and_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEATBATH_DATA", str(tmp_path))
    (tmp_path / "set").mkdir()
    for file in FILES:
        (tmp_path / "set" / file).write_text("")
    network = Network(tmp_path, "one.example", "two.example")
    paths, source = locate("set", FILES, fetch=network)
    assert paths == {file: tmp_path / "set" / file for file in FILES}
    assert source == "local files, $HEATBATH_DATA/set"
    assert network.asked == []


def test_hosts_are_asked_in_order_when_a_local_file_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEATBATH_DATA", str(tmp_path))
    network = Network(tmp_path, "two.example")
    with pytest.raises(FileNotFoundError, match=r"\$HEATBATH_DATA/set has no a\.gz"):
        locate("set", FILES, fetch=network)
    assert network.asked == [*FILES["a.gz"].urls, *FILES["b.gz"].urls]


def test_downloaded_files_are_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEATBATH_DATA", raising=False)
    paths, source = locate("set", FILES, fetch=Network(tmp_path, "one.example"))
    assert paths["b.gz"] == tmp_path / "b.gz"
    assert source == "downloaded from one.example, hash checked"


def test_files_that_cannot_be_had_are_an_error_that_says_what_was_tried_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEATBATH_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        locate("set", FILES, fetch=Network(tmp_path))
    message = str(caught.value)
    assert "$HEATBATH_DATA is not set" in message
    assert "one.example: TimeoutError; two.example: TimeoutError" in message
    assert "Put a.gz, b.gz into a folder set and set HEATBATH_DATA to the folder above it" in message


def test_a_wrong_hash_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEATBATH_DATA", raising=False)

    def tampered(url: str, known_hash: str, name: str) -> Path:
        raise ValueError("MD5 hash of downloaded file does not match")

    with pytest.raises(FileNotFoundError, match="MD5 hash of downloaded file does not match"):
        locate("set", FILES, fetch=tampered)


def test_tensors_of_different_lengths_are_no_split() -> None:
    with pytest.raises(ValueError, match=r"same number of examples, got \[3, 4\]"):
        Tensors((torch.zeros(3), torch.zeros(4)))


def test_a_batch_is_the_numbered_examples() -> None:
    split = Tensors((torch.arange(12.0).reshape(6, 2), torch.arange(6)))
    inputs, labels = split.batch(torch.tensor([4, 1]))
    assert inputs.tolist() == [[8.0, 9.0], [2.0, 3.0]]
    assert labels.tolist() == [4, 1]


def test_reconstruction_makes_the_flat_input_the_target_and_keeps_the_name() -> None:
    split = Tensors((torch.arange(24.0).reshape(2, 3, 4), torch.arange(2)))
    source = reconstruction(Source("set", "a note", lambda: Dataset("really", "from here", split, split)))
    dataset = source.load()
    inputs, target = dataset.train.batch(torch.arange(2))
    assert inputs.shape == (2, 12)
    assert torch.equal(inputs, target)
    assert (dataset.name, dataset.source, source.note) == ("really", "from here", "a note")


def test_only_tensors_can_be_reconstructed() -> None:
    class Ragged:
        def __len__(self) -> int:
            return 0

    source = Source("set", "", lambda: Dataset("set", "", Ragged(), Ragged()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="only a split held as Tensors can be reconstructed, got Ragged"):
        reconstruction(source).load()
