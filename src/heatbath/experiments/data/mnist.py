"""MNIST: 60,000 + 10,000 grey images of handwritten digits, 28×28 (LeCun, Cortes & Burges, 1998).

The files are the canonical four, in the IDX format: a big-endian header (two zero bytes, the type code 8 for bytes, the
number of dimensions, then each size as 32 bits) followed by the values, gzip-compressed. Compression may differ between
copies, so a copy is known by the SHA-256 of its decompressed content.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from heatbath.experiments.data.base import Dataset, Fetch, Remote, Source, Tensors, locate
from heatbath.experiments.data.digits import load_upscaled

HOSTS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
FILES = {  # name: (MD5 as served, SHA-256 of the content)
    "train-images-idx3-ubyte.gz": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte.gz": (
        "d53e105ee54ea40749a09fcbcd1e9432",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "9fb629c4189551a2d022fa330f9573f3",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "ec29112dd5afa0611ce80d1b7f02629c",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
BYTE_TYPE = 8  # IDX type code of unsigned bytes


def load_mnist(fetch: Fetch | None = None) -> Dataset:
    """Images `[N, 1, 28, 28]` in [0, 1] and labels int64 `[N]`; enlarged `digits` where MNIST cannot be had.

    A local copy whose content is not MNIST's (Fashion-MNIST has the same file names) is loaded as `mnist-unverified`.

    Raises:
        ValueError: a file is there but damaged.
    """
    remotes = {name: Remote(tuple(host + name for host in HOSTS), f"md5:{md5}") for name, (md5, _) in FILES.items()}
    try:
        paths, source = locate("mnist", remotes, fetch=fetch)
    except FileNotFoundError as error:
        return load_upscaled(28, why=str(error).split(". ")[0])
    content = {name: _decompress(path) for name, path in paths.items()}
    genuine = all(hashlib.sha256(content[name]).hexdigest() == sha for name, (_, sha) in FILES.items())
    train, test = (
        Tensors(
            (
                read_idx(content[f"{half}-images-idx3-ubyte.gz"], half).unsqueeze(1).float() / 255,
                read_idx(content[f"{half}-labels-idx1-ubyte.gz"], half).long(),
            )
        )
        for half in ("train", "t10k")
    )
    if genuine:
        return Dataset("mnist", f"{source}, content checked", train, test)
    return Dataset("mnist-unverified", f"{source}; the content is not MNIST's", train, test)


def _decompress(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): replace it, or remove it to have it downloaded") from error


def read_idx(content: bytes, label: str) -> Tensor:
    """Decode an IDX file of bytes into uint8 of its own shape.

    Args:
        content: the whole file, decompressed.
        label: what to call it in an error.

    Raises:
        ValueError: not IDX, not bytes, or cut short.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != BYTE_TYPE:
        raise ValueError(f"{label} is not an IDX file of bytes: it starts with {content[:4].hex() or 'nothing'}")
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}I", content, 4) if len(content) >= 4 + 4 * dimensions else (-1,)
    values = content[4 + 4 * dimensions :]
    if len(values) != torch.Size(shape).numel():
        raise ValueError(f"{label} is cut short: its header promises {shape}, it holds {len(values)} values")
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).reshape(shape)


mnist = Source(
    "mnist",
    "MNIST from $HEATBATH_DATA/mnist, else downloaded, else scikit-learn's digits enlarged (and named so)",
    load_mnist,
)
