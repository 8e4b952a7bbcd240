"""What a data set is, and where its files are looked for.

A `Source` knows how to load one set; it costs nothing until `load` is called, so recipes can be listed without data. A
`Dataset` says by `name` and `source` which set was *really* used, which is not always the one that was asked for: both go
into every record. Files are looked for in this order:

    1. the folder NAME inside the folder that the environment variable HEATBATH_DATA names
    2. the canonical host, into the user's cache, checked against a known hash
    3. a set that ships with an installed package, under its own name, where a source offers one
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

ROOT_VARIABLE = "HEATBATH_DATA"
HELD_OUT = 10  # one training example in so many is held out for choosing hyper-parameters
DOWNLOAD_TIMEOUT = 15.0  # seconds without an answer from one host


class Split(Protocol):
    """The training or the test half of a set: examples that can be counted and fetched by number.

    The last tensor of a batch is the target, all before it are the arguments of the model. Ragged sets (graphs, text)
    implement this protocol; everything else is `Tensors`.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        """The examples of these numbers, int64 `[B]`."""

    def to(self, device: torch.device) -> Split:
        """The same split on another device."""


@dataclass(frozen=True, eq=False)
class Tensors:
    """A split held as tensors that all lead with the example: inputs `[N, ...]`, ..., target `[N, ...]`."""

    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        lengths = {len(t) for t in self.tensors}
        if len(lengths) != 1:
            raise ValueError(f"the tensors of a split must hold the same number of examples, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        return tuple(t[indices] for t in self.tensors)

    def to(self, device: torch.device) -> Tensors:
        return Tensors(tuple(t.to(device) for t in self.tensors))


@dataclass(frozen=True, eq=False)
class Subset:
    """Some examples of a split, renumbered.

    Args:
        split: any.
        indices: which examples of it, int64 `[N]`.
    """

    split: Split
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        return self.split.batch(self.indices[indices])

    def to(self, device: torch.device) -> Subset:
        return Subset(self.split.to(device), self.indices)  # numbers of examples stay on the CPU, as a batch's do


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded set.

    Args:
        name: of the set really loaded, for example `"digits-upscaled"` where MNIST could not be had.
        source: where it came from, in words that name no path of this machine.
        train: what is trained on.
        test: what is measured on.
        validation: what hyper-parameters are chosen on, where the set comes with such a part; else `held_out` takes one from
            the training examples.
    """

    name: str
    source: str
    train: Split
    test: Split
    validation: Split | None = None

    def to(self, device: torch.device) -> Dataset:
        """The same set on another device."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), validation=validation)

    def describe(self) -> str:
        """One line: name, sizes, source."""
        return f"{self.name}, {len(self.train):,} training and {len(self.test):,} test examples ({self.source})"


@dataclass(frozen=True)
class Source:
    """A set that can be loaded.

    Args:
        name: of the set that is asked for.
        note: one line for people: what it is and what stands in for it.
        load: loads it; may read files, download, or raise `FileNotFoundError`.
        shapes_only: random numbers of the right shapes: good for time and energy, nothing can be learned or chosen on them.
    """

    name: str
    note: str
    load: Callable[[], Dataset]
    shapes_only: bool = False


def reconstruction(source: Source) -> Source:
    """The same set as an autoencoder's task: inputs flattened to `[N, D]`, and the target is the input."""

    def load() -> Dataset:
        dataset = source.load()
        return replace(dataset, train=_mirrored(dataset.train), test=_mirrored(dataset.test))

    return replace(source, load=load)


def _mirrored(split: Split) -> Tensors:
    if not isinstance(split, Tensors):
        raise TypeError(f"only a split held as Tensors can be reconstructed, got {type(split).__name__}")
    inputs = split.tensors[0].flatten(1)
    return Tensors((inputs, inputs))


def held_out(source: Source) -> Source:
    """The same set for choosing hyper-parameters: a part of the training examples to measure on, the rest to train on.

    The true test split is left out altogether, so nothing that is chosen can have seen it. Which examples are held out
    depends on their number alone: every `HELD_OUT`-th of one fixed shuffle. A set with a validation part of its own is measured
    on that, and trained on all its training examples.

    Raises:
        ValueError: the set is of shapes only.
    """
    if source.shapes_only:
        raise ValueError(
            f"nothing can be chosen on {source.name}, which is random numbers of the right shapes for predictions of time and "
            "energy: choose another recipe"
        )

    def load() -> Dataset:
        dataset = source.load()
        if dataset.validation is not None:
            note = "measured on the validation part of the set; the test split is not used"
            return Dataset(dataset.name, f"{dataset.source}; {note}", train=dataset.train, test=dataset.validation)
        count = len(dataset.train)
        if count < HELD_OUT:
            raise ValueError(
                f"{dataset.name} has {count} training examples, too few to hold some out: at least {HELD_OUT} are needed"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        apart = torch.arange(count) % HELD_OUT == 0
        note = "measured on a tenth of the training examples, held out by a fixed shuffle; the test split is not used"
        return Dataset(
            dataset.name,
            f"{dataset.source}; {note}",
            train=Subset(dataset.train, order[~apart]),
            test=Subset(dataset.train, order[apart]),
        )

    return replace(source, load=load)


@dataclass(frozen=True)
class Remote:
    """Where a file can be downloaded.

    Args:
        urls: addresses, tried in order.
        known_hash: `"md5:..."` or `"sha256:..."` of the file as it is served.
    """

    urls: tuple[str, ...]
    known_hash: str


Fetch = Callable[[str, str, str], Path]  # (url, known hash, set name) -> a local file; raises on any failure


def locate(name: str, files: Mapping[str, Remote], *, fetch: Fetch | None = None) -> tuple[dict[str, Path], str]:
    """Find or download the files of a set.

    Args:
        name: of the set, and of its folder inside $HEATBATH_DATA.
        files: the file names it consists of.
        fetch: the downloader; pooch by default.

    Returns:
        The path of each file, and the source in words.

    Raises:
        FileNotFoundError: neither there nor downloadable; the message lists what was tried.
    """
    root = os.environ.get(ROOT_VARIABLE)
    if root:
        folder = Path(root) / name
        missing = [file for file in files if not (folder / file).is_file()]
        if not missing:
            return {file: folder / file for file in files}, f"local files, ${ROOT_VARIABLE}/{name}"
        local = f"${ROOT_VARIABLE}/{name} has no {missing[0]}"
    else:
        local = f"${ROOT_VARIABLE} is not set"
    try:
        paths = {file: _download(remote, name, fetch or pooch_fetch) for file, remote in files.items()}
    except ConnectionError as error:
        raise FileNotFoundError(
            f"the files of {name} are missing: {local}, and {error}. "
            f"Put {', '.join(files)} into a folder {name} and set {ROOT_VARIABLE} to the folder above it"
        ) from error
    return paths, f"downloaded from {_host(next(iter(files.values())).urls[0])}, hash checked"


def _host(url: str) -> str:
    return url.split("/")[2]


def _download(remote: Remote, name: str, fetch: Fetch) -> Path:
    if not remote.urls:
        raise ConnectionError("there is no host to download them from")
    reasons = []
    for url in remote.urls:
        try:
            return fetch(url, remote.known_hash, name)
        except Exception as error:  # whatever a network can raise: each is a reason to try the next host
            reasons.append(f"{_host(url)}: {_reason(error)}")
    raise ConnectionError(f"the download failed ({'; '.join(reasons)})")


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError):  # pooch's word for a wrong hash
        return str(error).split("\n")[0][:160]
    return type(error).__name__


def pooch_fetch(url: str, known_hash: str, name: str) -> Path:
    """Download one file into the user's cache, or find it there; the hash is checked either way."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    folder = Path(pooch.os_cache("heatbath")) / name
    downloader = pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT)
    return Path(pooch.retrieve(url, known_hash, fname=url.split("/")[-1], path=folder, downloader=downloader))
