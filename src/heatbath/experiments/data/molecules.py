"""Molecules as graphs with the Open Graph Benchmark's features (Hu et al. 2020, arXiv 2005.00687), 128 binary tasks each.

    ogbg-molpcba    437,929 molecules of PubChem's bioassays
    toxcast128      8,597 molecules of ToxCast, the 128 assays with most positives, features made by RDKit and ogb 1.3.6

Both have 9 categories for each atom and 3 for each bond, edges in both directions, missing labels, and a split by scaffold. The
first that is there is taken: molpcba from $HEATBATH_DATA, ToxCast from $HEATBATH_DATA, molpcba downloaded (38 MiB, hash
checked), and last, under its own name, the atlas of all graphs of up to seven nodes that ships with networkx, with properties
of these graphs as tasks.
"""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heatbath.experiments.data.atlas import load_atlas
from heatbath.experiments.data.base import Dataset, Fetch, Remote, Source, locate
from heatbath.experiments.data.graphs import Graphs

ATOM_CATEGORIES = (119, 5, 12, 12, 10, 6, 6, 2, 2)  # ogb 1.3.6, utils/features.py: element, chirality, degree, charge, ...
BOND_CATEGORIES = (5, 6, 2)  # kind, stereo, conjugated
TASKS = 128
PCBA = {  # size and hash as in TensorFlow Datasets' list, ogbg_molpcba/checksums.tsv
    "pcba.zip": Remote(
        ("https://snap.stanford.edu/ogb/data/graphproppred/csv_mol_download/pcba.zip",),
        "sha256:0bb12da2f3ec8b0bb80564114a6174fad2df6a3a0d3c19470b3a27813a7d4e53",
    )
}
TOXCAST = {"toxcast128.npz": Remote((), "sha256:6ac2b1df2befe35e8e83f04a718a4faea3dbffc89e20fe85077dce88adc8d9f0")}
PARTS = ("train", "valid", "test")


def load_molecules(fetch: Fetch | None = None) -> Dataset:
    """The first of the sets that can be had.

    Raises:
        ValueError: a file is there but damaged.
    """
    reasons = []
    for attempt in (partial(load_molpcba, _local_only), load_toxcast, partial(load_molpcba, fetch)):
        try:
            return attempt()
        except FileNotFoundError as error:
            reasons.append(str(error).split(". ")[0])
    return load_atlas(TASKS, why="; ".join(dict.fromkeys(reasons[1:])))


def load_molpcba(fetch: Fetch | None = None) -> Dataset:
    """ogbg-molpcba from OGB's own archive, with its scaffold split.

    Raises:
        FileNotFoundError: neither there nor downloadable.
        ValueError: the archive is damaged.
    """
    paths, source = locate("ogbg_molpcba", PCBA, fetch=fetch)
    (path,) = paths.values()
    try:
        with zipfile.ZipFile(path) as archive:
            graphs = _read_graphs(archive)
            parts = [_table(archive, f"split/scaffold/{part}", np.int64)[:, 0] for part in PARTS]
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): replace it, or remove it to have it downloaded") from error
    train, valid, test = (graphs.take(torch.from_numpy(part)) for part in parts)
    return Dataset(_name("ogbg-molpcba", path, PCBA["pcba.zip"]), f"{source}; scaffold split", train, test, valid)


def load_toxcast() -> Dataset:
    """ToxCast's 128 assays with most positives, with a scaffold split.

    Raises:
        FileNotFoundError: not there; it cannot be downloaded.
        ValueError: the file is damaged.
    """
    paths, source = locate("molgraphs", TOXCAST)
    (path,) = paths.values()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: torch.from_numpy(archive[key]) for key in archive.files if archive[key].dtype.kind == "i"}
        labels = arrays["y"].float()
        graphs = Graphs(
            arrays["node_feat"],
            arrays["edge_index"],
            arrays["edge_feat"],
            arrays["num_nodes"],
            arrays["num_edges"],
            torch.where(labels < 0, torch.nan, labels),
        )
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): replace it, or remove it") from error
    train, valid, test = (graphs.take((arrays["split"] == part).nonzero()[:, 0]) for part in range(3))
    return Dataset(_name("toxcast128", path, TOXCAST["toxcast128.npz"]), f"{source}; scaffold split", train, test, valid)


def _local_only(url: str, known_hash: str, name: str) -> Path:
    """A downloader that downloads nothing."""
    raise ConnectionError(url)


def _name(name: str, path: Path, remote: Remote) -> str:
    """The name of a set, if its file has the known content."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return name if remote.known_hash == f"sha256:{digest}" else f"{name}-unverified"


def _read_graphs(archive: zipfile.ZipFile) -> Graphs:
    """All graphs of an archive in OGB's format, which has each bond once: the other direction follows."""
    edges = _table(archive, "raw/edge", np.int16)
    both = np.stack([edges, edges[:, ::-1]], axis=1).reshape(-1, 2)
    counts = _table(archive, "raw/num-edge-list", np.int64)[:, 0] * 2
    return Graphs(
        torch.from_numpy(_table(archive, "raw/node-feat", np.int8)),
        torch.from_numpy(np.ascontiguousarray(both.T)),
        torch.from_numpy(_table(archive, "raw/edge-feat", np.int8)).repeat_interleave(2, dim=0),
        torch.from_numpy(_table(archive, "raw/num-node-list", np.int64)[:, 0]),
        torch.from_numpy(counts),
        torch.from_numpy(_table(archive, "raw/graph-label", np.float32)),
    )


def _table(archive: zipfile.ZipFile, name: str, dtype: type[np.generic]) -> np.ndarray:
    """One compressed table; an empty cell is NaN."""
    text = gzip.decompress(archive.read(f"pcba/{name}.csv.gz"))
    if np.issubdtype(dtype, np.floating):
        for _ in range(2):  # neighbouring empty cells share a comma
            text = text.replace(b",,", b",nan,")
        text = text.replace(b",\n", b",nan\n").replace(b"\n,", b"\nnan,")
        text = b"nan" + text if text.startswith(b",") else text
    return np.loadtxt(text.decode().splitlines(), delimiter=",", dtype=dtype, ndmin=2)


def categories(split: Graphs) -> Tensor:
    """The largest category in each column of a split's nodes and bonds, int64 `[12]`."""
    return torch.cat([split.nodes.amax(0).long(), split.bonds.amax(0).long()])


molecules = Source(
    "molecules",
    "ogbg-molpcba or ToxCast from $HEATBATH_DATA, else molpcba downloaded, else networkx's atlas of graphs (and named so)",
    load_molecules,
)
