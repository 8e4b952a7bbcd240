from __future__ import annotations

from importlib import import_module

import pytest
import torch

from heatbath.experiments.data import Tensors, curves
from heatbath.experiments.data.curves import PEN, POINTS, draw_curves

module = import_module("heatbath.experiments.data.curves")


def test_ink_beside_a_straight_stretch_falls_off_as_a_gaussian_of_its_distance() -> None:
    straight = torch.tensor([[[3.0, 10.3], [13.5, 10.3], [24.0, 10.3]]], dtype=torch.float64)
    image = draw_curves(straight)[0]
    distance = torch.arange(28, dtype=torch.float64) - 10.3
    middle = image[:, 8:20]  # 4 pixels or more from both ends: the missing ink is below erfc(5/√2) / 2
    truth = torch.exp(-(distance**2) / (2 * PEN**2)).unsqueeze(1).expand_as(middle)
    torch.testing.assert_close(middle, truth, atol=3e-7, rtol=0)


def test_ink_along_a_bent_curve_is_the_integral_over_it() -> None:
    """Against a sum over 20,000 chords, pixel by pixel."""
    points = torch.tensor([[4.0, 5.0], [23.0, 8.0], [9.0, 22.0]], dtype=torch.float64)
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64).unsqueeze(1)
    curve = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
    length = (curve[1:] - curve[:-1]).norm(dim=1)
    bend = float(2 * (points[0] - 2 * points[1] + points[2]).norm())  # |c″|, at least d|c′|/dt
    error = bend / (24 * POINTS**2 * PEN * (2 * torch.pi) ** 0.5)  # of the midpoint rule at an end: h²/24 · slope
    middles = (curve[1:] + curve[:-1]) / 2
    for row, column in ((5, 4), (9, 15), (14, 14), (20, 12), (26, 2)):
        squared = (middles - torch.tensor([column, row], dtype=torch.float64)).square().sum(1)
        ink = float((length * torch.exp(-squared / (2 * PEN**2))).sum() / (PEN * (2 * torch.pi) ** 0.5))
        assert float(draw_curves(points.unsqueeze(0))[0, row, column]) == pytest.approx(min(1.0, ink), abs=error)


def test_a_curve_that_lies_on_itself_is_no_brighter_than_white() -> None:
    doubled = torch.tensor([[[12.0, 12.0], [20.0, 12.0], [12.0, 12.0]]])
    assert float(draw_curves(doubled).max()) == 1.0


def test_the_same_images_are_made_each_time_inside_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRAIN", 200)
    monkeypatch.setattr(module, "TEST", 100)
    first, again = curves.load(), curves.load()
    assert isinstance(first.train, Tensors)
    assert isinstance(again.train, Tensors)
    images = first.train.tensors[0]
    assert (images.shape, len(first.test)) == ((200, 1, 28, 28), 100)
    assert torch.equal(images, again.train.tensors[0])
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]])
    assert float(border.max()) < 2 * 1e-3  # 3 pixels from every control point: exp(-3²/2σ²) = 9e-4, at most doubled at a bend
    assert first.source.startswith("made here, seed 0")
