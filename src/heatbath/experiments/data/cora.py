"""Cora: 2,708 machine-learning papers, 1,433 words, 5,278 citations, 7 fields (McCallum et al. 2000; Sen et al. 2008).

The public split of Yang, Cohen & Salakhutdinov 2016 (Planetoid, arXiv 1603.08861): 20 labelled papers of each field to learn
from, 500 for validation, 1,000 for testing; features and citations of all papers are seen throughout. Rows of features are
scaled to sum 1. Where it cannot be had, Zachary's karate club (1977; 34 members, 2 factions; ships with networkx) takes its
place under its own name, in the same shape: a member's only word is who it is.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib

import numpy as np
import torch
from torch import Tensor

from heatbath.experiments.data.base import Dataset, Remote, Source, locate
from heatbath.experiments.data.graphs import NodeLabels

WORDS, FIELDS = 1433, 7
SHA256 = "06732c0e523d48dc4258f735830c599a9d27cb5c41b1c46de2fd6d288b64bebc"
FILES = {"cora.npz": Remote((), f"sha256:{SHA256}")}  # Planetoid's files are pickles, which are not read


def load_cora() -> Dataset:
    """The whole graph with the labels of some nodes.

    Raises:
        ValueError: a file is there but damaged.
    """
    try:
        paths, source = locate("planetoid", FILES)
    except FileNotFoundError as error:
        return karate_club(why=str(error).split(". ")[0])
    path = paths["cora.npz"]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: torch.from_numpy(archive[key]) for key in archive.files}
        rows, columns = arrays["x_rows"].long(), arrays["x_cols"].long()
        features = torch.zeros(len(arrays["y"]), WORDS).index_put((rows, columns), arrays["x_vals"])
        features = features / features.sum(1, keepdim=True).clamp_min(1)
        masks = [arrays[f"{part}_mask"] for part in ("train", "val", "test")]
        train, valid, test = _parts(features, arrays["edge_index"].long(), arrays["y"].long(), masks)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}): replace it, or remove it") from error
    genuine = hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    return Dataset("cora" if genuine else "cora-unverified", f"{source}; Planetoid's public split", train, test, valid)


def karate_club(why: str) -> Dataset:
    """Zachary's club: four members of each faction are labelled to learn from, every other one of the rest is for testing."""
    import networkx as nx

    graph = nx.karate_club_graph()
    count = len(graph)
    labels = torch.tensor([int(graph.nodes[node]["club"] == "Officer") for node in range(count)])
    edges = torch.tensor(list(graph.to_directed().edges)).T.contiguous()
    order = labels.argsort(stable=True)
    learned = torch.zeros(count, dtype=torch.bool)
    learned[torch.cat([order[:4], order[-4:]])] = True
    odd = (~learned).cumsum(0) % 2 == 1
    train, valid, test = _parts(torch.eye(count, WORDS), edges, labels, [learned, ~learned & odd, ~learned & ~odd])
    return Dataset("karate-club", f"ships with networkx; a stand-in, because {why}", train, test, valid)


def _parts(features: Tensor, edges: Tensor, labels: Tensor, masks: list[Tensor]) -> list[NodeLabels]:
    """One split for each mask of nodes."""
    chosen = [mask.nonzero()[:, 0] for mask in masks]
    return [NodeLabels(features, edges, nodes, labels[nodes]) for nodes in chosen]


cora = Source(
    "cora",
    "Cora from $HEATBATH_DATA/planetoid, else Zachary's karate club from networkx (and named so)",
    load_cora,
)
