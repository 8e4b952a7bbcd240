"""What one step has seen of its outputs, from `opt.observe` and from the passes themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from heatbath.curvature import Capture, Fisher, Reduction
from heatbath.optim.policy import Policy
from heatbath.optim.quadratic import Linearization, linearize
from heatbath.optim.stacks import Stack
from heatbath.optim.tally import Pass


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
    ) -> dict[Pass, int]:
        """Pull back what the policy's Fisher and quadratic model want to know.

        Args:
            outputs: with their graph.
            targets: the loss's targets, or None.
            mask: where the loss counts, or None.
            policy: says what is wanted.
            capture: of the model; nothing is pulled back for factors where it is switched off.
            generator: of sampled Fishers.

        Returns:
            Passes through the model that this took.

        Raises:
            ValueError: the model is checkpointed in a way that allows no pulling back.
        """
        passes = {}
        with _checkpoints_explained():
            if policy.batch_dim and outputs.ndim > 2:
                outputs = outputs.transpose(0, 1)
                targets, mask = (None if x is None else x.transpose(0, 1) for x in (targets, mask))
            parameters = [list(site.parameters().values()) for site in capture.sites]
            likelihood = policy.fisher.likelihood
            if capture.enabled and likelihood is not None:
                seen = likelihood.observe(outputs, targets, mask, policy.reduction)
                if policy.fisher.observes:
                    probes = [p for own in parameters for p in (own if capture.derived else [min(own, key=Tensor.numel)])]
                    passes[Pass.PULL] = capture.pull_back(outputs, policy.fisher.vectors(seen, generator), probes)
                self.terms = seen.terms if self.terms is None else self.terms + seen.terms
            if policy.quadratic is not None:
                seen = policy.quadratic.likelihood.observe(outputs, targets, mask, policy.reduction)
                self.linear.append(linearize(outputs, seen, [p for own in parameters for p in own]))
                passes[Pass.LINEARIZE] = 1
        return passes


@contextmanager
def _checkpoints_explained() -> Iterator[None]:
    """Torch's error about reentrant checkpoints, in the words of the caller."""
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ValueError(
            "observe cannot pull vectors back through reentrant checkpoints, which allow no gradient but that of the loss: "
            "use checkpoint(..., use_reentrant=False), or the empirical Fisher and no quadratic model"
        ) from error


def passed_terms(capture: Capture, reduction: Reduction | None) -> int | None:
    """D of the backward passes since the last step, by the model's outputs; None: unknown.

    Raises:
        ValueError: positions are to be counted, and shapes do not tell them from features.
    """
    rows = reduction is Reduction.ROWS
    if rows and not all(positions for examples, positions in capture.terms.values() if examples):
        raise ValueError(
            "Reduction.ROWS counts positions, and the model's outputs could have their classes second or last: say which, "
            "Policy(fisher=EmpiricalFisher(Categorical(class_dim=1))) for [B, C, ...] or class_dim=-1 for [B, ..., C]; "
            "for other losses Gaussian() stands for features that come last"
        )
    return sum(positions if rows else examples for examples, positions in capture.terms.values()) or None


def summed_terms(capture: Capture, reduction: Reduction | None) -> tuple[int, str | None]:
    """D of a summed loss, or 1 for another loss; and a complaint where it could not be counted."""
    if reduction is not Reduction.SUM:
        return 1, None
    count = passed_terms(capture, reduction)
    if count is not None:
        return count, None
    return 1, (
        "the examples of a summed loss could not be counted, and its gradients are taken as they are: call the model itself, "
        "not its parts, or use a mean loss"
    )


def nothing_captured(stacks: Sequence[Stack], capture: Capture, fisher: Fisher) -> str:
    """What a step says that found gradients but no rows."""
    if capture.unread:
        how = "its layers were called with nested tensors. Are there others"
    elif capture.called:
        how = f"was {'opt.observe(outputs)' if fisher.observes else 'backward()'} called"
    else:
        how = (
            "no call of the model reached the optimizer's hooks. Is it the model this optimizer was "
            "built for? If it is compiled, a graph made without these hooks was used: leave "
            "torch._dynamo.config.skip_nnmodule_hook_guards off and call torch._dynamo.reset(). If "
            "not, was the optimizer detached"
        )
    used = any(any(stack.ages) for stack in stacks)
    rest = "The last curvature is used" if used else "There is no curvature yet, so none is used"
    return f"step() found gradients but no captured curvature since the last step: {how}? {rest}"


def turned_round(stacks: Sequence[Stack], capture: Capture) -> str | None:
    """A complaint about layers that see examples where the model's outputs have positions, and the other way round.

    Such layers were told which dimension is which (attention and recurrent layers by `batch_first`), so the rest of the model
    is likely the other way. To be called while the sums still hold a batch.
    """
    for stack in stacks:
        for place, count in zip(stack.places, stack.sums.counts, strict=True):
            if place.site.rule.positionwise(place.site.module):
                continue
            for pass_number, here in count.examples.items():
                outputs, positions = capture.terms.get(pass_number, (0, 0))
                if here > 1 and outputs > 1 and here != outputs and here * outputs == positions:
                    return (
                        f"{place.site.name or 'the model'} sees {here} examples of {outputs} positions, while the outputs were "
                        f"taken for {outputs} examples: say Policy(batch_dim={1 - capture.batch_dim}) if the model is "
                        f"{'batch' if capture.batch_dim else 'sequence'}-first, else check batch_first of that layer"
                    )
    return None
