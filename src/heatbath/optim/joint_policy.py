"""The choices of a joint natural-gradient optimizer that are neither solver nor learning rate, and what its model must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heatbath.curvature import JacobianRoot, Reduction
from heatbath.optim.arguments import as_reduction, check_kind
from heatbath.optim.damping import LevenbergMarquardt
from heatbath.optim.trust import MatchedRMS, Trust, Unclipped


def whole_output(outputs: Tensor) -> Tensor:
    """What the model returns, where that is the tensor given to `observe`."""
    return outputs


@dataclass(frozen=True)
class JointPolicy:
    """Choices of `NGD` and `TNGD` that are neither solver nor learning rate.

    Args:
        trust: shortens steps; has no effect on Adam's.
        adapt: adapts λ from the loss after a step, `step(evaluate=…)`; None: λ stays as it is.
        reduction: how the loss joins its terms, or its name ("rows"); None: a mean over all that count.
        output: from what the model returns to the tensor given to `observe`, such as `lambda out: out.logits`.

    Raises:
        TypeError: a value of another kind, or a class in the place of its instance.
        ValueError: an unknown reduction.
    """

    trust: Trust = field(default_factory=Unclipped)
    adapt: LevenbergMarquardt | None = None
    reduction: Reduction | None = None
    output: Callable[[Any], Tensor] = whole_output

    def __post_init__(self) -> None:
        object.__setattr__(self, "reduction", as_reduction(self.reduction))
        rule = "a rule such as Unclipped() or KLClip(kappa=0.01)"
        check_kind("trust", self.trust, None, rule)
        if isinstance(self.trust, MatchedRMS):
            raise TypeError(f"MatchedRMS is a step rule of KFAC: write {rule}")
        if self.adapt is not None:
            check_kind("adapt", self.adapt, LevenbergMarquardt, "LevenbergMarquardt(), or None")
        check_kind("output", self.output, None, "a function of what the model returns")


def check_repeats(root: JacobianRoot) -> None:
    """Refuse a model that is not a function of its parameters and inputs; waits for the device, at the first step only.

    Raises:
        ValueError: other outputs than those observed.
    """
    for again, each in zip(root.outputs(), root.passes, strict=True):
        seen = each.seen.outputs
        tolerance = 1e-3 if seen.dtype in (torch.float32, torch.float64) else 5e-2
        if again.shape != seen.shape or not bool((again - seen).norm() <= tolerance * (1 + seen.norm())):
            raise ValueError(
                "the model gives other outputs when it is run again on the same inputs: put Dropout and other random layers "
                "into eval mode, do not change inputs in place, and if observe was given a part of what the model returns "
                "pass JointPolicy(output=…) that picks the same part"
            )
