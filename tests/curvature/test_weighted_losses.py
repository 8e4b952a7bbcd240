"""Weights of the loss in observed Fishers. Judge: the Hessian of PyTorch's own loss in the bias of one linear layer.

For outputs z = W x + b the Hessian in b is (1/D) Σ_n m_n H_n, with weights, masks, smoothing and normalization, for any number
of examples; and that is B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian

from heatbath.curvature import Bernoulli, Categorical, ExactFisher, Fisher, Gaussian, Likelihood, Poisson, SampledFisher
from heatbath.optim import KFAC
from tests.curvature.truth import error, factors, fill
from tests.laws import fresh, noise
from tests.zoo import PLAIN

N, C = 7, 3
CLASSES = torch.tensor([0, 2, -100, 1, 1, 0, -100])
SOFT = torch.rand(N, C, generator=fresh(5), dtype=torch.float64).softmax(1)
BITS = torch.randint(2, (N, C), generator=fresh(6)).double()
HOLES = torch.where(noise(N, C, seed=7) > 0.8, torch.nan, BITS)
WEIGHT = torch.tensor([0.5, 3.0, 1.2], dtype=torch.float64)
MASK = torch.tensor([True, False, True, True, False, True, True])
Loss = Callable[[Tensor], Tensor]


def weighted_classes(z: Tensor, **options) -> Tensor:
    return F.cross_entropy(z, CLASSES, weight=WEIGHT, **options)


def weighted_bits(z: Tensor) -> Tensor:
    seen = ~HOLES.isnan()
    terms = F.binary_cross_entropy_with_logits(z, HOLES.nan_to_num(), pos_weight=WEIGHT, reduction="none")
    return (terms * seen).sum() / seen.sum()


CASES: dict[str, tuple[Likelihood, Loss, Tensor | None, Tensor | None]] = {  # likelihood, loss, targets, mask
    "class weights": (Categorical(weight=WEIGHT), weighted_classes, CLASSES, None),
    "smoothed": (
        Categorical(weight=WEIGHT, label_smoothing=0.3),
        lambda z: weighted_classes(z, label_smoothing=0.3),
        CLASSES,
        None,
    ),
    "probabilities": (
        Categorical(weight=WEIGHT, label_smoothing=0.3),
        lambda z: F.cross_entropy(z, SOFT, weight=WEIGHT, label_smoothing=0.3),
        SOFT,
        None,
    ),
    "masked classes": (Categorical(), lambda z: F.cross_entropy(z[MASK], CLASSES.clamp_min(0)[MASK]), None, MASK),
    "weighted bits with holes": (Bernoulli(pos_weight=WEIGHT), weighted_bits, HOLES, None),
    "variance": (Gaussian(1 / 0.3**2), lambda z: 0.5 * ((z - BITS) / 0.3).square().mean(), None, None),
    "counts": (Poisson(), lambda z: F.poisson_nll_loss(z, BITS), None, None),
}
every_case = pytest.mark.parametrize("likelihood,loss,targets,mask", CASES.values(), ids=CASES.keys())


def optimizer_of(model: nn.Module, fisher: Fisher) -> KFAC:
    return KFAC(model, lr=0.0, damping=1.0, momentum=0.0, policy=replace(PLAIN, fisher=fisher), generator=fresh(3))


def truth(model: nn.Linear, x: Tensor, loss: Loss) -> Tensor:
    return hessian(lambda b: loss(functional_call(model, {"bias": b}, (x,))))(model.bias.detach())


@every_case
def test_the_exact_output_factor_is_the_hessian_in_the_bias(likelihood, loss, targets, mask):
    model, x = fill(nn.Linear(4, C)), noise(N, 4)
    optimizer = optimizer_of(model, ExactFisher(likelihood))
    loss(optimizer.observe(model(x), targets, mask=mask)).backward()
    assert error(factors(optimizer)[""].left.dense()[0], truth(model, x, loss)) < 1e-13


@every_case
def test_law_14_the_sampled_output_factor_is_the_hessian_in_the_bias_in_expectation(likelihood, loss, targets, mask):
    """300 captures of two samples each: every entry of the mean within 5 of its own standard errors."""
    model, x = fill(nn.Linear(4, C)), noise(N, 4)
    optimizer = optimizer_of(model, SampledFisher(likelihood, samples=2))
    (stack,) = optimizer.stacks
    draws = []
    for _ in range(300):
        optimizer.observe(model(x), targets, mask=mask)
        draws.append(stack.sums.collect(None, terms=optimizer._seen.terms)[0].left.dense()[0])
        optimizer._forget()
    samples, wanted = torch.stack(draws), truth(model, x, loss)
    z = (samples.mean(0) - wanted) / (samples.std(0) / 300**0.5).clamp_min(1e-15)
    assert z.abs().max() < 5
    assert (samples.std(0) / 300**0.5).max() < 0.2 * wanted.abs().max()
