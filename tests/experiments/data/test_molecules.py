from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

from heatbath.experiments.data import Remote
from heatbath.experiments.data import molecules as module
from heatbath.experiments.data.atlas import load_atlas
from heatbath.experiments.data.graphs import Graphs
from heatbath.experiments.data.molecules import load_molecules, load_molpcba, load_toxcast

TABLES = {  # three molecules in OGB's format: a bond of two atoms, a lone atom, a chain of three; an empty cell is no label
    "raw/num-node-list": "2\n1\n3\n",
    "raw/num-edge-list": "1\n0\n2\n",
    "raw/node-feat": "".join(f"{i},0,0,5,0,0,0,0,1\n" for i in range(6)),
    "raw/edge": "0,1\n0,1\n1,2\n",
    "raw/edge-feat": "1,0,0\n2,0,1\n3,0,0\n",
    "raw/graph-label": "1.0,,0.0\n,,\n0.0,1.0,\n",
    "split/scaffold/train": "2\n",
    "split/scaffold/valid": "1\n",
    "split/scaffold/test": "0\n",
}


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, text in TABLES.items():
            made.writestr(f"pcba/{name}.csv.gz", gzip.compress(text.encode()))
    return file.getvalue()


def put_pcba(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small archive with the right hash."""
    path = root / "ogbg_molpcba" / "pcba.zip"
    path.parent.mkdir()
    path.write_bytes(archive())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(module.PCBA, "pcba.zip", Remote(module.PCBA["pcba.zip"].urls, f"sha256:{digest}"))
    return path


def put_toxcast(root: Path, **changes: np.ndarray) -> Path:
    path = root / "molgraphs" / "toxcast128.npz"
    path.parent.mkdir()
    arrays = {
        "node_feat": np.arange(5 * 9, dtype=np.int8).reshape(5, 9),
        "edge_index": np.array([[0, 1, 0, 1], [1, 0, 1, 0]], dtype=np.int16),
        "edge_feat": np.zeros((4, 3), dtype=np.int8),
        "num_nodes": np.array([2, 2, 1], dtype=np.int16),
        "num_edges": np.array([2, 2, 0], dtype=np.int16),
        "y": np.array([[1, -1], [0, 1], [-1, -1]], dtype=np.int8),
        "tasks": np.array(["a", "b"]),
        "split": np.array([0, 2, 1], dtype=np.int8),
    }
    np.savez(path, **{**arrays, **changes})
    return path


def test_an_archive_of_ogb_is_read_with_both_directions_of_each_bond(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_pcba(root, monkeypatch)
    dataset = load_molecules()
    assert dataset.name == "ogbg-molpcba"
    assert dataset.source == "local files, $HEATBATH_DATA/ogbg_molpcba; scaffold split"
    nodes, edges, bonds, node_counts, edge_counts, target = dataset.train.batch(torch.tensor([0]))
    assert nodes[:, 0].tolist() == [3, 4, 5]
    assert nodes[:, 3].tolist() == [5, 5, 5]
    assert edges.T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert bonds[:, 0].tolist() == [2, 2, 3, 3]
    assert (node_counts.tolist(), edge_counts.tolist()) == ([3], [4])
    assert target.isnan().tolist() == [[False, False, True]]
    assert target[0, :2].tolist() == [0.0, 1.0]
    validation = dataset.validation
    assert validation is not None
    assert bool(validation.batch(torch.tensor([0]))[-1].isnan().all())
    assert dataset.test.batch(torch.tensor([0]))[-1].nan_to_num(-1).tolist() == [[1.0, -1.0, 0.0]]


def test_an_archive_with_another_content_is_named_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_pcba(root, monkeypatch)
    monkeypatch.setitem(module.PCBA, "pcba.zip", Remote(("https://one.example/pcba.zip",), "sha256:0"))
    assert load_molpcba().name == "ogbg-molpcba-unverified"


@pytest.mark.parametrize("content", [b"no archive", archive()[:400]])
def test_a_damaged_archive_is_an_error(content: bytes, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_pcba(root, monkeypatch).write_bytes(content)
    with pytest.raises(ValueError, match=r"pcba\.zip is damaged .*: replace it, or remove it"):
        load_molecules()


def test_toxcast_comes_second_and_minus_one_is_no_label(root: Path) -> None:
    path = put_toxcast(root)
    dataset = load_molecules()
    assert dataset.name == "toxcast128-unverified"  # a made-up file
    assert (len(dataset.train), len(dataset.test)) == (1, 1)
    assert dataset.train.batch(torch.tensor([0]))[-1].nan_to_num(-1).tolist() == [[1.0, -1.0]]
    assert dataset.test.batch(torch.tensor([0]))[0][:, 0].tolist() == [18, 27]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"toxcast128\.npz is damaged .*: replace it, or remove it"):
        load_toxcast()


def test_a_download_comes_third(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_pcba(root, monkeypatch)
    monkeypatch.delenv("HEATBATH_DATA")
    dataset = load_molecules(lambda url, known_hash, name: path)
    assert dataset.name == "ogbg-molpcba"
    assert dataset.source.startswith("downloaded from snap.stanford.edu, hash checked")


def test_the_atlas_comes_last_under_its_own_name_with_the_reasons(root: Path) -> None:
    dataset = load_molecules()
    assert dataset.name == "graph-atlas"
    assert "ships with networkx" in dataset.source
    assert "$HEATBATH_DATA/molgraphs has no toxcast128.npz, and there is no host to download them from" in dataset.source
    assert "snap.stanford.edu: ConnectionError" in dataset.source


def test_the_atlas_has_the_properties_that_networkx_finds() -> None:
    dataset = load_atlas(10, why="of a test")
    split = dataset.train
    assert isinstance(split, Graphs)
    for number in range(0, len(split), 97):
        nodes, edges, _, node_counts, _, target = split.batch(torch.tensor([number]))
        graph = nx.empty_graph(int(node_counts))
        graph.add_edges_from(edges.T.tolist())
        assert nodes[:, 2].tolist() == [degree for _, degree in graph.degree]
        assert bool(target[0, 0]) == nx.is_connected(graph)
        assert bool(target[0, 2]) == (graph.number_of_edges() == len(graph) - nx.number_connected_components(graph))
        assert bool(target[0, 5]) == (nx.transitivity(graph) > 0)
    assert bool(dataset.test.batch(torch.arange(20))[-1][:, 6:].isnan().all())
