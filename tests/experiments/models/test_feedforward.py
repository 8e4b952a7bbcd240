from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from heatbath.experiments.models import autoencoder, mlp, small_cnn


def test_an_mlp_has_the_sizes_it_is_given() -> None:
    linear = [layer for layer in mlp((64, 20, 30, 10)) if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(64, 20), (20, 30), (30, 10)]
    assert mlp((64, 10))(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_an_mlp_of_one_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least an input and an output size, got \(64,\)"):
        mlp((64,))


@pytest.mark.parametrize("size", [8, 9, 28])
def test_the_cnn_fits_its_image(size: int) -> None:
    assert small_cnn(size, 10)(torch.zeros(3, 1, size, size)).shape == (3, 10)


def test_the_autoencoder_is_the_k_fac_papers() -> None:
    model = autoencoder()
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    sizes = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(pairwise(sizes))
    code = list(model).index(linear[3])
    assert isinstance(model[code + 1], nn.Linear)  # the code is linear
    assert isinstance(model[-1], nn.Linear)  # logits
    assert sum(isinstance(layer, nn.Tanh) for layer in model) == 6


def test_weights_start_with_the_variance_of_their_rule() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mlp((200, 300, 100))
    hidden, last = model[1], model[3]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(last, nn.Linear)
    # the variance of n samples has a relative standard error of about sqrt(2/n); 5 of them
    assert float(hidden.weight.detach().var()) == pytest.approx(2 / 200, rel=5 * (2 / 60_000) ** 0.5)
    assert float(last.weight.detach().var()) == pytest.approx(2 / 400, rel=5 * (2 / 30_000) ** 0.5)
    assert not hidden.bias.any()
