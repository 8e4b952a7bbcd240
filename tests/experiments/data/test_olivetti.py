from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor

from heatbath.experiments.data import Dataset, Tensors
from heatbath.experiments.data.olivetti import FILE, cut_patches, load_faces, read_faces

module = import_module("heatbath.experiments.data.olivetti")


@pytest.fixture
def file(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$HEATBATH_DATA/olivetti with a file of random faces; two patches of each."""
    monkeypatch.setattr(module, "PATCHES", 2)
    (root / "olivetti").mkdir()
    path = root / "olivetti" / FILE
    scipy.io.savemat(path, {"faces": np.random.default_rng(0).integers(256, size=(4096, 400), dtype=np.uint8)})
    return path


def inputs(dataset: Dataset) -> tuple[Tensor, Tensor]:
    assert isinstance(dataset.train, Tensors)
    assert isinstance(dataset.test, Tensors)
    return dataset.train.tensors[0], dataset.test.tensors[0]


def test_faces_are_stored_column_by_column(file: Path) -> None:
    columns = scipy.io.loadmat(file)["faces"]
    faces = read_faces(file)
    assert faces.shape == (400, 64, 64)
    assert float(faces[7, 2, 5]) == pytest.approx(columns[2 + 64 * 5, 7] / 255)


def test_a_patch_reads_a_linear_image_at_the_points_of_a_turned_square_inside_the_face() -> None:
    """Bilinear interpolation is exact on linear images, so the patches of two ramps are the coordinates of the grid."""
    down, across = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    patches = [cut_patches(ramp.unsqueeze(0), 50, generator=torch.Generator().manual_seed(1)) for ramp in (across, down)]
    x, y = (p.reshape(50, 25, 25) for p in patches)
    right = torch.stack([x[:, 0, 1] - x[:, 0, 0], y[:, 0, 1] - y[:, 0, 0]])  # one step along a row of the patch
    below = torch.stack([x[:, 1, 0] - x[:, 0, 0], y[:, 1, 0] - y[:, 0, 0]])
    spacing = right.norm(dim=0)
    assert float((right * below).sum(0).abs().max()) < 1e-3  # at right angles
    torch.testing.assert_close(below.norm(dim=0), spacing, atol=1e-4, rtol=0)
    assert 1.4 - 1e-4 < float(spacing.min()) < 1.45 < 1.75 < float(spacing.max()) < 1.8 + 1e-4  # 50 uniform draws: e^-6 each
    assert float(right[0].min()) > -1e-4  # turned by 90° at most
    torch.testing.assert_close(x[:, 24, 24] - x[:, 0, 0], 24 * (right[0] + below[0]), atol=1e-2, rtol=0)
    assert 0 <= float(min(x.min(), y.min())) <= float(max(x.max(), y.max())) <= 63


def test_patches_have_mean_zero_in_each_pixel_and_variance_one_on_average(file: Path) -> None:
    train, test = inputs(load_faces())
    assert (train.shape, test.shape) == ((600, 625), (200, 625))
    assert float(train.mean(0).abs().max()) < 1e-5
    assert float(train.square().mean()) == pytest.approx(1, rel=1e-4)
    assert float(test.mean(0).abs().max()) > 1e-2  # by the training patches' mean, not their own


def test_the_same_patches_are_made_each_time_and_no_person_is_in_both_halves(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = (inputs(load_faces()) for _ in range(2))
    assert torch.equal(first[0], again[0])
    faces = scipy.io.loadmat(file)["faces"]
    faces[:, 300:] = 0  # the last ten people
    scipy.io.savemat(file, {"faces": faces})
    changed = inputs(load_faces())
    assert torch.equal(changed[0], first[0])
    assert float(changed[1].std(0).max()) < 1e-5


def test_a_local_file_is_named_by_what_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_faces()
    assert dataset.name == "olivetti-patches-unverified"
    assert dataset.source.startswith("local files, $HEATBATH_DATA/olivetti, none of the known files; 2 patches of 25×25")
    monkeypatch.setattr(module, "COPIES", {hashlib.sha256(file.read_bytes()).hexdigest()})
    dataset = load_faces()
    assert dataset.name == "olivetti-patches"
    assert "content checked" in dataset.source


def test_a_download_comes_second_with_scikit_learns_hash(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets._olivetti_faces import FACES

    monkeypatch.delenv("HEATBATH_DATA")
    asked = []

    def fetch(url: str, known_hash: str, name: str) -> Path:
        asked.append((url, known_hash))
        return file

    assert load_faces(fetch).source.startswith("downloaded from ndownloader.figshare.com, hash checked")
    assert asked == [(FACES.url, f"sha256:{FACES.checksum}")]


def test_digits_come_last_under_their_own_name_with_the_reasons(root: Path) -> None:
    def tampered(url: str, known_hash: str, name: str) -> Path:
        raise ValueError("SHA256 hash of downloaded file does not match")

    dataset = load_faces(tampered)
    assert dataset.name == "digits-upscaled"
    assert "8×8 enlarged to 25×25; a stand-in, because the files of olivetti are missing" in dataset.source
    assert "SHA256 hash of downloaded file does not match" in dataset.source
    train, _ = inputs(dataset)
    assert train.shape == (1438, 625)
    assert float(train.square().mean()) == pytest.approx(1, rel=1e-4)


def test_a_file_of_something_else_is_an_error_and_not_a_reason_for_another_set(file: Path) -> None:
    scipy.io.savemat(file, {"faces": np.zeros((4096, 399), dtype=np.uint8)})
    with pytest.raises(ValueError, match=r"is no Olivetti file: faces has shape \(4096, 399\), not \(4096, 400\)"):
        load_faces()
    scipy.io.savemat(file, {"places": np.zeros(3)})
    with pytest.raises(ValueError, match=r"is damaged or no Olivetti file \('faces'\): replace it, or remove it"):
        load_faces()
    for content in (b"no matrix", 50 * b"no matrix, but longer ", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or no Olivetti file"):
            load_faces()
