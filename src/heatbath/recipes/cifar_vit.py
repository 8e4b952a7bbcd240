"""CIFAR-10 by a small vision transformer: attention, layer norms and shared positions, minutes on one core.

Patches of 4×4 give 64 tokens of width 96; four blocks; no augmentation, so it learns less than a convolutional network does.
"""

from __future__ import annotations

import torch.nn.functional as F

from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data import cifar10
from heatbath.experiments.experiment import accuracy
from heatbath.experiments.models import VisionTransformer


def cifar_vit() -> Experiment:
    """Width 96, depth 4, 4 heads, 384 hidden units, patches of 4×4."""
    return Experiment(
        name="cifar-vit",
        summary="32×32 CIFAR-10, vision transformer of width 96 and depth 4 on 4×4 patches",
        source=cifar10,
        model=lambda: VisionTransformer(size=32, patch=4, width=96, depth=4, heads=4, hidden=384, classes=10),
        loss=F.cross_entropy,
        metrics={"test accuracy": accuracy, "test loss": F.cross_entropy},
        target=Target("test accuracy", 0.4),
        # Held-out loss after 30 steps on the JPEG subset, one seed: AdamW over two values, K-FAC over four, Muon at this one;
        # adam and nadamw as adamw; SGD and SOAP untried. Selection was uneven, no basis for comparison: tune first
        # (`heatbath tune`).
        hyper={
            "sgd": Hyper(lr=0.1),
            "adam": Hyper(lr=1e-3),
            "adamw": Hyper(lr=1e-3, weight_decay=1e-2),
            "nadamw": Hyper(lr=1e-3, weight_decay=1e-2),
            "muon": Hyper(lr=3e-3, momentum=0.95, weight_decay=1e-2),
            "soap": Hyper(lr=3e-3, momentum=0.95, weight_decay=1e-2, square_decay=0.95),
            "kfac": Hyper(lr=0.05, damping=1e-3, kl_clip=0.1),
        },
        batch_size=128,
        steps=600,
        eval_every=25,
    )
