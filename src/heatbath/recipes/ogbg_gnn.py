"""The network of AlgoPerf's OGB workload on random graphs: what a step costs, for predictions of time and energy only.

Five rounds of message passing of width 256, the network that the predictions of Donatella et al. 2025 (arXiv 2502.08603) rest
on, from the AlgoPerf benchmark (Dahl et al. 2023, arXiv 2306.07179), which trains it with batches of 512. What is done with the
factors costs the same at every batch size. No target can be reached and nothing can be tuned: the labels are random.
"""

from __future__ import annotations

from torch import nn

from heatbath.curvature import Bernoulli, Reduction, SampledFisher
from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data.random_graphs import ATOMS, BONDS, TASKS, random_graphs
from heatbath.experiments.experiment import LossTerms
from heatbath.experiments.models.graph import GraphNetwork, labelled_loss

LATENT = 256
LIKELIHOOD = Bernoulli()
RANDOM_LOSS = "loss on random labels"


def ogbg_gnn() -> Experiment:
    """Five rounds of width 256: step costs only."""
    return Experiment(
        name="ogbg-gnn",
        summary="AlgoPerf's graph network (5 rounds, width 256) on random graphs: shapes only, to predict time and energy",
        source=random_graphs,
        model=lambda: GraphNetwork(
            nn.Linear(ATOMS, LATENT), nn.Linear(BONDS, LATENT), latent=LATENT, rounds=5, tasks=TASKS, dropout=0.1
        ),
        loss=labelled_loss,
        metrics={RANDOM_LOSS: labelled_loss},
        target=Target(RANDOM_LOSS, 0.0, higher=False),
        hyper={  # guesses: no learning rate can be chosen on random labels, and costs do not depend on it
            "sgd": Hyper(lr=1e-4),
            "adam": Hyper(lr=1e-4),
            "adamw": Hyper(lr=1e-4, weight_decay=1e-2),
            "nadamw": Hyper(lr=1e-4, weight_decay=1e-2),
            "muon": Hyper(lr=1e-4, momentum=0.95, weight_decay=1e-2),
            "soap": Hyper(lr=1e-4, momentum=0.95, weight_decay=1e-2, square_decay=0.95),
            "kfac": Hyper(lr=0.01, damping=1.0),
        },
        batch_size=32,
        steps=20,
        eval_every=20,
        terms=LossTerms(LIKELIHOOD, Reduction.EXAMPLES, SampledFisher(LIKELIHOOD)),
    )
