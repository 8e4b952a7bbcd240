"""Thermodynamic natural gradient descent (Donatella et al. 2024, arXiv 2405.13817).

A machine of n cells, one for each trained parameter, holds G + λI and is driven by the gradient g. Its voltages follow

    τ dx = −(Â x − b̂) dt + noise,    Â = (G + λI)/s,    b̂ = g/|g|_max,    s the largest entry of G + λI,

and are read after the analog time t; the reading, scaled back, takes the place of the gradient. A mode λ_i of G + λI has by
then come 1 − e^{−λ_i t/sτ} of the way from its start to the natural gradient: t leads from gradient descent (t → 0) to natural
gradient descent (t → ∞), and λ/s, the damping, decides how long "∞" is. The digital side makes products alone: S and SᵀS.

What is done otherwise than in the paper (v1), or not stated there:
1. The cells hold the dense n × n matrix, scaled by its largest entry (τ/s is the time unit of the matrix as it is). The paper's
   circuit (app. C) holds J, H and Jᵀ in three resistor arrays, m(m + 2n) numbers for m rows; such an array is not emulated.
2. Drives fill the range of the converters at each step, so carried voltages keep their size relative to the present gradient.
   The first step starts from 0 V (the paper's Alg. 1: from the gradient, which is `Start.GRADIENT` at every step).
3. One reading is taken at t. The paper may average several (§4), and simulates by Euler–Maruyama; here the exact law is drawn.
4. `delay` is the time that the digital side takes to bring the next G and g; the cells go on relaxing to the old ones (Fig. 1).
5. TNGD-Adam has the β of Adam; the paper's runs have β₁ = β₂ = 0 (app. E.2), which leaves little but the sign of the reading.
6. A reading of cells that ran away, as they do where rounding made the matrix indefinite, has a residual far above that of no
   reading: the step is then solved digitally, and counted (`report()`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from heatbath.curvature import Fisher
from heatbath.machines import Machine, Schedule
from heatbath.operators import Operator
from heatbath.optim.arguments import check_kind
from heatbath.optim.joint import JointNaturalGradient
from heatbath.optim.joint_policy import JointPolicy
from heatbath.optim.options import AdamW, complete_groups, default_options
from heatbath.solvers import Full, Guarded, Solution, Solver, ThermodynamicSolve
from heatbath.work import Work

RUNAWAY = 10.0  # relative residual that no reading has, however early or carried over, unless cells ran away
LIMIT = 4096  # parameters; an emulated step costs an eigendecomposition of this size


class Start(Enum):
    """The voltages a step starts from; the value says it in words."""

    RESET = "all cells at 0 V: a short time t gives t/sτ times the gradient"
    GRADIENT = "the gradient, loaded into the cells: t = 0 gives gradient descent itself"
    CARRIED = "what the step before left in the cells: a short time gives a memory of past gradients, as momentum does"


@dataclass(frozen=True)
class TNGDPolicy(JointPolicy):
    """Choices of `TNGD` that are neither machine nor learning rate.

    Args:
        start: the voltages a step starts from.
        delay: seconds that the cells go on relaxing under the old matrix and drive before the next step; matters to
            `Start.CARRIED` alone.
        adam: TNGD-Adam: Adam's rule with the reading in place of the gradient.

    Raises:
        ValueError: a delay that is negative or not finite.
    """

    start: Start = Start.CARRIED
    delay: float = 0.0
    adam: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind("start", self.start, Start, "one of Start.RESET, GRADIENT and CARRIED")
        if not (math.isfinite(self.delay) and self.delay >= 0):
            raise ValueError(f"delay must be a finite number of seconds, 0 or more, got {self.delay}")


class TNGD(JointNaturalGradient):
    """Natural gradient read from a machine before, or after, it has settled.

    It suits few parameters (n cells, n² numbers sent a step, n at most 4096): small networks and low-rank adapters of large
    ones. For more, `NGD(solver=SmallSide(ThermodynamicSolve(machine)))` needs a cell for each output of the batch, `KFAC` one
    for each feature of a layer.

    Args:
        model: the model; parameters that do not require gradients take no cells.
        groups: parameter groups with their own lr, momentum, weight_decay; parameters not named get the defaults.
        machine: the machine.
        fisher: whose root: `ExactFisher(likelihood)`, `SampledFisher(likelihood)`, or `EmpiricalFisher()`.
        time: t, seconds from drive to reading; None: the machine's stated time to converge.
        lr: learning rate.
        damping: λ > 0, in units of the curvature of the mean loss.
        policy: start voltages, delay, TNGD-Adam, and what `NGD` has.
        generator: randomness of sampled Fishers and of the machine; None: torch's global one.

    Raises:
        TypeError: the model is no module, the machine no machine, or the Fisher has no vectors at the outputs.
        ValueError: nothing to train, more parameters than cells, or an option out of range.

    >>> from heatbath.curvature import ExactFisher, Gaussian
    >>> from heatbath.machines import load_machine
    >>> model = nn.Linear(3, 1)
    >>> opt = TNGD(model, machine=Machine(load_machine("tngd-2024")), fisher=ExactFisher(Gaussian()), time=20e-6, damping=0.1)
    >>> opt.observe(model(torch.ones(4, 3))).square().mean().backward()
    >>> opt.step()
    >>> opt.work.programmings
    1.0
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Mapping[str, Any]] = (),  # Any: torch's own type
        *,
        machine: Machine,
        fisher: Fisher,
        time: float | None = None,
        lr: float = 0.1,
        damping: float = 1e-2,
        policy: TNGDPolicy | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"TNGD takes the model itself, not its parameters: expected nn.Module, got {type(model).__name__}")
        if not isinstance(machine, Machine):
            raise TypeError(f"machine must be a Machine, got {type(machine).__name__}: Machine(load_machine('tngd-2024'))")
        policy = TNGDPolicy() if policy is None else policy
        check_kind("policy", policy, TNGDPolicy, "TNGDPolicy(…)")
        _check(model, machine, time, damping)
        defaults = default_options(lr=lr, damping=damping, momentum=0.0, weight_decay=0.0, l2=0.0)
        super().__init__(
            model,
            groups=complete_groups(model, groups, defaults, AdamW(0.0)),
            defaults=defaults,
            fisher=fisher,
            solver=relaxation(machine, time, policy),
            policy=policy,
            adam=policy.adam,
            generator=generator,
        )


