"""The contestants of `time_to_target.py`: a name, and a function from a model and a learning rate to an optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import heatbath as hb
from heatbath.experiments.baselines import muon
from heatbath.experiments.experiment import Hyper

Make = Callable[[nn.Module, float], Any]
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01  # decoupled, for everybody who has it


def _adamw(model: nn.Module, lr: float) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY)


def _nadamw(model: nn.Module, lr: float) -> Any:
    return torch.optim.NAdam(model.parameters(), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, decoupled_weight_decay=True)


def _muon(model: nn.Module, lr: float) -> Any:
    return muon(model, Hyper(lr=lr, momentum=0.95, weight_decay=WEIGHT_DECAY, square_decay=BETAS[1]))


def _from_package(name: str, **options: Any) -> Make:
    def make(model: nn.Module, lr: float) -> Any:
        package = importlib.import_module("pytorch_optimizer")
        return getattr(package, name)(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, **options)

    return make


def _kfac(model: nn.Module, lr: float) -> Any:
    return hb.KFAC(model, lr=lr)


CONTESTANTS: dict[str, tuple[Make, tuple[float, ...]]] = {
    "AdamW": (_adamw, (1e-3, 3e-3, 1e-2)),
    "NAdamW": (_nadamw, (1e-3, 3e-3, 1e-2)),
    "Muon": (_muon, (3e-3, 1e-2, 3e-2)),
    "SOAP": (_from_package("SOAP", betas=(0.95, 0.95), precondition_frequency=10), (1e-3, 3e-3, 1e-2)),
    "hb.KFAC": (_kfac, (3e-3, 1e-2, 3e-2)),
}
