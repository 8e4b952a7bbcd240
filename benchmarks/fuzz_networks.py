"""Random networks × solvers × policies on ordinary and extreme data, for `fuzz.py`.

After a few steps of `hb.KFAC` every parameter is finite, whatever the data are; a combination that cannot
be is refused in words.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fuzz_cases import Case
from fuzz_solves import MACHINES
from torch import Tensor, nn

import heatbath as hb
from heatbath.optim import Policy, QuadraticModel
from heatbath.solvers import (
    Cholesky,
    ConjugateGradient,
    Crossbar,
    Eigen,
    Factorwise,
    Fluctuations,
    Guarded,
    NewtonSchulz,
    Refined,
    Solver,
    ThermodynamicInverse,
    ThermodynamicSolve,
)

STEPS = 6


def network(dice: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network, and the shape of one input."""
    width, out = dice.choice((1, 3, 7)), dice.choice((1, 3))
    act = dice.choice((nn.Tanh, nn.ReLU, nn.GELU))
    match dice.choice(("mlp", "mlp", "conv", "norm", "sequence")):
        case "mlp":
            bias = dice.random() < 0.7
            return nn.Sequential(nn.Linear(4, width, bias=bias), act(), nn.Linear(width, out)), (4,)
        case "conv":
            head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, out))
            return nn.Sequential(nn.Conv2d(2, width, 3, padding=dice.choice((0, 1))), act(), *head), (2, 5, 5)
        case "norm":
            return nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), act(), nn.Linear(width, out)), (4,)
        case _:
            return nn.Sequential(nn.Linear(4, width), act(), nn.Linear(width, out)), (5, 4)


def solver(dice: random.Random) -> Solver[Any]:
    """Any solver."""
    machine = hb.Machine(dice.choice(MACHINES))
    driven = ThermodynamicSolve(machine)
    found: list[Solver[Any]] = [
        Cholesky(),
        Cholesky(double=True),
        NewtonSchulz(),
        Eigen(),
        Guarded(NewtonSchulz(2)),
        Factorwise(Cholesky()),
        driven,
        ThermodynamicInverse(machine),
        Guarded(driven, residual_tolerance=0.3),
        Guarded(Refined(driven, 2)),
        Factorwise(Guarded(ConjugateGradient(8))),
        Crossbar(machine),
    ]
    if machine.spec.noise:
        found.append(ThermodynamicInverse(machine, Fluctuations(300, 1e-5, 1e-4)))
    return dice.choice(found)


def policy(dice: random.Random) -> Policy:
    """Any policy."""
    options: dict[str, Any] = {  # of `Policy`
        "factor_every": dice.choice((1, 2, 10)),
        "refresh_every": dice.choice((1, 2, 10)),
        "patience": dice.choice((None, 0)),
        "stagger": dice.random() < 0.3,
        "decay": dice.choice((0.0, 0.5, 0.95)),
        "trust": dice.choice((None, None, hb.KLClip(), hb.NormClip(1.0), hb.MatchedRMS())),
        "max_dim": dice.choice((2048, 2, None)),
        "rank": dice.choice((256, 1, None)),
        "l2": dice.choice((0.0, 0.0, 1e-3)),
        "corrected": dice.random() < 0.1,
    }
    if dice.random() < 0.15:
        options |= {"trust": None, "quadratic": QuadraticModel(hb.Gaussian())}
    if dice.random() < 0.2:
        options["damping_rule"] = dice.choice((hb.ExactDamping(), hb.FactoredDamping(), hb.FactoredDamping()))
    return Policy(**options)


def data(shape: tuple[int, ...], dice: random.Random, generator: torch.Generator) -> Tensor:
    """A batch of ordinary or extreme inputs."""
    x = torch.randn(dice.choice((1, 2, 8)), *shape, generator=generator)
    match dice.choice(("normal", "normal", "zero", "constant", "alike", "tiny", "huge", "holed")):
        case "zero":
            return torch.zeros_like(x)
        case "constant":
            return torch.ones_like(x)
        case "alike":
            return x[:1].expand_as(x).contiguous()
        case "tiny":
            return x * 1e-20
        case "huge":
            return x * 10 ** dice.uniform(3, 15)
        case "holed":
            x.flatten()[0] = dice.choice((torch.nan, torch.inf))
    return x


def trained(seed: int) -> Callable[[], bool]:
    """Trains one network for a few steps."""

    def run() -> bool:
        dice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, shape = network(dice)
        dtype = dice.choice((torch.float32, torch.float32, torch.float64))
        model = model.to(dtype)
        opt = hb.KFAC(
            model,
            lr=dice.choice((None, 1e-3, 0.1, 1.0)),
            damping=dice.choice((None, 0.1, 1e-3, 1e-8)),
            momentum=dice.choice((None, 0.0, 0.9)),
            weight_decay=dice.choice((0.0, 1e-2)),
            solver=solver(dice),
            policy=policy(dice),
            generator=generator,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(STEPS):
                x = data(shape, dice, generator).to(dtype)
                opt.zero_grad()
                outputs = model(x)
                if opt.policy.quadratic is not None:
                    opt.observe(outputs)
                outputs.square().mean().backward()
                opt.step()
        return all(bool(torch.isfinite(p).all()) for p in model.parameters())

    return run


def cases(count: int, seed: int) -> Iterator[Case]:
    """Networks to train."""
    for k in range(count):
        number = seed * 1_000_000 + k
        yield Case(f"network {number}", trained(number))
