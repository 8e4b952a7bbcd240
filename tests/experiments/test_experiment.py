from __future__ import annotations

import math

import pytest
import torch

from heatbath.experiments import Target
from heatbath.experiments.experiment import accuracy, gaussian_loss, reconstruction_error, reconstruction_loss, squared_error
from tests.experiments import tasks


def test_a_target_is_reached_at_its_value_from_either_side() -> None:
    assert Target("m", 0.9).reached(0.9)
    assert not Target("m", 0.9).reached(0.89)
    assert Target("m", 5.0, higher=False).reached(5.0)
    assert not Target("m", 5.0, higher=False).reached(5.1)
    assert not Target("m", 0.9).reached(math.nan)
    assert not Target("m", 5.0, higher=False).reached(math.nan)


def test_a_target_describes_itself() -> None:
    assert Target("test accuracy", 0.97).describe() == "test accuracy ≥ 0.97"
    assert Target("error", 5.0, higher=False).describe() == "error ≤ 5"


def test_a_target_must_judge_a_metric() -> None:
    with pytest.raises(ValueError, match="the target judges 'speed', but the metrics are test accuracy, test loss"):
        tasks.experiment(target=Target("speed", 1.0))


def test_accuracy_counts_labelled_examples_only() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 9.0]])
    assert float(accuracy(logits, torch.tensor([0, 1, 1, -1]))) == pytest.approx(2 / 3)


def test_reconstruction_is_measured_per_image(generator: torch.Generator) -> None:
    logits = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    target = torch.rand(7, 12, generator=generator, dtype=torch.float64)
    p = 1 / (1 + (-logits).exp())
    entropy = -(target * p.log() + (1 - target) * (1 - p).log()).sum(1)
    torch.testing.assert_close(reconstruction_loss(logits, target), entropy.mean())
    torch.testing.assert_close(reconstruction_error(logits, target), (p - target).square().sum(1).mean())


def test_the_gaussian_loss_is_the_negative_log_likelihood_of_unit_variance_but_for_a_constant(
    generator: torch.Generator,
) -> None:
    output, target = (torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    constant = 7 / 2 * math.log(2 * math.pi)
    truth = -torch.distributions.Normal(output, 1.0).log_prob(target).sum() / 4
    torch.testing.assert_close(gaussian_loss(output, target) + constant, truth)
    torch.testing.assert_close(squared_error(output, target), 2 * gaussian_loss(output, target))
