from __future__ import annotations

import hashlib
import io
import tarfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heatbath.experiments.data.cifar10 import ARCHIVE, BATCHES, SUBSET, SUBSET_FILES, load_cifar10, read_jpegs
from heatbath.experiments.data.pixels import Pixels

module = import_module("heatbath.experiments.data.cifar10")  # the package exports the source under the module's name
EACH = 4  # images in each batch


def records(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and images of one batch."""
    random = np.random.default_rng(seed)
    return random.integers(10, size=EACH, dtype=np.uint8), random.integers(256, size=(EACH, 3, 32, 32), dtype=np.uint8)


def archive(batches: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, batch in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(batch)
            tar.addfile(member, io.BytesIO(batch))
    return content.getvalue()


def whole() -> dict[str, bytes]:
    names = [*BATCHES["train"], *BATCHES["test"]]
    made = {name: records(seed) for seed, name in enumerate(names)}
    return {n: b"".join(bytes([label]) + image.tobytes() for label, image in zip(*made[n], strict=True)) for n in names}


def put(root: Path, content: bytes) -> Path:
    (root / "cifar10").mkdir()
    (root / "cifar10" / ARCHIVE).write_bytes(content)
    return root / "cifar10" / ARCHIVE


def put_subset(root: Path) -> list[np.ndarray]:
    """Images of one colour each, which JPEG keeps almost as they are; returns the training images."""
    (root / SUBSET).mkdir()
    kept = []
    for seed, file in enumerate(SUBSET_FILES.values()):
        colours = np.random.default_rng(seed).integers(256, size=(EACH, 3), dtype=np.uint8)
        images = [np.full((32, 32, 3), colour, dtype=np.uint8) for colour in colours]
        parts = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=95)
            parts.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
        offsets = np.cumsum([0, *(len(part) for part in parts)])
        np.savez(root / SUBSET / file, jpeg=np.concatenate(parts), offsets=offsets, labels=np.arange(EACH, dtype=np.uint8))
        kept = kept or images
    return kept


def test_images_and_labels_are_those_of_the_archive(root: Path) -> None:
    put(root, archive(whole()))
    dataset = load_cifar10()
    assert isinstance(dataset.train, Pixels)
    truth = [records(seed) for seed in range(6)]
    assert dataset.train.labels.tolist() == [int(label) for labels, _ in truth[:5] for label in labels]
    assert np.array_equal(dataset.train.images.numpy(), np.concatenate([images for _, images in truth[:5]]))
    assert isinstance(dataset.test, Pixels)
    assert np.array_equal(dataset.test.images.numpy(), truth[5][1])


def test_the_training_images_have_mean_zero_and_variance_one_in_each_channel(root: Path) -> None:
    put(root, archive(whole()))
    dataset = load_cifar10()
    inputs, _ = dataset.train.batch(torch.arange(len(dataset.train)))
    assert float(inputs.mean((0, 2, 3)).abs().max()) < 1e-5
    torch.testing.assert_close(inputs.var((0, 2, 3), correction=0), torch.ones(3))
    assert float(dataset.test.batch(torch.arange(EACH))[0].mean().abs()) > 1e-4  # by the training images' mean, not their own


def test_an_archive_that_is_not_the_canonical_one_is_named_so_and_the_canonical_one_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(whole())
    put(root, content)
    dataset = load_cifar10()
    assert (dataset.name, dataset.source) == (
        "cifar10-unverified",
        "local files, $HEATBATH_DATA/cifar10; not the canonical archive",
    )
    monkeypatch.setattr(module, "MD5", hashlib.md5(content).hexdigest())
    assert load_cifar10().name == "cifar10"


def test_a_download_comes_second_and_is_asked_for_with_its_hash(root: Path, tmp_path: Path) -> None:
    asked = []

    def fetch(url: str, known_hash: str, name: str) -> Path:
        asked.append((url, known_hash, name))
        (tmp_path / "fetched").write_bytes(archive(whole()))
        return tmp_path / "fetched"

    dataset = load_cifar10(fetch)
    assert dataset.source.startswith("downloaded from www.cs.toronto.edu, hash checked")
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert asked == [(url, "md5:c32a1d4ab5d03f1284b67883e8d87530", "cifar10")]


def test_the_jpeg_subset_comes_third_and_says_what_it_is_and_why(root: Path) -> None:
    images = put_subset(root)

    def tampered(url: str, known_hash: str, name: str) -> Path:
        raise ValueError("MD5 hash of downloaded file does not match")

    dataset = load_cifar10(tampered)
    assert dataset.name == "cifar10-jpeg-subset"
    assert dataset.source.startswith("a lossy JPEG copy of a part of CIFAR-10, not comparable with published results")
    assert "a stand-in, because the files of cifar10 are missing: $HEATBATH_DATA/cifar10 has no" in dataset.source
    assert "MD5 hash of downloaded file does not match" in dataset.source
    assert isinstance(dataset.train, Pixels)
    assert dataset.train.labels.tolist() == list(range(EACH))
    decoded = dataset.train.images.permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(decoded - np.stack(images)).max() <= 3  # rounding of the colour transform and of the mean


def test_digits_come_last_under_their_own_name_in_three_equal_channels(root: Path) -> None:
    dataset = load_cifar10()
    assert dataset.name == "digits-upscaled"
    assert f"and $HEATBATH_DATA/{SUBSET} is not complete; grey in three channels" in dataset.source
    assert "www.cs.toronto.edu: ConnectionError" in dataset.source
    assert isinstance(dataset.train, Pixels)
    assert dataset.train.images.shape == (1438, 3, 32, 32)
    assert torch.equal(dataset.train.images[:, 0], dataset.train.images[:, 2])


def cut_short() -> bytes:
    return archive(whole())[:-2000]


def without_the_test_batch() -> bytes:
    return archive({name: batch for name, batch in whole().items() if name != "test_batch.bin"})


def with_a_torn_record() -> bytes:
    return archive({name: batch[:-1] for name, batch in whole().items()})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cut_short, r"is damaged \(.*replace it, or remove it to have it downloaded"),
        (without_the_test_batch, r"is damaged \(KeyError: 'test_batch\.bin'\)"),
        (with_a_torn_record, r"a batch of 12291 bytes is no number of records of 3073"),
        (lambda: b"no archive", r"is damaged \(ReadError"),
    ],
)
def test_a_damaged_archive_is_an_error_and_not_a_reason_for_another_set(make, message: str, root: Path) -> None:  # type: ignore[no-untyped-def]
    file = put(root, make())
    with pytest.raises(ValueError, match=message) as caught:
        load_cifar10()
    assert str(file) in str(caught.value)


def test_a_damaged_or_foreign_subset_is_an_error(tmp_path: Path) -> None:
    put_subset(tmp_path)
    file = tmp_path / SUBSET / SUBSET_FILES["test"]
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "labels": arrays["labels"][:-1]})
    with pytest.raises(ValueError, match=r"holds images \(4, 3, 32, 32\) for 3 labels, not 32×32 in colour"):
        read_jpegs(file)
    np.savez(file, **{**arrays, "jpeg": arrays["jpeg"][::-1]})
    with pytest.raises(ValueError, match=r"is damaged \(UnidentifiedImageError.*replace it, or remove it"):
        read_jpegs(file)
    file.write_bytes(b"PK")
    with pytest.raises(ValueError, match="is damaged"):
        read_jpegs(file)


def test_pixels_refuse_what_is_no_set_of_labelled_byte_images() -> None:
    numbers = torch.ones(3)
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, C, H, W\], got torch.float32 \(2, 3, 4, 4\)"):
        Pixels(torch.zeros(2, 3, 4, 4), torch.zeros(2), numbers, numbers)
    with pytest.raises(ValueError, match="every image needs a label, got 2 images and 3 labels"):
        Pixels(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), numbers, numbers)
