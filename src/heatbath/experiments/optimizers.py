"""From the words of a command line to an optimizer: the only place, with the command line itself, where strings select code.

A `Choice` is complete: every default is filled in when it is made, so a record of it says what was run. A new optimizer or
solver is one row in a table below.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from heatbath.experiments import baselines
from heatbath.experiments.experiment import Experiment, Hyper
from heatbath.machines import Machine, MachineSpec, load_machine, machine_toml, spec_from, with_bits
from heatbath.optim import KFAC, KLClip, Policy
from heatbath.solvers import Cholesky, Eigen, Solver, ThermodynamicInverse, ThermodynamicSolve

DEFAULT_MACHINE = "tngd-2024"
TITLES = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "nadamw": "NAdamW",
    "muon": "Muon + AdamW",
    "soap": "SOAP",
    "singd": "SINGD",
    "kfac": "K-FAC",
    "cholesky": "Cholesky",
    "thermodynamic-inverse": "thermodynamic inverse",
    "thermodynamic-solve": "thermodynamic solve",
}


@dataclass(frozen=True)
class Choice:
    """An optimizer, completely specified.

    Args:
        optimizer: a key of `OPTIMIZERS`.
        hyper: its hyper-parameters.
        solver: a key of `SOLVERS`, for optimizers with curvature; else None.
        machine: the machine of a thermodynamic solver; else None.
    """

    optimizer: str
    hyper: Hyper
    solver: str | None = None
    machine: MachineSpec | None = None

    @property
    def label(self) -> str:
        """A short name for files and legends, such as "kfac-thermodynamic-solve-tngd-2024-8bit"."""
        parts = [self.optimizer, self.solver, self.machine.name if self.machine else None]
        if self.machine is not None and self.machine.matrix_bits is not None:
            parts.append(f"{self.machine.matrix_bits}bit")
        return "-".join(part for part in parts if part)

    @property
    def title(self) -> str:
        """The same for people, such as "K-FAC, thermodynamic solve (tngd-2024, 8 bits)"."""
        words = TITLES.get(self.optimizer, self.optimizer)
        if self.solver is not None:
            words += ", " + TITLES.get(self.solver, self.solver)
        if self.machine is not None:
            bits = self.machine.matrix_bits
            words += f" ({self.machine.name}{'' if bits is None else f', {bits} bits'})"
        return words

    def advice(self) -> str:
        """What to change when training goes wrong."""
        words = f"lower --lr (now {self.hyper.lr:g})"
        if self.hyper.damping is not None:
            words += f" or raise --damping (now {self.hyper.damping:g})"
        if self.machine is not None and self.machine.matrix_bits is not None:
            words += f" or --bits (now {self.machine.matrix_bits})"
        return words

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Plain values for a record; the machine as the text of its TOML file."""
        return {
            "optimizer": self.optimizer,
            "solver": self.solver,
            "machine": machine_toml(self.machine) if self.machine else None,
            **asdict(self.hyper),
        }


Build = Callable[[nn.Module, Choice, torch.Generator], torch.optim.Optimizer]


def _plain(make: Callable[[nn.Module, Hyper], torch.optim.Optimizer]) -> Build:
    """An optimizer that needs neither a solver nor randomness."""
    return lambda model, choice, generator: make(model, choice.hyper)


def _kfac(model: nn.Module, choice: Choice, generator: torch.Generator) -> torch.optim.Optimizer:
    h = choice.hyper
    assert h.damping is not None and h.kl_clip is not None and choice.solver is not None  # filled in by choose()
    if choice.machine is None:
        solver = DIGITAL[choice.solver]()
    else:
        solver = THERMODYNAMIC[choice.solver](Machine(choice.machine))
    return KFAC(
        model,
        lr=h.lr,
        damping=h.damping,
        momentum=h.momentum,
        weight_decay=h.weight_decay,
        solver=solver,
        policy=Policy(trust=KLClip(h.kl_clip)),
        generator=generator,
    )


OPTIMIZERS: Mapping[str, Build] = {
    "sgd": _plain(baselines.sgd),
    "adam": _plain(baselines.adam),
    "adamw": _plain(baselines.adamw),
    "nadamw": _plain(baselines.nadamw),
    "muon": _plain(baselines.muon),
    "soap": _plain(baselines.soap),
    "singd": _plain(baselines.singd),
    "kfac": _kfac,
}
CURVED = frozenset({"kfac"})  # optimizers that take a solver
DAMPED = CURVED | {"singd"}  # optimizers that take damping
DIGITAL: Mapping[str, Callable[[], Solver[Any]]] = {"cholesky": Cholesky, "eigen": Eigen}  # Any: any state
THERMODYNAMIC: Mapping[str, Callable[[Machine], Solver[Any]]] = {  # Any: any state
    "thermodynamic-inverse": ThermodynamicInverse,
    "thermodynamic-solve": ThermodynamicSolve,
}
SOLVERS = (*DIGITAL, *THERMODYNAMIC)
FALLBACK_HYPER: Mapping[str, Hyper] = {
    "sgd": Hyper(lr=0.05),
    "adam": Hyper(lr=1e-3),
    "adamw": Hyper(lr=1e-3, weight_decay=1e-2),
    "nadamw": Hyper(lr=1e-3, weight_decay=1e-2),
    "muon": Hyper(lr=1e-3, momentum=0.95, weight_decay=1e-2),
    "soap": Hyper(lr=3e-3, momentum=0.95, weight_decay=1e-2, square_decay=0.95),
    "singd": Hyper(lr=0.1, damping=1e-3),  # held-out digits-mlp, 60 steps: best of 1e-3 to 0.1, whatever the damping
    "kfac": Hyper(lr=0.05, damping=1e-3),
}


