"""What one step has seen of its outputs, from `opt.observe` and from the passes themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from heatbath.curvature import Capture, Reduction
from heatbath.optim.policy import Policy
from heatbath.optim.quadratic import Linearization, linearize


@dataclass(eq=False)
class Seen:
    """Observations since the last step.

    Args:
        terms: D of observed outputs, 0-d, or None where nothing was observed.
        linear: linearizations at the observed outputs, for the quadratic model.
    """

    terms: Tensor | None = None
    linear: list[Linearization] = field(default_factory=list)

    def look(
        self,
        outputs: Tensor,
        targets: Tensor | None,
        mask: Tensor | None,
        *,
        policy: Policy,
        capture: Capture,
        generator: torch.Generator | None,
    ) -> None:
        """Pull back what the policy's Fisher and quadratic model want to know.

        Args:
            outputs: with their graph.
            targets: the loss's targets, or None.
            mask: where the loss counts, or None.
            policy: says what is wanted.
            capture: of the model; nothing is pulled back for factors where it is switched off.
            generator: of sampled Fishers.
        """
        parameters = [list(site.parameters().values()) for site in capture.sites]
        likelihood = policy.fisher.likelihood
        if capture.enabled and likelihood is not None:
            seen = likelihood.observe(outputs, targets, mask, policy.reduction)
            probes = [p for own in parameters for p in (own if capture.derived else [min(own, key=Tensor.numel)])]
            capture.pull_back(outputs, policy.fisher.vectors(seen, generator), probes)
            self.terms = seen.terms if self.terms is None else self.terms + seen.terms
        if policy.quadratic is not None:
            seen = policy.quadratic.likelihood.observe(outputs, targets, mask, policy.reduction)
            self.linear.append(linearize(outputs, seen, [p for own in parameters for p in own]))


def passed_terms(capture: Capture, reduction: Reduction | None) -> int | None:
    """D of the backward passes since the last step, by the model's outputs; None: unknown."""
    rows = reduction is Reduction.ROWS
    return sum(positions if rows else examples for examples, positions in capture.terms.values()) or None
