"""CURVES by the deep autoencoder of Hinton & Salakhutdinov 2006, as in the Hessian-free and K-FAC papers.

784-400-200-100-50-25-6 and back, tanh with a linear code, on binary cross-entropy: six numbers made each image, so a code of
six can hold it. A step of batch 500 is about 2 GFLOP.
"""

from __future__ import annotations

from heatbath.experiments import Experiment, Hyper, Target
from heatbath.experiments.data import curves, reconstruction
from heatbath.experiments.experiment import reconstruction_error, reconstruction_loss
from heatbath.experiments.models import autoencoder


def curves_autoencoder() -> Experiment:
    """784-400-200-100-50-25-6 and back."""
    return Experiment(
        name="curves-autoencoder",
        summary="28×28 drawings of curves, deep autoencoder 784-400-200-100-50-25-6 and back",
        source=reconstruction(curves),
        model=lambda: autoencoder((784, 400, 200, 100, 50, 25, 6)),
        loss=reconstruction_loss,
        metrics={"test reconstruction error": reconstruction_error, "test loss": reconstruction_loss},
        target=Target("test reconstruction error", 5.0, higher=False),
        hyper={
            "sgd": Hyper(lr=1e-3),
            "adam": Hyper(lr=1e-3),
            "adamw": Hyper(lr=1e-3),
            "nadamw": Hyper(lr=1e-3),
            "muon": Hyper(lr=1e-3, momentum=0.95),
            "soap": Hyper(lr=3e-3, momentum=0.95, square_decay=0.95),
            "kfac": Hyper(lr=0.3, damping=1.0, kl_clip=100.0),
        },
        batch_size=500,
        steps=500,
        eval_every=25,
    )