def choose(
    experiment: Experiment,
    optimizer: str,
    *,
    solver: str | None = None,
    machine: str | None = None,
    bits: int | None = None,
    lr: float | None = None,
    damping: float | None = None,
) -> Choice:
    """Check the words of a command line and fill in what they leave open.

    Args:
        experiment: whose hyper-parameters are the defaults.
        optimizer: a key of `OPTIMIZERS`.
        solver: a key of `SOLVERS`; by default "cholesky" where one is taken.
        machine: a preset's name or a TOML file, for thermodynamic solvers; by default tngd-2024.
        bits: of the machine's matrix, drive and read converters alike; by default the machine's own.
        lr: learning rate; by default the recipe's.
        damping: of the curvature; by default the recipe's.

    Raises:
        ValueError: an unknown name, a value out of range, or options that contradict each other.
    """
    known(optimizer, OPTIMIZERS, "optimizer")
    baselines.check_installed(optimizer)
    if optimizer not in CURVED:
        if solver is not None:
            raise ValueError(f"--solver has no meaning for {optimizer}, which takes no solver: leave it out, or use kfac")
        if damping is not None and optimizer not in DAMPED:
            raise ValueError(f"--damping has no meaning for {optimizer}, which uses no curvature: leave it out, or use kfac")
    else:
        solver = known(solver or "cholesky", SOLVERS, "solver")
    if solver not in THERMODYNAMIC and (machine is not None or bits is not None):
        raise ValueError(
            f"{'--machine' if machine is not None else '--bits'} has no meaning without a thermodynamic solver: "
            f"add --solver {' or '.join(sorted(THERMODYNAMIC))}"
        )
    default = experiment.hyper.get(optimizer, FALLBACK_HYPER[optimizer])
    clip = KLClip().kappa if default.kl_clip is None else default.kl_clip
    hyper = replace(
        default,
        kl_clip=clip if optimizer in CURVED else None,
        lr=positive("--lr", default.lr if lr is None else lr),
        damping=None if optimizer not in DAMPED else positive("--damping", default.damping if damping is None else damping),
    )
    return Choice(optimizer, hyper, solver, machine_spec(machine, bits) if solver in THERMODYNAMIC else None)


def choose_all(
    experiment: Experiment,
    optimizers: Sequence[str],
    *,
    solvers: Sequence[str] | None = None,
    machine: str | None = None,
    bits: Sequence[int] | None = None,
) -> list[Choice]:
    """Every combination that some words of a command line stand for, each once.

    Args:
        experiment: whose hyper-parameters are the defaults.
        optimizers: keys of `OPTIMIZERS`.
        solvers: of those optimizers that take one.
        machine: of the thermodynamic ones among them.
        bits: of that machine; each stands for a choice.

    Raises:
        ValueError: as `choose`, or options that none of the optimizers takes.
    """
    curved = [name for name in optimizers if name in CURVED]
    thermal = bool(curved) and any(solver in THERMODYNAMIC for solver in solvers or ())
    if solvers and not curved:
        raise ValueError(f"--solver has no meaning for {', '.join(optimizers)}: add --optimizer {' or '.join(sorted(CURVED))}")
    if (machine is not None or bits) and not thermal:
        raise ValueError(
            f"{'--machine' if machine is not None else '--bits'} has no meaning without a thermodynamic solver: "
            f"add --solver {' or '.join(sorted(THERMODYNAMIC))}"
        )
    found = []
    for name in optimizers:
        for solver in solvers or ["cholesky"] if name in CURVED else [None]:
            if solver in THERMODYNAMIC:
                precisions: Sequence[int | None] = bits or [None]
                found += [choose(experiment, name, solver=solver, machine=machine, bits=b) for b in precisions]
            else:
                found.append(choose(experiment, name, solver=solver))
    return list({choice.label: choice for choice in found}.values())


def choice_from_json(plain: Mapping[str, Any]) -> Choice:  # Any: JSON values
    """The inverse of `Choice.to_json`.

    Raises:
        KeyError: a field is missing.
    """
    hyper = Hyper(**{field.name: plain[field.name] for field in fields(Hyper)})
    machine = plain["machine"]
    return Choice(plain["optimizer"], hyper, plain["solver"], spec_from(tomllib.loads(machine)) if machine else None)


def machine_spec(machine: str | None, bits: int | None) -> MachineSpec:
    """A preset or file, with all its converters at `bits` if given."""
    spec = load_machine(machine or DEFAULT_MACHINE)
    return spec if bits is None else with_bits(spec, matrix=bits, drive=bits, read=bits)


def build(choice: Choice, model: nn.Module, *, generator: torch.Generator) -> torch.optim.Optimizer:
    """The optimizer of a choice.

    Args:
        choice: what to build.
        model: already on its device.
        generator: randomness of the machine's emulation.
    """
    return OPTIMIZERS[choice.optimizer](model, choice, generator)


def known(name: str, names: Iterable[str], what: str) -> str:
    """`name`, if it is one of `names`.

    Raises:
        ValueError: it is not; the message lists what there is and the nearest.
    """
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no {what} {name!r}; {hint}known: {', '.join(names)}")


def positive(option: str, value: float | None) -> float:
    """`value`, if it is positive and finite.

    Raises:
        ValueError: it is not.
    """
    if value is None or not 0 < value < float("inf"):
        raise ValueError(f"{option} must be a positive number, got {value}")
    return value
