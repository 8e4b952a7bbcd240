"""Handwritten digits by a small convolutional network: exercises the convolution's curvature in seconds."""

from __future__ import annotations

import torch.nn.functional as F

from heatbath.curvature import Categorical
from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data import digits
from heatbath.experiments.experiment import LossTerms, accuracy
from heatbath.experiments.models import small_cnn


def digits_cnn() -> Experiment:
    """Two strided 3×3 convolutions and two linear layers on 8×8 digits."""
    return Experiment(
        name="digits-cnn",
        summary="8×8 digits, two convolutions and two linear layers",
        source=digits,
        model=lambda: small_cnn(8, 10),
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
        steps=300,
        eval_every=10,
        terms=LossTerms(likelihood=Categorical()),
    )
