from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from heatbath.experiments.data import cora as module
from heatbath.experiments.data.cora import karate_club, load_cora


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$HEATBATH_DATA/planetoid/cora.npz with four papers, and that file's hash as the right one."""
    monkeypatch.setenv("HEATBATH_DATA", str(tmp_path))
    path = tmp_path / "planetoid" / "cora.npz"
    path.parent.mkdir()
    masks = {f"{part}_mask": np.arange(4) == i for i, part in enumerate(("train", "val", "test"))}
    np.savez(
        path,
        x_rows=np.array([0, 0, 3], dtype=np.int32),
        x_cols=np.array([5, 1432, 7], dtype=np.int16),
        x_vals=np.ones(3, dtype=np.float32),
        y=np.array([6, 0, 2, 1], dtype=np.uint8),
        edge_index=np.array([[0, 3], [3, 0]], dtype=np.int16),
        **masks,
    )
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_features_are_scaled_rows_and_each_part_has_its_own_nodes(file: Path) -> None:
    dataset = load_cora()
    assert dataset.name == "cora"
    features, edges, nodes, target = dataset.test.batch(torch.tensor([0]))
    assert features.shape == (4, 1433)
    assert features[0].nonzero().flatten().tolist() == [5, 1432]
    assert features.sum(1).tolist() == [1.0, 0.0, 0.0, 1.0]  # a paper without words stays as it is
    assert edges.tolist() == [[0, 3], [3, 0]]
    assert (nodes.tolist(), target.tolist()) == ([2], [2])
    assert dataset.validation is not None
    assert dataset.validation.batch(torch.tensor([0]))[-1].tolist() == [0]


def test_a_file_with_another_content_is_named_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHA256", "0")
    assert load_cora().name == "cora-unverified"


def test_a_damaged_file_is_an_error(file: Path) -> None:
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"cora\.npz is damaged .*: replace it, or remove it"):
        load_cora()


def test_the_karate_club_comes_last_under_its_own_name_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEATBATH_DATA", raising=False)
    dataset = load_cora()
    assert dataset.name == "karate-club"
    assert "$HEATBATH_DATA is not set, and there is no host to download them from" in dataset.source


def test_the_clubs_parts_share_no_member_and_both_factions_are_in_each() -> None:
    dataset = karate_club("of a test")
    parts = [dataset.train, dataset.validation, dataset.test]
    nodes = [part.batch(torch.arange(len(part)))[2] for part in parts if part is not None]
    assert sorted(torch.cat(nodes).tolist()) == list(range(34))
    assert all(set(part.batch(torch.arange(len(part)))[3].tolist()) == {0, 1} for part in parts if part is not None)
    features, edges, *_ = dataset.train.batch(torch.arange(8))
    assert features.shape == (34, 1433)
    assert edges.shape == (2, 2 * 78)
