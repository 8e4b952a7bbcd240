"""Transitions of the modes: two half steps are one, and noise has its covariance."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines.walk import psd_root, step
from tests.machines.truth import spd

RATES = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"inertia": 0.7}, {"capacitive": True}, {"capacitive": True, "inertia": 0.7}])
def test_two_half_steps_are_one(options: dict) -> None:
    whole, half = (step(RATES, t, noise=0.1, **options) for t in (1.0, 0.5))
    product = torch.einsum("...abn,...bcn->...acn", half.carry, half.carry)
    torch.testing.assert_close(product, whole.carry)
    torch.testing.assert_close(half.gain + (half.carry * half.gain.unsqueeze(-3)).sum(-2), whole.gain)


def test_mixed_noise_has_the_colour_of_its_sources(generator: torch.Generator) -> None:
    colour, time, count = spd(3, 5.0), 0.8, 50_000
    mixed = step(RATES, time, noise=0.1, colour=colour)
    noise = mixed.push(count, None, generator)[:, 0, :]
    total = RATES[:, None] + RATES
    expected = 0.2 * colour * (1 - torch.exp(-total * time)) / total
    z = (noise.mT @ noise / count - expected) / (
        (expected**2 + torch.outer(expected.diagonal(), expected.diagonal())) / count
    ).sqrt()
    assert float(z.abs().max()) < 4.5


def test_quiet_undriven_steps_push_nothing() -> None:
    assert step(RATES, 1.0, noise=0.0).push(4, None, None) is None


def test_psd_root_takes_singular_matrices() -> None:
    singular = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    root = psd_root(singular)
    torch.testing.assert_close(root @ root.mT, singular)
