"""Handwritten digits that ship with scikit-learn: 1,797 grey images of 8×8, values 0 to 16.

They are the test half of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, 1998,
https://archive.ics.uci.edu/dataset/80). Every fifth image of all, sorted by digit, is kept for testing: 1,438 train, 359 test.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heatbath.experiments.data.base import Dataset, Source, Tensors

PACKAGED = "ships with scikit-learn"


def load_digits() -> Dataset:
    """Images `[N, 1, 8, 8]` in [0, 1] and labels int64 `[N]`."""
    images, labels = _images()
    return _split("digits", PACKAGED, images, labels)


def load_upscaled(size: int, *, why: str) -> Dataset:
    """The same images brought to `[N, 1, size, size]` by bilinear interpolation: a stand-in, and named as one.

    Args:
        size: height and width in pixels.
        why: why the set that was asked for is not used; goes into the record.
    """
    images, labels = _images()
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    source = f"{PACKAGED}, 8×8 enlarged to {size}×{size}; a stand-in, because {why}"
    return _split("digits-upscaled", source, images, labels)


def _images() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits as packaged

    data = packaged()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(data.target, dtype=torch.int64)


def _split(name: str, source: str, images: Tensor, labels: Tensor) -> Dataset:
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[labels.argsort(stable=True)[4::5]] = True
    return Dataset(name, source, Tensors((images[~test], labels[~test])), Tensors((images[test], labels[test])))


digits = Source("digits", "1,797 handwritten digits of 8×8 that ship with scikit-learn", load_digits)
