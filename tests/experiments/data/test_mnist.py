from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import pytest
import torch

from heatbath.experiments.data import Tensors
from heatbath.experiments.data.mnist import FILES, load_mnist, read_idx

COUNTS = {"train": 5, "t10k": 3}


def idx(values: torch.Tensor) -> bytes:
    return bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape) + bytes(values.flatten().tolist())


@pytest.fixture
def folder(root: Path) -> Path:
    """$HEATBATH_DATA/mnist with eight images in the four canonical files."""
    place = root / "mnist"
    place.mkdir()
    for half, count in COUNTS.items():
        images = (torch.arange(count * 784) % 256).reshape(count, 28, 28)
        (place / f"{half}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (place / f"{half}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(torch.arange(count))))
    return place


def test_local_files_are_decoded_as_written(folder: Path) -> None:
    dataset = load_mnist()
    assert isinstance(dataset.train, Tensors)
    images, labels = dataset.train.tensors
    assert (len(dataset.train), len(dataset.test)) == (5, 3)
    assert images.shape == (5, 1, 28, 28)
    assert torch.equal((images.flatten() * 255).round(), (torch.arange(5 * 784) % 256).float())
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_local_files_that_are_not_mnist_are_named_so(folder: Path) -> None:
    dataset = load_mnist()
    assert dataset.name == "mnist-unverified"
    assert dataset.source == "local files, $HEATBATH_DATA/mnist; the content is not MNIST's"


def test_local_files_with_mnists_content_are_mnist_however_compressed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, (md5, _) in list(FILES.items()):
        content = gzip.decompress((folder / file).read_bytes())
        monkeypatch.setitem(FILES, file, (md5, hashlib.sha256(content).hexdigest()))
        (folder / file).write_bytes(gzip.compress(content, compresslevel=1))
    assert load_mnist().name == "mnist"


def test_a_download_comes_second(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEATBATH_DATA")
    dataset = load_mnist(lambda url, known_hash, name: folder / url.split("/")[-1])
    assert (len(dataset.train), len(dataset.test)) == (5, 3)
    assert dataset.source.startswith("downloaded from ossci-datasets.s3.amazonaws.com, hash checked")


def test_a_packaged_set_comes_last_under_its_own_name_with_the_reasons(root: Path) -> None:
    dataset = load_mnist()
    assert dataset.name == "digits-upscaled"
    assert "ships with scikit-learn" in dataset.source
    assert "$HEATBATH_DATA/mnist has no train-images-idx3-ubyte.gz" in dataset.source
    assert "storage.googleapis.com: ConnectionError" in dataset.source


def test_a_damaged_file_is_an_error_and_not_a_reason_for_another_set(folder: Path) -> None:
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged .*replace it, or remove it"):
        load_mnist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "labels is not an IDX file of bytes: it starts with nothing"),
        (b"\x89PNG1234", "not an IDX file of bytes: it starts with 89504e47"),
        (idx(torch.arange(6))[:-1], r"cut short: its header promises \(6,\), it holds 5 values"),
        (bytes([0, 0, 8, 3, 0]), "cut short"),
    ],
)
def test_content_that_is_no_idx_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_idx(content, "labels")
