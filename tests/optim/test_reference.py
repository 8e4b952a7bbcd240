"""The optimizer against K-FAC written out slowly in `tests/optim/reference.py`, over whole trajectories."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.optim import KFAC, KLClip, Policy, Unclipped
from heatbath.solvers import Eigen, ThermodynamicInverse, ThermodynamicSolve, UnitVectors
from tests.laws import batches, fresh
from tests.optim.reference import Reference
from tests.zoo import IDEAL, LONG


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    generator = fresh(3)
    for parameter in model.parameters():
        parameter.data.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


Run = tuple[nn.Module, nn.Module, list[tuple[float, float]]]


def trajectories(steps: int, solver=None, *, exact: bool = False, **options) -> Run:
    """Both trainers from one start on the same batches: the models, and each step's pair of losses."""
    mine, theirs = network(), network()
    values = {"lr": 0.1, "damping": 1e-2, "momentum": 0.9, "weight_decay": 0.0}
    values |= {name: options.pop(name) for name in values if name in options}
    kappa = options.get("kappa", 1e-2)
    policy = Policy(trust=Unclipped() if kappa is None else KLClip(kappa), **{k: v for k, v in options.items() if k != "kappa"})
    optimizer = KFAC(mine, solver=solver, policy=policy, **values)
    reference = Reference([m for m in theirs if isinstance(m, nn.Linear)], exact=exact, **values, **options)
    losses = []
    for x, y in batches(steps, examples=12):
        optimizer.zero_grad()
        loss = F.cross_entropy(mine(x), y)
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), reference.step(x, y)))
    return mine, theirs, losses


def assert_same(mine: nn.Module, theirs: nn.Module, losses: list[tuple[float, float]], tolerance: float = 1e-9) -> None:
    for mine_loss, their_loss in losses:
        assert mine_loss == pytest.approx(their_loss, rel=tolerance)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.0, "kappa": None, "lr": 0.02, "damping": 0.1},
        {"kappa": 1e-4},
        {"factor_every": 1, "refresh_every": 1, "patience": 0},
        {"factor_every": 2, "refresh_every": 4, "patience": 0, "decay": 0.5},
        {"factor_every": 3, "refresh_every": 4, "patience": 0},
        {"factor_every": 4, "refresh_every": 2, "patience": 2, "decay": 0.0},
    ],
    ids=str,
)
def test_twelve_steps_are_those_of_the_reference(options):
    assert_same(*trajectories(12, **options))


def test_the_defaults_are_those_of_the_reference_over_forty_steps():
    """Long enough for both intervals to grow to their full length."""
    assert_same(*trajectories(40, weight_decay=1e-3))


def test_exact_damping_is_that_of_the_reference():
    assert_same(*trajectories(10, Eigen(), exact=True, damping=1e-2))


@pytest.mark.parametrize(
    "solver", [ThermodynamicSolve(IDEAL, LONG), ThermodynamicInverse(IDEAL, UnitVectors(LONG))], ids=["solve", "inverse"]
)
def test_an_ideal_machine_with_time_is_the_reference(solver):
    """Damping 0.3: every λ_min is at least 0.02 of the largest entry, so that the machine settles to e⁻⁴⁰."""
    assert_same(*trajectories(6, solver, damping=0.3), tolerance=1e-8)


def test_the_reference_would_notice():
    """A change of one option in one of the two is seen."""
    mine, _, _ = trajectories(12)
    for options in ({"weight_decay": 1e-4}, {"decay": 0.94}, {"momentum": 0.89}, {"factor_every": 2}, {"kappa": 0.011}):
        _, theirs, _ = trajectories(12, **options)
        with pytest.raises(AssertionError, match="not close"):
            assert_same(mine, theirs, [])
    assert_same(mine, copy.deepcopy(mine), [])
