"""UCI tables: where they come from, how they are scaled, and what stands in for them."""

import gzip
import os
from pathlib import Path

import pytest
import torch

from heatbath.experiments.data.uci import load_breast_cancer, load_table, read_table


def folder_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: bytes, masks: bytes) -> None:
    folder = tmp_path / "uci" / "yacht"
    folder.mkdir(parents=True)
    (folder / "data.csv.gz").write_bytes(rows)
    (folder / "test_mask.csv.gz").write_bytes(masks)
    monkeypatch.setenv("HEATBATH_DATA", str(tmp_path))


ROWS = "\n".join(f"{i},{i % 3},5,{2 * i}" for i in range(8))
MASKS = "\n".join(",".join("1" if i == k % 8 else "0" for k in range(10)) for i in range(8))


def test_a_local_table_is_split_and_standardized_by_its_training_rows(tmp_path, monkeypatch):
    folder_with(tmp_path, monkeypatch, gzip.compress(ROWS.encode()), gzip.compress(MASKS.encode()))
    data = load_table("yacht", split=2)
    assert data.name == "uci-yacht"
    assert "HEATBATH_DATA" in data.source
    (x, y), (held_out, target) = data.train.tensors, data.test.tensors
    assert (x.shape, held_out.shape) == ((7, 3), (1, 3))
    torch.testing.assert_close(x.mean(0), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([1.0, 1.0, 0.0]).double())  # a constant column stays 0
    training = torch.tensor([0.0, 1, 3, 4, 5, 6, 7]).double()
    torch.testing.assert_close(held_out[0, 0], (2 - training.mean()) / training.std())  # row 2, by the other rows' scale
    torch.testing.assert_close(target, held_out[:, 0])  # the target is twice the first input
    assert float(y.std()) == pytest.approx(1.0)


def test_without_the_table_diabetes_stands_in_under_its_own_name(monkeypatch):
    monkeypatch.delenv("HEATBATH_DATA", raising=False)
    data = load_table("energy")
    assert data.name == "diabetes"
    assert "HEATBATH_DATA is not set" in data.source
    with pytest.raises(FileNotFoundError, match="the files of uci/energy are missing"):
        read_table("energy")


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(ROWS.encode())[:20], gzip.compress(b"a,b\n")],
    ids=["no gzip", "cut short", "no numbers"],  # the bytes hold the time, and workers must agree on names
)
def test_a_damaged_file_is_named(content, tmp_path, monkeypatch):
    folder_with(tmp_path, monkeypatch, content, gzip.compress(MASKS.encode()))
    with pytest.raises(ValueError, match=r"data\.csv\.gz is damaged"):
        load_table("yacht")


def test_unknown_tables_and_splits_are_refused():
    with pytest.raises(ValueError, match="known tables are concrete, energy, yacht; got 'wine'"):
        load_table("wine")
    with pytest.raises(ValueError, match="the splits are 0 to 9, got 10"):
        load_table("energy", split=10)


def test_breast_cancer_ships_with_a_dependency():
    data = load_breast_cancer()
    labels = torch.cat((data.train.tensors[1], data.test.tensors[1]))
    assert int(labels.sum()) == 212  # malignant, by the repository's description
    assert len(labels) == 569


@pytest.mark.skipif("HEATBATH_DATA" not in os.environ, reason="needs HEATBATH_DATA")
@pytest.mark.parametrize(("name", "rows", "inputs"), [("concrete", 1030, 8), ("energy", 768, 8), ("yacht", 308, 6)])
def test_the_real_tables_have_their_size(name, rows, inputs):
    data = load_table(name)
    assert len(data.train) + len(data.test) == rows
    assert data.train.tensors[0].shape[1] == inputs
