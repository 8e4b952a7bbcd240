"""A small residual network (He et al. 2016, arXiv 1512.03385) with group instead of batch normalization.

    y = relu(x' + norm(conv(relu(norm(conv(x))))))        x' = x, or norm(conv₁ₓ₁(x)) where the shape changes

Group normalization (Wu & He 2018, arXiv 1803.08494) treats each image by itself, so the gradient of an example, of which the
Fisher matrix is made, does not depend on the rest of its batch, and training and measuring compute the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS_PER_GROUP = 8


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution, and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _convolution(inputs, outputs, 3, stride=stride),
            _norm(outputs),
            nn.ReLU(),
            _convolution(outputs, outputs, 3),
            _norm(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(_convolution(inputs, outputs, 1, stride=stride), _norm(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def residual_cnn(widths: Sequence[int] = (16, 32, 64), *, blocks: int = 1, classes: int = 10) -> nn.Sequential:
    """A residual network for small colour images `[B, 3, H, W]`; one block of each of three widths makes it eight layers deep.

    Args:
        widths: channels of each stage, multiples of 8; all but the first halve the image.
        blocks: of each stage.
        classes: logits.

    Raises:
        ValueError: no stage or no block, or a width that is no multiple of 8.
    """
    if not widths or blocks < 1 or any(width % CHANNELS_PER_GROUP for width in widths):
        raise ValueError(
            f"a residual network needs widths that are multiples of {CHANNELS_PER_GROUP} and at least one block a stage, got "
            f"{tuple(widths)} and {blocks}"
        )
    layers: list[nn.Module] = [_convolution(3, widths[0], 3), _norm(widths[0]), nn.ReLU()]
    for stage, (before, width) in enumerate(pairwise([widths[0], *widths])):
        for block in range(blocks):
            first = block == 0
            layers.append(ResidualBlock(before if first else width, width, stride=2 if first and stage > 0 else 1))
    head = nn.Linear(widths[-1], classes)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _convolution(inputs: int, outputs: int, size: int, *, stride: int = 1) -> nn.Conv2d:
    """Without a bias, which the normalization after it would take away; weights by He et al. 2015."""
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)
