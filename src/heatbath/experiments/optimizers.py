"""From the words of a command line to an optimizer: the only place, with the command line itself, where strings select code.

A new optimizer or solver is one row in a table below, and one in the titles of `heatbath.experiments.choice`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from heatbath.curvature import Likelihood, SampledFisher
from heatbath.experiments import baselines
from heatbath.experiments.choice import Choice
from heatbath.experiments.experiment import Experiment, Hyper, LossTerms
from heatbath.machines import Machine, MachineSpec, load_machine, with_bits
from heatbath.optim import KFAC, NGD, TNGD, JointPolicy, KLClip, LevenbergMarquardt, Policy, QuadraticModel, TNGDPolicy
from heatbath.optim.tngd import LIMIT
from heatbath.solvers import Cholesky, ConjugateGradient, Eigen, Guarded, Solver, ThermodynamicInverse, ThermodynamicSolve

DEFAULT_MACHINE = "tngd-2024"
Build = Callable[[nn.Module, Choice, LossTerms, torch.Generator], torch.optim.Optimizer]


def _plain(make: Callable[[nn.Module, Hyper], torch.optim.Optimizer]) -> Build:
    """An optimizer that needs neither a solver nor randomness."""
    return lambda model, choice, terms, generator: make(model, choice.hyper)


def _solver(choice: Choice) -> Solver[Any]:  # Any: any state
    """The solver of a choice."""
    assert choice.solver is not None  # filled in by choose()
    return DIGITAL[choice.solver]() if choice.machine is None else THERMODYNAMIC[choice.solver](Machine(choice.machine))


def _kfac(model: nn.Module, choice: Choice, terms: LossTerms, generator: torch.Generator) -> torch.optim.Optimizer:
    assert choice.hyper.kl_clip is not None  # filled in by choose()
    policy = Policy(trust=KLClip(choice.hyper.kl_clip), reduction=terms.reduction, fisher=terms.fisher)
    return _layerwise(model, choice, policy, generator)


def _kfac_quadratic(model: nn.Module, choice: Choice, terms: LossTerms, generator: torch.Generator) -> torch.optim.Optimizer:
    """The policy of Martens & Grosse 2015 (arXiv 1503.05671): step and momentum from the quadratic model, adapted damping.

    The Fisher matrix is sampled afresh at every step, as there, unless the task says another that observes outputs.
    """
    likelihood = _likelihood(choice, terms)
    policy = Policy(
        factor_every=1,
        quadratic=QuadraticModel(likelihood),
        adapt=LevenbergMarquardt(),
        fisher=terms.fisher if terms.fisher.observes else SampledFisher(likelihood),
        reduction=terms.reduction,
    )
    return _layerwise(model, choice, policy, generator)


def _layerwise(model: nn.Module, choice: Choice, policy: Policy, generator: torch.Generator) -> torch.optim.Optimizer:
    """K-FAC by the solver of a choice."""
    h = choice.hyper
    assert h.damping is not None  # filled in by choose()
    return KFAC(
        model,
        lr=h.lr,
        damping=h.damping,
        momentum=h.momentum,
        weight_decay=h.weight_decay,
        solver=_solver(choice),
        policy=policy,
        generator=generator,
    )


def _ngd(model: nn.Module, choice: Choice, terms: LossTerms, generator: torch.Generator) -> torch.optim.Optimizer:
    """NGD with one sampled row for each term of the loss; the small side is solved where the solver knows dense matrices."""
    h, size = choice.hyper, _size(model)
    assert h.damping is not None and h.kl_clip is not None  # filled in by choose()
    if size > NGD_LIMIT and choice.solver != "conjugate-gradient":
        raise ValueError(
            f"ngd with --solver {choice.solver} keeps a gradient of every example, of all parameters: it is meant for up to "
            f"{NGD_LIMIT:,}, this model has {size:,}. Use --solver conjugate-gradient, or --optimizer kfac"
        )
    solver = _solver(choice)
    return NGD(
        model,
        fisher=SampledFisher(_likelihood(choice, terms)),
        solver=solver if choice.machine is None else Guarded(solver),
        lr=h.lr,
        damping=h.damping,
        momentum=h.momentum,
        weight_decay=h.weight_decay,
        policy=JointPolicy(trust=KLClip(h.kl_clip), reduction=terms.reduction),
        generator=generator,
    )


def _tngd(model: nn.Module, choice: Choice, terms: LossTerms, generator: torch.Generator) -> torch.optim.Optimizer:
    h = choice.hyper
    assert h.damping is not None and h.kl_clip is not None and choice.machine is not None  # filled in by choose()
    size = _size(model)
    if size > LIMIT:
        raise ValueError(
            f"tngd needs a cell for each parameter and is emulated up to {LIMIT:,}, this model has {size:,}: use "
            "--optimizer ngd --solver thermodynamic-solve, which needs a cell for each term of the loss, or --optimizer kfac"
        )
    return TNGD(
        model,
        machine=Machine(choice.machine),
        fisher=SampledFisher(_likelihood(choice, terms)),
        lr=h.lr,
        damping=h.damping,
        policy=TNGDPolicy(trust=KLClip(h.kl_clip), reduction=terms.reduction),
        generator=generator,
    )


def _size(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _likelihood(choice: Choice, terms: LossTerms) -> Likelihood:
    """What the loss is the negative logarithm of.

    Raises:
        ValueError: the task does not say.
    """
    if terms.likelihood is None:
        raise ValueError(
            f"{choice.optimizer} takes its Fisher matrix from the likelihood of the loss, which this task does not name: "
            "use kfac"
        )
    return terms.likelihood


OPTIMIZERS: Mapping[str, Build] = {
    "sgd": _plain(baselines.sgd),
    "adam": _plain(baselines.adam),
    "adamw": _plain(baselines.adamw),
    "nadamw": _plain(baselines.nadamw),
    "muon": _plain(baselines.muon),
    "soap": _plain(baselines.soap),
    "singd": _plain(baselines.singd),
    "kfac": _kfac,
    "kfac-quadratic": _kfac_quadratic,
    "ngd": _ngd,
    "tngd": _tngd,
}
NGD_LIMIT = 100_000  # parameters; 128 examples then take 51 MB of gradients
SOLVERS_OF: Mapping[str, tuple[str, ...]] = {  # which solvers an optimizer takes, the default first
    "kfac": ("cholesky", "eigen", "thermodynamic-inverse", "thermodynamic-solve"),
    "kfac-quadratic": ("cholesky", "eigen", "thermodynamic-inverse", "thermodynamic-solve"),
    "ngd": ("cholesky", "conjugate-gradient", "thermodynamic-solve"),
    "tngd": ("thermodynamic-solve",),
}
CURVED = frozenset(SOLVERS_OF)  # optimizers that take a solver
SELF_PACED = frozenset({"kfac-quadratic"})  # step length and momentum from a model of the loss, which `lr` multiplies
DAMPED = CURVED | {"singd"}  # optimizers that take damping
DIGITAL: Mapping[str, Callable[[], Solver[Any]]] = {  # Any: any state
    "cholesky": Cholesky,
    "eigen": Eigen,
    "conjugate-gradient": lambda: ConjugateGradient(iterations=200, tolerance=1e-2),  # as close as a step needs it
}
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
    "kfac-quadratic": Hyper(lr=1.0, damping=1.0, momentum=0.0),  # the first λ; it adapts
    "ngd": Hyper(lr=0.1, damping=1e-2),
    "tngd": Hyper(lr=0.1, damping=1e-1, momentum=0.0),
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
        solver: one of `SOLVERS_OF` the optimizer; by default the first of them.
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
        solver = known(solver or SOLVERS_OF[optimizer][0], SOLVERS, "solver")
        if solver not in SOLVERS_OF[optimizer]:
            raise ValueError(f"{optimizer} takes --solver {' or '.join(SOLVERS_OF[optimizer])}, got {solver}")
    if solver not in THERMODYNAMIC and (machine is not None or bits is not None):
        raise ValueError(_without_machine("--bits" if machine is None else "--machine"))
    default = experiment.hyper.get(optimizer, FALLBACK_HYPER[optimizer])
    clip = KLClip().kappa if default.kl_clip is None else default.kl_clip
    hyper = replace(
        default,
        kl_clip=clip if optimizer in CURVED - SELF_PACED else None,
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
    thermal = any(solver in THERMODYNAMIC for name in curved for solver in solvers_for(name, solvers))
    if solvers and not curved:
        raise ValueError(f"--solver has no meaning for {', '.join(optimizers)}: add --optimizer {' or '.join(sorted(CURVED))}")
    if (machine is not None or bits) and not thermal:
        raise ValueError(_without_machine("--bits" if machine is None else "--machine"))
    found = []
    for name in optimizers:
        for solver in solvers_for(name, solvers) if name in CURVED else [None]:
            if solver in THERMODYNAMIC:
                precisions: Sequence[int | None] = bits or [None]
                found += [choose(experiment, name, solver=solver, machine=machine, bits=b) for b in precisions]
            else:
                found.append(choose(experiment, name, solver=solver))
    return list({choice.label: choice for choice in found}.values())


def _without_machine(option: str) -> str:
    return f"{option} has no meaning without a thermodynamic solver: add --solver {' or '.join(sorted(THERMODYNAMIC))}"


def solvers_for(optimizer: str, solvers: Sequence[str] | None) -> list[str]:
    """Those of some solvers that an optimizer takes; its default where none are given, or where it takes but one.

    Raises:
        ValueError: an unknown solver, or none that it takes.
    """
    takes = SOLVERS_OF[optimizer]
    fitting = [solver for solver in solvers or takes[:1] if known(solver, SOLVERS, "solver") in takes]
    if not fitting and len(takes) > 1:
        raise ValueError(f"{optimizer} takes --solver {' or '.join(takes)}, got {', '.join(solvers or ())}")
    return fitting or [takes[0]]


def machine_spec(machine: str | None, bits: int | None) -> MachineSpec:
    """A preset or file, with all its converters at `bits` if given."""
    spec = load_machine(machine or DEFAULT_MACHINE)
    return spec if bits is None else with_bits(spec, matrix=bits, drive=bits, read=bits)


def build(
    choice: Choice, model: nn.Module, *, terms: LossTerms | None = None, generator: torch.Generator
) -> torch.optim.Optimizer:
    """The optimizer of a choice.

    Args:
        choice: what to build.
        model: already on its device.
        terms: of the loss; None: a mean over examples of which nothing more is known.
        generator: randomness of the machine's emulation and of sampled Fishers.

    Raises:
        ValueError: a model or a loss that the optimizer cannot treat.
    """
    return OPTIMIZERS[choice.optimizer](model, choice, LossTerms() if terms is None else terms, generator)


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
