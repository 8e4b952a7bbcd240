"""Networks without branches: a multilayer perceptron, a small convolutional network, a deep autoencoder.

Weights start from Xavier (Glorot & Bengio 2010) for tanh and sigmoid and from He et al. 2015 for ReLU, biases from zero. Both
draw from torch's global generator, which the runner seeds for the length of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

AUTOENCODER_SIZES = (784, 1000, 500, 250, 30)  # Hinton & Salakhutdinov 2006, and the K-FAC paper's MNIST network


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A multilayer perceptron on flattened inputs.

    Args:
        sizes: of the layers from input to output; at least two.
        activation: class of the nonlinearity between them.

    Raises:
        ValueError: fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"an MLP needs at least an input and an output size, got {tuple(sizes)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        if i > 0:
            layers.append(activation())
        layers.append(nn.Linear(inputs, outputs))
    return _initialized(nn.Sequential(*layers), "relu" if activation is nn.ReLU else "tanh")


def small_cnn(size: int, classes: int, channels: tuple[int, int] = (16, 32)) -> nn.Sequential:
    """Two 3×3 convolutions, each halving the image, then one hidden layer: images `[B, 1, size, size]` to `[B, classes]`."""
    first, second = channels
    side = (size + 3) // 4
    network = nn.Sequential(
        nn.Conv2d(1, first, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * side * side, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
    return _initialized(network, "relu")


def autoencoder(sizes: Sequence[int] = AUTOENCODER_SIZES) -> nn.Sequential:
    """The deep autoencoder of Martens & Grosse 2015 (arXiv 1503.05671): tanh units, a linear code, logits out.

    `sizes` is the encoder; the decoder is its mirror. The sigmoid of the output is inside the loss (binary cross-entropy
    with logits), for the sake of rounding.
    """
    mirrored = [*sizes, *reversed(sizes[:-1])]
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(mirrored)):
        layers.append(nn.Linear(inputs, outputs))
        if i + 1 not in (len(sizes) - 1, len(mirrored) - 1):
            layers.append(nn.Tanh())
    return _initialized(nn.Sequential(*layers), "tanh")


def _initialized(network: nn.Sequential, nonlinearity: str) -> nn.Sequential:
    layers = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in layers:
        if nonlinearity == "relu" and layer is not layers[-1]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network
