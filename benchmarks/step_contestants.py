"""The optimizers of `step.py`, each with the settings its own documentation shows, at lr so small that nothing diverges.

An interval of 10 means that factors, and what is made of them, are renewed at every tenth step. Heatbath's own intervals grow
from 1 over the first steps of a run (`Policy.patience`); time is taken in the steady state after that, so the step counter of
its optimizers starts late. kfac-pytorch's source is given by its path, as it is no package on PyPI.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import heatbath as hb
from heatbath.machines import Machine, presets
from heatbath.solvers import NewtonSchulz, Solver, ThermodynamicInverse

LR = 1e-6
STEADY = 1_000_000  # steps after which heatbath's intervals have their full length


@dataclass
class Trainer:
    """What a contestant made for one model.

    Args:
        update: called after the backward pass.
        held: whatever holds its state.
    """

    update: Callable[[], object]
    held: tuple[Any, ...]


@dataclass(frozen=True)
class Contestant:
    """An optimizer with its settings.

    Args:
        settings: in words.
        build: makes a trainer of a model.
        cycle: steps after which its costs repeat.
        package: that has to be there; None: none.
        intervals: of a K-FAC with explicit inverses, for its floor.
        max_dim: the largest factor of such that is held in full.
        rank: of sketches of larger ones.
        preconditions: turns gradients by matrices, which AdamW and SGD do not.
        largest: size of factors above which one step takes so many seconds that it is left out unless asked for (`--all`).
    """

    settings: str
    build: Callable[[nn.Module], Trainer]
    cycle: int = 1
    package: str | None = None
    intervals: tuple[int, int] | None = None
    max_dim: int | None = hb.Policy.max_dim
    rank: int | None = hb.Policy.rank
    preconditions: bool = True
    largest: int = 10**9

    def is_there(self) -> bool:
        """Whether its package can be imported."""
        if self.package is None:
            return True
        try:
            __import__(self.package)
        except ImportError:
            return False
        return True


def several(*optimizers: torch.optim.Optimizer) -> Trainer:
    """Optimizers that step one after the other."""

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()

    return Trainer(update, optimizers)


def kfac(model: nn.Module, *, solver: Solver[Any] | None = None, **options: Any) -> Trainer:
    """hb.KFAC in its steady state, with options of its policy."""
    policy = hb.Policy(factor_every=10, refresh_every=10, **options)
    optimizer = hb.KFAC(model, lr=LR, solver=solver, policy=policy, generator=torch.Generator().manual_seed(0))
    optimizer.steps = STEADY
    optimizer.capture.enabled = True
    return several(optimizer)


def adamw_for(parameters: Iterable[Tensor]) -> list[torch.optim.Optimizer]:
    """AdamW for what another optimizer leaves out, if anything."""
    rest = list(parameters)
    return [torch.optim.AdamW(rest, lr=LR)] if rest else []


def muon(model: nn.Module) -> Trainer:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    return several(torch.optim.Muon(matrices, lr=LR), *adamw_for(rest))


def soap(model: nn.Module) -> Trainer:
    from pytorch_optimizer import SOAP

    return several(SOAP(model.parameters(), lr=LR, precondition_frequency=10))


def shampoo(model: nn.Module, *, every: int) -> Trainer:
    from distributed_shampoo import AdamPreconditionerConfig, DistributedShampoo

    grafting = AdamPreconditionerConfig(beta2=0.999, epsilon=1e-8)
    options: dict[str, Any] = {"betas": (0.9, 0.999), "epsilon": 1e-8, "precondition_frequency": every}
    return several(DistributedShampoo(model.parameters(), lr=LR, grafting_config=grafting, **options))


def singd(model: nn.Module) -> Trainer:
    from singd.optim.optimizer import SINGD

    optimizer = SINGD(model, lr=LR, T=10, warn_unsupported=False)
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return several(optimizer, *adamw_for(p for p in model.parameters() if id(p) not in taken))


def kfac_pytorch(model: nn.Module, *, factors: int, inverses: int, method: str = "eigen") -> Trainer:
    from kfac.preconditioner import KFACPreconditioner

    options: dict[str, Any] = {"factor_update_steps": factors, "inv_update_steps": inverses, "compute_method": method, "lr": LR}
    preconditioner = KFACPreconditioner(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def update() -> None:
        preconditioner.step()
        optimizer.step()

    return Trainer(update, (preconditioner, optimizer))


def emulated() -> Solver[Any]:
    """The machine of arXiv 2405.13817 by its fast law, its inverse read by cosine vectors, the default."""
    return ThermodynamicInverse(Machine(presets()["tngd-2024"], tolerance=1e9))


CONTESTANTS: dict[str, Contestant] = {
    "AdamW, foreach": Contestant(
        "AdamW(foreach=True)", lambda m: several(torch.optim.AdamW(m.parameters(), lr=LR, foreach=True)), preconditions=False
    ),
    "AdamW, fused": Contestant(
        "AdamW(fused=True)", lambda m: several(torch.optim.AdamW(m.parameters(), lr=LR, fused=True)), preconditions=False
    ),
    "SGD": Contestant(
        "SGD(momentum=0.9)", lambda m: several(torch.optim.SGD(m.parameters(), lr=LR, momentum=0.9)), preconditions=False
    ),
    "hb.KFAC": Contestant("as it comes: Cholesky, intervals 10/10", kfac, 10, intervals=(10, 10)),
    "hb.KFAC, whole factors": Contestant(
        "Policy(max_dim=None)", lambda m: kfac(m, max_dim=None), 10, intervals=(10, 10), max_dim=None
    ),
    "hb.KFAC, blocks of 1024": Contestant(
        "Policy(max_dim=1024, rank=None)",
        lambda m: kfac(m, max_dim=1024, rank=None),
        10,
        intervals=(10, 10),
        max_dim=1024,
        rank=None,
    ),
    "hb.KFAC, staggered": Contestant("Policy(stagger=True)", lambda m: kfac(m, stagger=True), 10, intervals=(10, 10)),
    "hb.KFAC, Newton–Schulz": Contestant(
        "solver=NewtonSchulz(warm_steps=3)",
        lambda m: kfac(m, solver=NewtonSchulz(warm_steps=3)),
        10,
        intervals=(10, 10),
    ),
    "hb.KFAC, thermodynamic": Contestant(
        "solver=ThermodynamicInverse(tngd-2024), fast law",
        lambda m: kfac(m, solver=emulated()),
        10,
        intervals=(10, 10),
    ),
    "hb.KFAC, thermodynamic, blocks of 1024": Contestant(
        "the same with Policy(max_dim=1024, rank=None)",
        lambda m: kfac(m, solver=emulated(), max_dim=1024, rank=None),
        10,
        intervals=(10, 10),
        max_dim=1024,
        rank=None,
    ),
    "Muon + AdamW": Contestant("torch.optim.Muon for matrices, AdamW else", muon, 1),
    "SOAP": Contestant("precondition_frequency=10 (its default)", soap, 10, "pytorch_optimizer", largest=2048),
    "Shampoo, 10": Contestant(
        "precondition_frequency=10, grafted on Adam", lambda m: shampoo(m, every=10), 10, "distributed_shampoo"
    ),
    "Shampoo, default": Contestant(
        "precondition_frequency=1, grafted on Adam", lambda m: shampoo(m, every=1), 1, "distributed_shampoo"
    ),
    "SINGD": Contestant("T=10 (its default), AdamW for what it leaves out", singd, 10, "singd"),
    "kfac-pytorch, 10/10": Contestant(
        "factors 10, inverses 10, eigenbases (its default), before SGD",
        lambda m: kfac_pytorch(m, factors=10, inverses=10),
        10,
        "kfac",
        largest=2048,
    ),
    "kfac-pytorch, 10/10, inverses": Contestant(
        'factors 10, inverses 10, compute_method="inverse", before SGD',
        lambda m: kfac_pytorch(m, factors=10, inverses=10, method="inverse"),
        10,
        "kfac",
    ),
    "kfac-pytorch, default": Contestant(
        "factors 1, inverses 1, eigenbases, before SGD",
        lambda m: kfac_pytorch(m, factors=1, inverses=1),
        1,
        "kfac",
        largest=2048,
    ),
}
PACKAGES = {
    "pytorch_optimizer": "pytorch_optimizer",
    "distributed_shampoo": "torch-shampoo",
    "singd": "singd",
    "kfac": "kfac_pytorch",
}


def version_of(package: str) -> str:
    """Of an importable package; "source" where it came by path."""
    try:
        return version(PACKAGES[package])
    except PackageNotFoundError:
        return "source"


def state_bytes(trainer: Trainer, model: nn.Module) -> int:
    """Bytes of the tensors that an optimizer holds beside parameters, gradients and buffers."""
    known = {t.untyped_storage().data_ptr() for p in model.parameters() for t in (p, p.grad) if t is not None}
    known |= {b.untyped_storage().data_ptr() for b in model.buffers()}
    seen: set[int] = set()
    todo: list[Any] = [vars(held) for held in trainer.held]
    total = 0
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, nn.Module | str | bytes | int | float | type):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                total += storage.nbytes()
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            todo += value
        elif hasattr(value, "__dict__") and not callable(value):
            todo.append(vars(value))
    return total


def arguments(question: str, workloads: Iterable[str], contestants: Iterable[str], results: Path) -> argparse.ArgumentParser:
    """What scripts that race contestants are asked alike; `read_arguments` reads them."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--only", nargs="+", choices=list(workloads), default=list(workloads), help="workloads")
    parser.add_argument("--contestants", nargs="+", choices=list(contestants), default=list(contestants))
    parser.add_argument("--kfac-pytorch", type=Path, help="a clone of kfac-pytorch")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--write", action="store_true", help="write the results as JSON")
    return parser


def read_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with kfac-pytorch found where they say it is."""
    options = parser.parse_args()
    if options.kfac_pytorch is not None:
        sys.path.insert(0, str(options.kfac_pytorch))
    return options


def write(record: Mapping[str, Any], path: Path) -> None:  # Any: JSON values
    """Results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
