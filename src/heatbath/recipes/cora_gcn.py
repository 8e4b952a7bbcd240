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
from heatbath.experiments.graph_models import GCN

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
        hyper={
            "sgd": Hyper(lr=1.0, weight_decay=5e-4),
            "adam": Hyper(lr=1e-2, weight_decay=5e-4),
            "adamw": Hyper(lr=1e-2, weight_decay=1e-1),
            "nadamw": Hyper(lr=1e-2, weight_decay=1e-1),
            "muon": Hyper(lr=1e-2, momentum=0.95, weight_decay=1e-1),
            "soap": Hyper(lr=1e-2, momentum=0.95, weight_decay=1e-1, square_decay=0.95),
            "kfac": Hyper(lr=0.1, damping=1e-3),
        },
        batch_size=LABELLED,
        steps=200,
        eval_every=10,
        terms=LossTerms(LIKELIHOOD, fisher=SampledFisher(LIKELIHOOD)),
    )
