"""Corrected eigenvalues, exact and sampled Fishers: laws 3, 13 and 14 through the library's own `observe`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Bernoulli, Categorical, ExactFisher, Gaussian, SampledFisher
from heatbath.optim import KFAC
from heatbath.solvers import Eigen
from tests.curvature.truth import binary_cross_entropy, cross_entropy, error, exact, factors, fill, ggn_block, squared_error
from tests.laws import fresh, noise
from tests.zoo import PLAIN

ROUNDING = 1e-13
both_bias = pytest.mark.parametrize("bias", [True, False], ids=["joint bias", "no bias"])


@both_bias
def test_law_13_corrected_eigenvalues_keep_the_trace_and_come_closer(bias):
    """tr(EKFAC) = tr(F) and ‖EKFAC − F‖ ≤ ‖K-FAC − F‖ for F = Σ ∇_n ∇_nᵀ/N, the empirical Fisher block, of every layer."""
    model, x = fill(nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Tanh(), nn.Linear(4, 3, bias=bias))), noise(8, 3)
    target = torch.arange(8) % 3
    policy = replace(PLAIN, corrected=True)
    optimizer = KFAC(model, lr=0.0, momentum=0.0, solver=Eigen(), policy=policy)
    for _ in range(2):  # the first finds the basis, the second the moments along it
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    for stack in optimizer.stacks:
        assert stack.corrected is not None
        for i, place in enumerate(stack.places):
            layer = place.site.module
            truth = _empirical_block(model, layer, x, target)
            kfac, corrected = stack.mean.dense()[i], stack.corrected.dense()[i]
            assert corrected.trace().item() == pytest.approx(truth.trace().item(), rel=1e-12)
            assert error(corrected, truth) < error(kfac, truth)
            assert abs(kfac.trace() / truth.trace() - 1) > 1e-3


def _empirical_block(model: nn.Module, layer: nn.Linear, x: Tensor, target: Tensor) -> Tensor:
    """Σ ∇_n ∇_nᵀ/N of a layer's [W b], one backward pass for each example."""
    gradients = []
    for row, wanted in zip(x, target, strict=True):
        parameters = list(layer.parameters())
        found = torch.autograd.grad(F.cross_entropy(model(row[None]), wanted[None]), parameters)
        gradients.append(torch.cat([g.reshape(len(layer.weight), -1) for g in found], 1).flatten())
    rows = torch.stack(gradients)
    return rows.mT @ rows / len(x)


LIKELIHOODS = {
    "Gaussian": (Gaussian(), squared_error),
    "Categorical": (Categorical(), cross_entropy),
    "Bernoulli": (Bernoulli(), binary_cross_entropy),
}


def _observed(model: nn.Module, x: Tensor, fisher, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Factors by `observe`, in the library's own way."""
    optimizer = KFAC(model, lr=0.0, damping=1.0, policy=replace(PLAIN, fisher=fisher), generator=generator)
    optimizer.observe(model(x)).square().mean().backward()
    found = {name: block.dense()[0] for name, block in factors(optimizer).items()}
    optimizer.capture.detach()
    return found


@pytest.mark.parametrize("likelihood,columns", LIKELIHOODS.values(), ids=LIKELIHOODS.keys())
def test_the_exact_fisher_is_the_gauss_newton_block_of_one_example(likelihood, columns):
    """Laws 3 and 16 through `observe`; for several examples the factors are those of the passes in `truth.py`."""
    model, x = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))), noise(6, 3)
    for layer, block in _observed(model, x[:1], ExactFisher(likelihood)).items():
        assert error(block, ggn_block(model, layer, x[:1], columns)[0]) < ROUNDING
    slow = exact(model, x, columns)
    for layer, block in _observed(model, x, ExactFisher(likelihood)).items():
        assert error(block, slow[layer].dense()[0]) < ROUNDING


@pytest.mark.parametrize("likelihood,columns", LIKELIHOODS.values(), ids=LIKELIHOODS.keys())
def test_law_14_the_sampled_fisher_is_the_exact_one_on_average(likelihood, columns):
    """z-scores of the mean of 40 captures of 25 samples, with the deviation of the 40: |z| < 4.5 in each entry."""
    model, x = fill(nn.Linear(3, 2)), noise(6, 3)
    truth = exact(model, x, columns)[""].dense()[0]
    draws = torch.stack([_observed(model, x, SampledFisher(likelihood, samples=25), fresh(seed))[""] for seed in range(40)])
    deviation = draws.std(0) / 40**0.5
    z = (draws.mean(0) - truth).abs() / deviation
    assert deviation.min() > 0
    assert z.max() < 4.5
    assert z.square().mean().sqrt() > 0.3
