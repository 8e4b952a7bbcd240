"""Steps of the study's networks, counted on shapes by the optimizers themselves (`heatbath.prediction`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from heatbath.costs import StepWork
from heatbath.experiments.studies.networks import Network
from heatbath.optim import KFAC, KLClip, Policy
from heatbath.prediction import count_steps
from heatbath.solvers import Solver


def first_order_step(network: Network, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> StepWork:
    """A step of one of torch's own optimizers.

    Args:
        network: the shapes.
        make: returns the optimizer.

    Raises:
        ValueError: its update rule is not known.
    """
    return _count(network, lambda model: make(list(model.parameters())))[0]


@dataclass(frozen=True)
class Form:
    """How large factors are kept.

    Args:
        title: for people.
        max_dim: of `Policy`; None: in full.
        rank: of `Policy`, of factors above `max_dim`; None: they are cut into blocks.
    """

    title: str
    max_dim: int | None = None
    rank: int | None = None


FULL = Form("factors in full")
BLOCKS = Form("blocks of 1,024", 1024)
DEFAULT = Form(f"hb.KFAC's default (sketches above {Policy().max_dim:,})", Policy().max_dim, Policy().rank)


def second_order_step(network: Network, solver: Solver[Any], *, form: Form = FULL) -> StepWork:
    """A step of K-FAC that renews factors and solver, in the long run: the refresh may start from the one before.

    Args:
        network: the shapes.
        solver: of the damped factors; `Factorwise(…)`, or `Eigen()`.
        form: of large factors. Another form is another preconditioner, whose steps have to be measured as well.
    """
    policy = Policy(
        factor_every=2,
        refresh_every=2,
        max_dim=form.max_dim,
        rank=form.rank,
        skip=network.skip,
        trust=KLClip(),
    )
    return _count(network, lambda model: KFAC(model, solver=solver, policy=policy))[0]


def _count(network: Network, optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> list[StepWork]:
    with torch.device("meta"):
        model, batch = network.model(), network.batch()
    return count_steps(model, network.loss, batch, optimizer=optimizer)[0]
