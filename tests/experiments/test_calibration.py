"""Calibration against scikit-learn and closed cases."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

from heatbath.experiments.calibration import calibration, entropy, separation


def drawn(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and labels that follow them."""
    g = torch.Generator().manual_seed(seed)
    p = torch.softmax(2 * torch.randn(n, 4, generator=g, dtype=torch.float64), -1)
    return p, torch.multinomial(p, 1, generator=g).squeeze(-1)


def test_bins_and_likelihood_are_those_of_scikit_learn():
    p, labels = drawn()
    found = calibration(p, labels, bins=10)
    confidence, chosen = p.max(-1)
    accuracy, mean = calibration_curve((chosen == labels).numpy(), confidence.numpy(), n_bins=10)
    np.testing.assert_allclose([b[0] for b in found.bins], mean, rtol=1e-12)
    np.testing.assert_allclose([b[1] for b in found.bins], accuracy, rtol=1e-12)
    assert sum(b[2] for b in found.bins) == 400
    assert found.nll == pytest.approx(log_loss(labels.numpy(), p.numpy()), rel=1e-12)


def test_calibrated_predictions_have_the_ece_of_chance():
    """Mean over 200 sets against the mean of the formula, to the 10 % its Gaussian bins leave; a distorted one is far off."""
    sets = [calibration(*drawn(seed=k), bins=10) for k in range(200)]
    ece, chance = np.array([s.ece for s in sets]), np.array([s.chance for s in sets])
    assert ece.mean() == pytest.approx(chance.mean(), rel=0.1)
    p, labels = drawn()
    sharp = calibration(torch.softmax(3 * p.log(), -1), labels)
    assert sharp.ece > 5 * sharp.chance


def test_certain_and_uniform_predictions_have_known_scores():
    labels = torch.tensor([0, 1, 2, 3])
    certain = calibration(torch.eye(4), labels)
    assert (certain.accuracy, certain.nll, certain.brier, certain.ece, certain.entropy) == (1.0, 0.0, 0.0, 0.0, 0.0)
    uniform = calibration(torch.full((4, 4), 0.25), labels)
    assert uniform.nll == pytest.approx(np.log(4)) == uniform.entropy
    assert uniform.brier == pytest.approx(0.75)
    assert entropy(torch.tensor([0.5, 0.5, 0.0])).item() == pytest.approx(np.log(2))


def test_separation_is_the_area_under_the_roc_curve():
    g = torch.Generator().manual_seed(0)
    inside, outside = torch.randint(0, 9, (50,), generator=g), torch.randint(3, 12, (40,), generator=g)
    truth = roc_auc_score([0] * 50 + [1] * 40, torch.cat((inside, outside)).numpy())
    assert separation(inside, outside) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(
    ("p", "labels", "message"),
    [
        (torch.eye(3), torch.zeros(2).long(), "labels"),
        (torch.zeros(0, 3), torch.zeros(0).long(), "N >= 1"),
        (torch.randn(2, 3), torch.zeros(2).long(), "apply a softmax"),
    ],
)
def test_what_is_no_prediction_is_refused(p, labels, message):
    with pytest.raises(ValueError, match=message):
        calibration(p, labels)
