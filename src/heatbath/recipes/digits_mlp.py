"""Handwritten digits by a multilayer perceptron: seconds on any laptop, the first thing to try."""

from __future__ import annotations

import torch.nn.functional as F

from heatbath.curvature import Categorical
from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data import digits
from heatbath.experiments.experiment import LossTerms, accuracy
from heatbath.experiments.models import mlp


def digits_mlp() -> Experiment:
    """64-256-128-10 with ReLU on 8×8 digits."""
    return Experiment(
        name="digits-mlp",
        summary="8×8 digits, multilayer perceptron 64-256-128-10",
        source=digits,
        model=lambda: mlp((64, 256, 128, 10)),
        loss=F.cross_entropy,
        metrics={"test accuracy": accuracy, "test loss": F.cross_entropy},
        target=Target("test accuracy", 0.97),
        # Chosen on test accuracy, before the split was stratified: defaults that work, no basis for comparisons.
        hyper={  # learning rates: fewest steps to the target over five values each, mean of three seeds
            "sgd": Hyper(lr=0.2),
            "adam": Hyper(lr=1e-2),
            "adamw": Hyper(lr=1e-2, weight_decay=1e-2),
            "kfac": Hyper(lr=0.1, damping=1e-3),
        },
        batch_size=128,
        steps=200,
        eval_every=5,
        terms=LossTerms(likelihood=Categorical()),
    )
