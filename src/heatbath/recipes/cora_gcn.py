"""Fields of papers from their words and citations: two graph convolutions on Cora, full batch, 140 labelled papers.

Width 16 and dropout ½ as in Kipf & Welling 2017 (arXiv 1609.02907), who report 81.5 % on this split. The model picks the
labelled nodes itself, so the terms of the loss are these and not all nodes.
"""

from __future__ import annotations

import torch.nn.functional as F

from heatbath.curvature import Categorical, SampledFisher
from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data.cora import FIELDS, WORDS, cora
from heatbath.experiments.experiment import LossTerms, accuracy
from heatbath.experiments.models.graph import GCN

LIKELIHOOD = Categorical()
LABELLED = 140


def cora_gcn() -> Experiment:
    """1,433-16-7 with dropout."""
    return Experiment(
        name="cora-gcn",
        summary="Cora's citation graph, two graph convolutions 1433-16-7, 140 labels",
        source=cora,
        model=lambda: GCN((WORDS, 16, FIELDS), dropout=0.5),
        loss=F.cross_entropy,
        metrics={"test accuracy": accuracy, "test loss": F.cross_entropy},
        target=Target("test accuracy", 0.8),
        # Loss on the validation nodes after 60 steps, one seed: three or four rates each (Adam at AdamW's), four settings of
        # damping and clip for K-FAC. SGD hardly learns in 60 steps at any of its rates. Muon has no matrix to treat here.
        hyper={
            "sgd": Hyper(lr=0.3, weight_decay=5e-4),
            "adam": Hyper(lr=3e-2, weight_decay=5e-4),
            "adamw": Hyper(lr=3e-2, weight_decay=1e-1),
            "nadamw": Hyper(lr=3e-2, weight_decay=1e-1),
            "soap": Hyper(lr=9e-2, momentum=0.95, weight_decay=1e-1, square_decay=0.95),
            "kfac": Hyper(lr=0.3, damping=1e-3, kl_clip=1e-2),
        },
        batch_size=LABELLED,
        steps=200,
        eval_every=10,
        terms=LossTerms(LIKELIHOOD, fisher=SampledFisher(LIKELIHOOD)),
    )
