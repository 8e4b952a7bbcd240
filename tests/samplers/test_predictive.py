"""Predictions under Gaussian outputs, against quadrature."""

import math

import pytest
import torch

from heatbath.samplers import OutputPosterior


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("uncertain", [0, 1])
def test_probit_probabilities_lie_within_twice_the_distance_of_the_probit_from_the_logistic(uncertain: int):
    """E σ(z) for z ~ N(m, s): with δ = max |σ(x) − Φ(x√(π/8))|, replacing σ by Φ inside the mean errs by at most δ, the mean of
    Φ is Φ(m√(π/8) / √(1 + πs/8)) exactly, and going back to σ errs by at most δ again."""
    m, s = (t.flatten() for t in torch.meshgrid(normal(20, seed=3) * 4, torch.logspace(-2, 2, 9).double(), indexing="ij"))
    mean, variance = torch.zeros(len(m), 2).double(), torch.zeros(len(m), 2).double()
    mean[:, uncertain], variance[:, uncertain] = m, s
    probabilities = OutputPosterior(mean, torch.diag_embed(variance)).probit()
    x = torch.linspace(-10, 10, 20_001).double()
    delta = float((x.sigmoid() - torch.special.ndtr(x * math.sqrt(math.pi / 8))).abs().max())
    weights = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])  # the trapezoidal rule: exact to rounding
    truth = (m[:, None] + s.sqrt()[:, None] * x).sigmoid() @ weights
    assert float((probabilities[:, uncertain] - truth).abs().max()) < 2 * delta < 0.04
    torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(m))
