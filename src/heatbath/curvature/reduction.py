"""How a loss joins its terms, and how shared positions enter the factors."""

from __future__ import annotations

from enum import Enum


class Reduction(Enum):
    """How the loss joins its terms; the value says it in words."""

    EXAMPLES = "mean over the examples of a batch, positions summed within an example"
    ROWS = "mean over examples and positions, as cross-entropy over all tokens of a batch"
    SUM = "sum over the examples of a batch"


class Sharing(Enum):
    """How positions that share weights enter the factors; the value says it in words."""

    EXPAND = "each position is an example of its own"
    REDUCE = "positions are averaged (inputs) and summed (gradients) first, exact if the model mean-pools them"
