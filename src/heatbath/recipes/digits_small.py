"""Handwritten digits by a network small enough for thermodynamic natural gradient descent, a cell for each parameter.

1,210 parameters. Donatella et al. 2024 (arXiv 2405.13817) train networks and adapters of this order; an emulated step costs an
eigendecomposition of that size.
"""

from __future__ import annotations

import torch.nn.functional as F

from heatbath.curvature import Categorical
from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data import digits
from heatbath.experiments.experiment import LossTerms, accuracy
from heatbath.experiments.models import mlp


def digits_small() -> Experiment:
    """64-16-10 with ReLU on 8×8 digits."""
    return Experiment(
        name="digits-small",
        summary="8×8 digits, multilayer perceptron 64-16-10, small enough for tngd",
        source=digits,
        model=lambda: mlp((64, 16, 10)),
        loss=F.cross_entropy,
        metrics={"test accuracy": accuracy, "test loss": F.cross_entropy},
        target=Target("test accuracy", 0.94),
        # Held-out loss after 60 steps (tngd: 30), one seed: three rates for the first four, four to six settings of damping and
        # clip for the rest. Good to start from; `heatbath tune` for comparisons.
        hyper={
            "sgd": Hyper(lr=0.3),
            "adam": Hyper(lr=3e-2),
            "adamw": Hyper(lr=3e-2, weight_decay=1e-2),
            "nadamw": Hyper(lr=3e-2, weight_decay=1e-2),
            "kfac": Hyper(lr=0.3, damping=1e-3, kl_clip=1e-2),
            "ngd": Hyper(lr=0.3, damping=1e-2, kl_clip=1e-2),
            "tngd": Hyper(lr=1.0, damping=1e-2, kl_clip=1e-2, momentum=0.0),
        },
        batch_size=128,
        steps=100,
        eval_every=5,
        terms=LossTerms(likelihood=Categorical()),
    )
