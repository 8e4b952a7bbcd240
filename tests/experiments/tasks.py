"""A task that trains in milliseconds, for every test of the room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import Categorical
from heatbath.experiments import Choice, Experiment, Hyper, Record, RunFiles, RunOptions, Target, choose, run
from heatbath.experiments.data import Dataset, Source, Tensors
from heatbath.experiments.experiment import LossTerms, accuracy
from heatbath.experiments.runner import Watcher

OPTIMIZERS = {
    "adamw": {"optimizer": "adamw"},
    "kfac": {"optimizer": "kfac"},
    "quadratic": {"optimizer": "kfac-quadratic"},
    "inverse": {"optimizer": "kfac", "solver": "thermodynamic-inverse", "bits": 10},
    "solve": {"optimizer": "kfac", "solver": "thermodynamic-solve", "bits": 10},
}


def blobs() -> Dataset:
    """Three Gaussian clouds in six dimensions, 96 to train on and 30 to test on."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(126) % 3
    centres = 2 * torch.eye(6)[:3]
    inputs = centres[labels] + torch.randn(126, 6, generator=generator)
    return Dataset("blobs", "made here", Tensors((inputs[:96], labels[:96])), Tensors((inputs[96:], labels[96:])))


def with_dropout() -> nn.Module:
    """A network that draws from the global generator in every step."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def experiment(**changes: object) -> Experiment:
    """Classify the clouds."""
    settings: dict[str, object] = {
        "name": "blobs",
        "summary": "three clouds",
        "source": Source("blobs", "three Gaussian clouds", blobs),
        "model": with_dropout,
        "loss": F.cross_entropy,
        "metrics": {"test accuracy": accuracy, "test loss": F.cross_entropy},
        "target": Target("test accuracy", 0.7),
        "hyper": {"adamw": Hyper(lr=0.02), "sgd": Hyper(lr=0.1), "kfac": Hyper(lr=0.1, damping=1e-2)},
        "batch_size": 20,
        "steps": 20,
        "eval_every": 5,
        "terms": LossTerms(likelihood=Categorical()),
    }
    return Experiment(**{**settings, **changes})  # type: ignore[arg-type]


def choice(name: str = "adamw", **changes: object) -> Choice:
    """One of `OPTIMIZERS` on the clouds."""
    return choose(experiment(), **{**OPTIMIZERS[name], **changes})  # type: ignore[arg-type]


def train(
    folder: Path,
    name: str = "adamw",
    *,
    steps: int = 20,
    resume: bool = False,
    checkpoint_every: int = 10,
    watchers: Sequence[Watcher] = (),
    task: Experiment | None = None,
    **options: object,
) -> Record:
    """One run on the clouds."""
    settings = RunOptions(steps=steps, resume=resume, checkpoint_every=checkpoint_every, flush_every=4, **options)  # type: ignore[arg-type]
    return run(task or experiment(), choice(name), options=settings, files=RunFiles(folder), watchers=watchers)
