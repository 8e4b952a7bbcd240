"""ViT-S/16 on random numbers in ImageNet's shape: what a step costs, for predictions of time and energy, and nothing else.

Width 384, depth 12, 6 heads, 1536 hidden units, 196 tokens, 1,000 classes: the network that the predictions of Donatella et
al. 2025 (arXiv 2502.08603) rest on, from the AlgoPerf benchmark (Dahl et al. 2023, arXiv 2306.07179). One image costs about
28 GFLOP forward and backward; what is done with the factors costs the same at every batch size.
No target can be reached and nothing can be tuned: the labels are random.
"""

from __future__ import annotations

import torch.nn.functional as F

from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data import imagenet_shapes
from heatbath.experiments.models import VisionTransformer

RANDOM_LOSS = "loss on random labels"


def vit_s16_imagenet() -> Experiment:
    """ViT-S/16: step costs only."""
    return Experiment(
        name="vit-s16-imagenet",
        summary="ViT-S/16 at 224×224 and 1,000 classes on random numbers: shapes only, for predictions of time and energy",
        source=imagenet_shapes,
        model=lambda: VisionTransformer(size=224, patch=16, width=384, depth=12, heads=6, hidden=1536, classes=1000),
        loss=F.cross_entropy,
        metrics={RANDOM_LOSS: F.cross_entropy},
        target=Target(RANDOM_LOSS, 0.0, higher=False),
        hyper={  # guesses: no learning rate can be chosen on random labels, and costs do not depend on it
            "sgd": Hyper(lr=0.01),
            "adam": Hyper(lr=1e-4),
            "adamw": Hyper(lr=1e-4, weight_decay=1e-2),
            "nadamw": Hyper(lr=1e-4, weight_decay=1e-2),
            "muon": Hyper(lr=1e-4, momentum=0.95, weight_decay=1e-2),
            "soap": Hyper(lr=1e-4, momentum=0.95, weight_decay=1e-2, square_decay=0.95),
            "kfac": Hyper(lr=0.01, damping=1e-2),
        },
        batch_size=8,
        steps=20,
        eval_every=20,
    )
