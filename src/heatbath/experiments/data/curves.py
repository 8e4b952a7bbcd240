"""CURVES: 28×28 images of smooth curves through the plane, each made from six numbers.

Hinton & Salakhutdinov 2006 (doi 10.1126/science.1127647, supporting text) drew each image from three random points in two
dimensions, 20,000 for training and 10,000 for testing; their code and the sets of the Hessian-free and K-FAC papers use other
drawing rules, so errors compare within this set only. Here the points p₀, p₁, p₂ are the control points of a quadratic curve

    c(t) = (1−t)² p₀ + 2t(1−t) p₁ + t² p₂,        uniform in the square [3, 24]²

and a pixel at x has the ink of a soft pen of radius σ = 0.8 pixels, led along the curve at constant pressure,

    I(x) = min(1, 1/(σ√(2π)) ∫ exp(−|x − c(t)|²/2σ²) |c′(t)| dt),

which is exp(−d²/2σ²) at distance d from a straight stretch. The integral is a midpoint sum over 96 points, at most about half a
pixel apart. Since the Gaussian is a product of one in x and one in y, a batch of images is one batched matrix product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heatbath.experiments.data.base import Dataset, Source, Tensors

SIZE = 28
PEN = 0.8  # σ in pixels
BOX = (3.0, 24.0)  # pixels between which control points lie: three pixels or more from the border
POINTS = 96  # of the sum along a curve
TRAIN, TEST = 20_000, 10_000
SEED = 0
CHUNK = 5_000  # images drawn at once: bounds memory


def load_curves() -> Dataset:
    """Images `[N, 1, 28, 28]` in [0, 1]; the same ones every time."""
    generator = torch.Generator().manual_seed(SEED)
    low, high = BOX
    points = low + (high - low) * torch.rand(TRAIN + TEST, 3, 2, generator=generator)
    images = torch.cat([draw_curves(part) for part in points.split(CHUNK)]).unsqueeze(1)
    source = f"made here, seed {SEED}: quadratic curves of three random points each, after Hinton & Salakhutdinov 2006"
    return Dataset("curves", source, Tensors((images[:TRAIN],)), Tensors((images[TRAIN:],)))


def draw_curves(points: Tensor) -> Tensor:
    """Images of curves.

    Args:
        points: control points, x then y, in pixels from the centre of the upper left one, `[N, 3, 2]`.

    Returns:
        Intensities in [0, 1], rows downwards, `[N, 28, 28]`.
    """
    t = ((torch.arange(POINTS, dtype=points.dtype) + 0.5) / POINTS).unsqueeze(-1)
    first, middle, last = (point.unsqueeze(1) for point in points.unbind(1))
    curve = (1 - t) ** 2 * first + 2 * t * (1 - t) * middle + t**2 * last  # [N, T, 2]
    speed = (2 * (1 - t) * (middle - first) + 2 * t * (last - middle)).norm(dim=-1, keepdim=True)
    pixels = torch.arange(SIZE, dtype=points.dtype)
    across, down = (torch.exp(-((curve[..., i, None] - pixels) ** 2) / (2 * PEN**2)) for i in (0, 1))  # [N, T, 28]
    ink = down.transpose(1, 2) @ (speed * across) / (POINTS * PEN * math.sqrt(2 * math.pi))
    return ink.clamp(max=1.0)


curves = Source("curves", "28×28 drawings of smooth curves, made here by a fixed seed", load_curves)