def relaxation(machine: Machine, time: float | None, policy: TNGDPolicy) -> Solver[Any]:  # Any: any state
    """The solver of a policy: one reading after the time t, and the voltages after the delay."""
    seconds = machine.spec.default_settle_seconds if time is None else float(time)
    schedule = Schedule(burn_in=seconds, duration=float(policy.delay), reads=1)
    carried = policy.start is Start.CARRIED
    inner = Full(
        Guarded(
            ThermodynamicSolve(machine, schedule, equilibrate=False, warm_start=carried),
            residual_tolerance=RUNAWAY,
            overshoot=None,
        ),
        limit=LIMIT,
    )
    return FromGradient(inner) if policy.start is Start.GRADIENT else inner


@dataclass(frozen=True)
class FromGradient(Solver[Any]):  # Any: the inner solver's state
    """Start from the right-hand side itself.

    Args:
        inner: a solver that takes a guess.
    """

    inner: Solver[Any]  # Any: any state

    def prepare(
        self, operator: Operator, *, previous: Any = None, generator: torch.Generator | None = None
    ) -> tuple[Any, Work]:
        return self.inner.prepare(operator, previous=previous, generator=generator)

    def solve(
        self, state: Any, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        solution = self.inner.solve(state, rhs, guess=rhs, generator=generator)
        return replace(solution, state=None)

    def outcome(self, state: Any) -> Tensor:
        return self.inner.outcome(state)


def _check(model: nn.Module, machine: Machine, time: float | None, damping: float) -> None:
    """Refuse what no step could do.

    Raises:
        ValueError: see `TNGD`.
    """
    n, cells = sum(p.numel() for p in model.parameters() if p.requires_grad), machine.spec.cells
    advice = (
        "train fewer parameters (freeze layers, low-rank adapters), or use NGD(solver=SmallSide(ThermodynamicSolve(machine))), "
        "which needs a cell for each output of the batch, or KFAC, which needs one for each feature of a layer"
    )
    if cells is not None and n > cells:
        raise ValueError(f"machine {machine.spec.name!r} has {cells} cells, TNGD needs one for each of {n}: {advice}")
    if n > LIMIT:
        raise ValueError(f"TNGD is emulated up to {LIMIT} parameters, {n} are to be trained: {advice}")
    if time is not None and not (math.isfinite(time) and time >= 0):
        raise ValueError(f"time must be a finite number of seconds, 0 or more, got {time}; None is the machine's stated time")
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}: a machine needs a positive definite matrix")
