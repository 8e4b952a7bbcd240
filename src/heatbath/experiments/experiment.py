"""What is trained, on what, and how success is measured: the value that a recipe returns.

An `Experiment` holds no state and loads nothing. It maps names of optimizers to the hyper-parameters that suit the task, so
that one command line means the same for every recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import EmpiricalFisher, Fisher, Likelihood, Reduction
from heatbath.experiments.data import Source, held_out

Loss = Callable[[Tensor, Tensor], Tensor]  # (output of the model, target) -> scalar, averaged over the batch
Metric = Callable[[Tensor, Tensor], Tensor]  # (outputs on the whole test set, targets) -> scalar


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters of an optimizer on one task.

    Args:
        lr: learning rate.
        damping: of the curvature; None for optimizers without.
        kl_clip: bound κ on the predicted change of the model in one step, in nats per example, for optimizers with curvature;
            None: their own default.
        momentum: of the updates; for the Adam family it is β₁.
        weight_decay: decoupled, per unit of learning rate.
        square_decay: β₂ of the Adam family.
    """

    lr: float
    damping: float | None = None
    kl_clip: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    square_decay: float = 0.999


@dataclass(frozen=True)
class Target:
    """When the task counts as learned.

    Args:
        metric: name of the metric that is judged.
        value: to be reached.
        higher: whether more is better.
    """

    metric: str
    value: float
    higher: bool = True

    def reached(self, value: float) -> bool:
        """Whether a measured value is at or beyond the target; NaN is not."""
        return value >= self.value if self.higher else value <= self.value

    def describe(self) -> str:
        """In words, for a table's head."""
        return f"{self.metric} {'≥' if self.higher else '≤'} {self.value:g}"


@dataclass(frozen=True)
class LossTerms:
    """What methods with curvature must know about a loss beside its value.

    Args:
        likelihood: the distribution whose negative logarithm the loss is; None: not said, and `ngd` and `tngd`, which take the
            Fisher matrix from it, refuse the task.
        reduction: how the loss joins its terms; None: a mean over the examples of a batch.
        fisher: the Fisher matrix that K-FAC estimates.
    """

    likelihood: Likelihood | None = None
    reduction: Reduction | None = None
    fisher: Fisher = field(default_factory=EmpiricalFisher)


@dataclass(frozen=True)
class Experiment:
    """A task, complete with its defaults.

    Args:
        name: as on the command line.
        summary: one line for people.
        source: the data.
        model: builds the network; called under a seeded global generator.
        loss: of a batch.
        metrics: measured on the test split, by name.
        target: when the task counts as learned.
        hyper: default hyper-parameters by optimizer name.
        batch_size: training examples per step.
        steps: default length of a run.
        eval_every: steps between two measurements of the metrics.
        terms: of the loss, for methods with curvature.
    """

    name: str
    summary: str
    source: Source
    model: Callable[[], nn.Module]
    loss: Loss
    metrics: Mapping[str, Metric]
    target: Target
    hyper: Mapping[str, Hyper] = field(default_factory=dict)
    batch_size: int = 128
    steps: int = 300
    eval_every: int = 10
    terms: LossTerms = field(default_factory=LossTerms)

    def __post_init__(self) -> None:
        if self.target.metric not in self.metrics:
            raise ValueError(f"the target judges {self.target.metric!r}, but the metrics are {', '.join(self.metrics)}")


def held_out_name(metric: str) -> str:
    """A metric's name where it is measured on held-out training data."""
    return f"held-out {metric.removeprefix('test ')}"


def on_held_out_data(experiment: Experiment) -> Experiment:
    """The same task for choosing hyper-parameters: measured on held-out training data, and its metrics named so."""
    return replace(
        experiment,
        source=held_out(experiment.source),
        metrics={held_out_name(name): metric for name, metric in experiment.metrics.items()},
        target=replace(experiment.target, metric=held_out_name(experiment.target.metric)),
    )


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of examples whose largest logit is the label: `[..., C]` and int64 `[...]`; labels below 0 do not count."""
    counted = target >= 0
    return ((output.argmax(-1) == target) & counted).sum() / counted.sum()


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of logits `[B, D]` against values in [0, 1], summed over D and averaged over the batch, in nats.

    The sum makes it a negative log-likelihood of an image, which the (empirical) Fisher matrix supposes: with the mean over D,
    gradients shrink by D but their outer products by D².
    """
    return F.binary_cross_entropy_with_logits(output, target, reduction="sum") / len(target)


def reconstruction_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of the reconstruction, summed over D and averaged over examples: the K-FAC paper's measure."""
    return (torch.sigmoid(output) - target).square().sum() / len(target)


def gaussian_loss(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error, summed over D and averaged over the batch: `[B, D]` to a scalar, in nats.

    It is a negative log-likelihood but for a constant: of independent Gaussians of variance 1 around the output.
    """
    return squared_error(output, target) / 2


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of `[B, D]` summed over D and averaged over examples."""
    return (output - target).square().sum() / len(target)
