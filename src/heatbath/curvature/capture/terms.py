"""How many terms a loss has, read off the shapes of a model's outputs and inputs.

Examples are the first dimension (the second, sequence-first). Positions are what is left beside the
features, and which dimension holds those is not always in the shape: `[B, T, C]` and `[B, C, T]`
are both usual, and so are `[B, C, H, W]` and `[B, H, W, C]`. So they are found by evidence, in
order: the likelihood says it; indices `[B, T]` went in; a linear layer or convolution made as many
numbers, or the last convolution the channels of an image. Where nothing tells, positions are unknown, which matters
for `Reduction.ROWS` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from heatbath.curvature.likelihoods import Likelihood

Shape = tuple[int, int]  # examples and positions of all of them; 0 positions: unknown


@dataclass(frozen=True)
class Head:
    """What a linear layer or convolution put out.

    Args:
        numel: numbers in all.
        features: how many of them a position has.
        channels_first: whether they come second.
    """

    numel: int
    features: int
    channels_first: bool


@dataclass(frozen=True)
class Inputs:
    """What a model was called with first.

    Args:
        shape: of the tensor.
        are_indices: whether it holds integers, such as tokens.
    """

    shape: tuple[int, ...]
    are_indices: bool

    @staticmethod
    def from_tensor(tensor: Tensor) -> Inputs:
        """The shape of a tensor and whether it holds indices."""
        return Inputs(tuple(tensor.shape), not tensor.is_floating_point())

    def terms(self, batch_dim: int, heads: Sequence[Head]) -> Shape:
        """Examples and positions of a model that returns its loss alone."""
        sequence = len(self.shape) == (2 if self.are_indices else 3)
        examples = self.shape[batch_dim if sequence else 0]
        if self.are_indices:
            return examples, math.prod(self.shape)
        if len(self.shape) < 3:
            return examples, self.shape[0]
        return examples, heads[-1].numel // max(heads[-1].features, 1) if heads else 0


def output_terms(
    outputs: Tensor, batch_dim: int, likelihood: Likelihood | None, inputs: Inputs | None, heads: Sequence[Head]
) -> Shape:
    """Examples and positions of a model's outputs, as the module says.

    Args:
        outputs: or their gradient, at least one-dimensional.
        batch_dim: 1 for outputs `[T, B, C]`.
        likelihood: says which dimension holds features; None: nobody does.
        inputs: of the model; None: unknown.
        heads: of this pass, in order.
    """
    shape = tuple(outputs.shape)
    examples = shape[batch_dim if len(shape) == 3 else 0]
    if not outputs.is_floating_point() or len(shape) == 1:
        return examples, outputs.numel()
    if likelihood is not None:
        features = shape[likelihood.feature_dimension(outputs)]
    elif len(shape) == 2 or (batch_dim and len(shape) == 3):
        features = shape[-1]
    else:
        features = _features(shape, inputs, heads)
    return examples, outputs.numel() // features if features else 0


def _features(shape: tuple[int, ...], inputs: Inputs | None, heads: Sequence[Head]) -> int:
    """The size of the second dimension or of the last, whichever holds features; 0 if nothing tells."""
    second, last = shape[1], shape[-1]
    if second == last:
        return last
    if inputs is not None and inputs.are_indices:
        if inputs.shape == shape[:-1]:
            return last
        if inputs.shape == (shape[0], *shape[2:]):
            return second
    for head in reversed(heads):
        if head.numel == math.prod(shape) and head.features in (second, last):
            return head.features
    is_image = bool(heads) and heads[-1].channels_first and len(shape) > 3
    return second if is_image and heads[-1].features == second else 0
