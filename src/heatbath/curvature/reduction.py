"""How a loss joins its terms, and how shared positions enter the factors.

The number of terms is read from the model's output (`heatbath.curvature.capture.terms`), so layers may see
other numbers of rows. In a graph network, whose rows are nodes, it is the number of graphs where
the model pools nodes itself: then `EXAMPLES` and *expand* are right, and damping is in units of the
curvature of the mean over graphs. Where nodes are pooled or masked outside the model, the nodes of
its output are counted, which are more than the terms of the loss. The output factor then comes out
too large by their ratio, and steps too short rather than too long; `opt.observe(outputs,
mask=mask)` with a Fisher that has a likelihood counts what a mask leaves.
"""

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
