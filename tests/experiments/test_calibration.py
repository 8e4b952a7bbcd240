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


def mean_distance(shares: np.ndarray) -> float:
    """E|Σ(y_i − c_i)| of independent y_i that are 1 with probability c_i: exact, by their number's distribution."""
    law = np.ones(1)
    for c in shares:
        law = np.append(law, 0.0) * (1 - c) + np.append(0.0, law) * c
    return float(law @ np.abs(np.arange(len(law)) - shares.sum()))


def bins_of(p: torch.Tensor) -> list[np.ndarray]:
    """Confidences, bin by bin of ten."""
    confidence = p.amax(-1).numpy()
    place = np.minimum(np.ceil(confidence * 10).astype(int), 10)
    return [confidence[place == k] for k in np.unique(place)]


def test_ece_of_calibrated_predictions_is_the_mean_distance_of_coins():
    """z-score over 100 sets: of ECE less its exact expectation at those confidences, whose mean is 0."""
    excess = []
    for k in range(100):
        p, labels = drawn(seed=k)
        excess.append(calibration(p, labels).ece - sum(map(mean_distance, bins_of(p))) / len(p))
    assert abs(np.mean(excess)) < 4 * np.std(excess, ddof=1) / 100**0.5


def test_chance_is_the_exact_mean_distance_up_to_the_error_of_gaussian_bins():
    """S of a bin and a Gaussian of its σ lie at most 2 E|S* − S| apart in L1, S* of zero bias (Goldstein 2007, doi
    10.1214/009117906000001123), and so do their mean distances from 0. S* has one coin of a bin, chosen by its variance,
    uniform on [−c, 1 − c]; of all couplings the nearest leaves E|S* − S| = Σ c(1 − c) (c² + (1 − c)²)/2σ².
    """
    p, labels = drawn(n=20_000)
    bins = bins_of(p)
    exact = sum(map(mean_distance, bins)) / len(p)
    bound = sum((c * (1 - c) * (c**2 + (1 - c) ** 2)).sum() / (c * (1 - c)).sum() for c in bins) / len(p)
    assert bound < 0.1 * exact  # so that a wrong constant in the formula shows
    assert abs(calibration(p, labels).chance - exact) <= bound


def test_predictions_that_are_too_sure_are_far_from_chance():
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
