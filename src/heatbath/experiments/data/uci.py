"""Tables of the UCI machine-learning repository, as collected with fixed splits by T. Evans (uci_datasets, commit below).

Inputs and target are standardized by the training rows. Where a table cannot be had, scikit-learn's diabetes set (442 patients,
10 inputs; Efron et al. 2004) takes its place, under its own name. The other one is scikit-learn's copy of the UCI table
"Breast Cancer Wisconsin (Diagnostic)": 569 tumours, 30 inputs, malignant or not.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heatbath.experiments.data.base import Dataset, Fetch, Remote, Tensors, locate

HOST = "https://raw.githubusercontent.com/treforevans/uci_datasets/f0737523712fe66a1640e4b980b927e8490b58eb/uci_datasets/"
TABLES = {  # name: (SHA-256 of data.csv.gz, of test_mask.csv.gz)
    "concrete": (
        "542c5d9a0d301bdb47550280398dcbbe2fb8404631fc945de1ea6df9ade741c6",
        "fae0926c655e4f9fb5669d0dbf2226bd8ff7daaadbd376adb8f32eac6f752e7e",
    ),
    "energy": (
        "431b6df04243db782bbcd45e408373a654334496ebe5d9c9985ab2e826a39f51",
        "217df2cd4cabf818390e26a65384ea113c95b75bd687787a37ed2f87f28c9bb8",
    ),
    "yacht": (
        "88ec8ea1a979ab0628a54392822c60b3699ea22541e912e83246f7d49f5adad1",
        "2f6d6b091146887589db66073317b8485e853d27e664b99b8b402ad57ba4a936",
    ),
}


def load_table(name: str, *, split: int = 0, fetch: Fetch | None = None) -> Dataset:
    """Inputs `[N, D]` and target `[N]`, float64, standardized by the training rows.

    Args:
        name: a key of `TABLES`.
        split: which of the ten fixed 90/10 splits.
        fetch: the downloader; pooch by default.

    Raises:
        ValueError: an unknown table, a split that is not 0 to 9, or a damaged file.
    """
    if not 0 <= split < 10:
        raise ValueError(f"the splits are 0 to 9, got {split}")
    try:
        table, masks, source = read_table(name, fetch=fetch)
    except FileNotFoundError as error:
        return _diabetes(why=str(error).split(". ")[0])
    return Dataset(f"uci-{name}", source, *_standardized(table[:, :-1], table[:, -1], masks[:, split]))


def read_table(name: str, *, fetch: Fetch | None = None) -> tuple[Tensor, Tensor, str]:
    """A table as it is: rows `[N, D + 1]` with the target last, test masks of ten splits `[N, 10]`, and where it came from.

    Args:
        name: a key of `TABLES`.
        fetch: the downloader; pooch by default.

    Raises:
        FileNotFoundError: neither there nor downloadable.
        ValueError: an unknown table or a damaged file.
    """
    if name not in TABLES:
        raise ValueError(f"known tables are {', '.join(TABLES)}; got {name!r}")
    files = zip(("data.csv.gz", "test_mask.csv.gz"), TABLES[name], strict=True)
    remotes = {file: Remote((f"{HOST}{name}/{file}",), f"sha256:{sha}") for file, sha in files}
    paths, source = locate(f"uci/{name}", remotes, fetch=fetch)
    table, masks = (_read(paths[file]) for file in remotes)
    return table, masks > 0.5, source


def load_breast_cancer() -> Dataset:
    """Inputs `[569, 30]` standardized, and 1.0 for malignant tumours; every tenth row is for testing."""
    from sklearn.datasets import load_breast_cancer as load

    inputs, benign = load(return_X_y=True)
    test = torch.arange(len(inputs)) % 10 == 0
    train, held_out = _standardized(torch.tensor(inputs), torch.tensor(benign, dtype=torch.float64), test, scale_target=False)
    flip = [Tensors((half.tensors[0], 1 - half.tensors[1])) for half in (train, held_out)]
    return Dataset("uci-breast-cancer", "ships with scikit-learn", *flip)


def _diabetes(why: str) -> Dataset:
    from sklearn.datasets import load_diabetes

    inputs, target = load_diabetes(return_X_y=True)
    test = torch.arange(len(inputs)) % 10 == 0
    halves = _standardized(torch.tensor(inputs), torch.tensor(target), test)
    return Dataset("diabetes", f"ships with scikit-learn; {why}", *halves)


def _read(path: Path) -> Tensor:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return torch.tensor(np.loadtxt(file, delimiter=",", ndmin=2), dtype=torch.float64)
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): replace it, or remove it to have it downloaded") from error


def _standardized(inputs: Tensor, target: Tensor, test: Tensor, *, scale_target: bool = True) -> tuple[Tensors, Tensors]:
    train = ~test
    shift, scale = inputs[train].mean(0), inputs[train].std(0)
    inputs = (inputs - shift) / torch.where(scale > 0, scale, 1.0)
    if scale_target:
        target = (target - target[train].mean()) / target[train].std()
    return Tensors((inputs[train], target[train])), Tensors((inputs[test], target[test]))
