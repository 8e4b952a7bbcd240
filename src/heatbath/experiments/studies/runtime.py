"""Time and energy of a training step, predicted from counted work, for optimizers on digital hardware and with machines.

Nothing here is measured and nothing is a stored result: every figure is the price of work that the library counts when its
own optimizers step on shapes. Counts are kept in a folder, one file for each network and method, so a study that was killed
goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heatbath.costs import Digital, Hardware, StepWork, by_fluctuations
from heatbath.experiments.studies.networks import Network
from heatbath.experiments.studies.step_work import (
    BLOCKS,
    DEFAULT,
    FULL,
    Form,
    first_order_step,
    second_order_step,
)
from heatbath.machines import Machine, MachineSpec
from heatbath.solvers import (
    Cholesky,
    Crossbar,
    Eigen,
    Factorwise,
    NewtonSchulz,
    Solver,
    ThermodynamicInverse,
    ThermodynamicSolve,
)

FORMAT = 2
FLUCTUATION_ERROR = 0.1  # relative error of an inverse that is read from fluctuations
WARM_STEPS = 4  # of Newton–Schulz from the last inverse

Watch = Callable[[str, bool], None]


@dataclass(frozen=True)
class Method:
    """How a step is made.

    Args:
        name: stem of its file.
        title: for people.
        solver: of K-FAC's factors; None: a first-order method.
        optimizer: makes the first-order optimizer.
        analog: whether machines take part.
        half: whether the refresh may use products in lower precision.
        form: of large factors.
        counted_as: name of the method whose counts this one changes, and how; None: it is counted itself.
    """

    name: str
    title: str
    solver: Solver[Any] | None = None  # Any: any state
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    analog: bool = False
    half: bool = False
    form: Form = FULL
    counted_as: tuple[str, Callable[[StepWork], StepWork]] | None = None

    @property
    def short(self) -> str:
        """The title without its form."""
        return self.title.removeprefix("K-FAC, ").removesuffix(f", {self.form.title}")


def methods(spec: MachineSpec) -> tuple[Method, ...]:
    """All methods that are compared, with `spec` as the machine."""
    machine = Machine(spec, tolerance=0)  # the emulator must not look at values
    inverse, warm = Factorwise(ThermodynamicInverse(machine)), f"{WARM_STEPS} warm Newton–Schulz steps"
    return (
        Method("sgd", "SGD with momentum", optimizer=lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9)),
        Method("adam", "Adam", optimizer=torch.optim.Adam),
        Method("cholesky", "K-FAC, Cholesky", Factorwise(Cholesky())),
        Method("eigen", "K-FAC, eigenbases", Eigen()),
        Method("newton-schulz", f"K-FAC, {warm}", Factorwise(NewtonSchulz(warm_steps=WARM_STEPS))),
        Method(
            "newton-schulz-bf16",
            f"K-FAC, {warm} in bf16",
            half=True,
            counted_as=("newton-schulz", lambda step: step),
        ),
        Method("cholesky-blocks", f"K-FAC, Cholesky, {BLOCKS.title}", Factorwise(Cholesky()), form=BLOCKS),
        Method("cholesky-default", f"K-FAC, Cholesky, {DEFAULT.title}", Factorwise(Cholesky()), form=DEFAULT),
        Method("inverse", "thermodynamic inverse", inverse, analog=True),
        Method("inverse-blocks", f"thermodynamic inverse, {BLOCKS.title}", inverse, analog=True, form=BLOCKS),
        Method("inverse-default", f"thermodynamic inverse, {DEFAULT.title}", inverse, analog=True, form=DEFAULT),
        Method(
            "fluctuations",
            "thermodynamic inverse by fluctuations",
            analog=True,
            counted_as=("inverse", lambda step: by_fluctuations(step, spec, error=FLUCTUATION_ERROR)),
        ),
        Method("solve", "thermodynamic solve", Factorwise(ThermodynamicSolve(machine)), analog=True),
        Method("crossbar", "crossbar", Factorwise(Crossbar(machine)), analog=True),
    )


@dataclass(frozen=True)
class Counted:
    """Steps of one network by every method.

    Args:
        network: the shapes.
        steps: by name of the method.
    """

    network: Network
    steps: dict[str, StepWork]

    def shown(self, methods: Sequence[Method]) -> list[Method]:
        """Those that were counted, without forms that change no factor here."""
        full = {repr(method.solver): self.steps.get(method.name) for method in methods if method.form == FULL}
        return [
            method
            for method in methods
            if method.name in self.steps and (method.form == FULL or self.steps[method.name] != full.get(repr(method.solver)))
        ]

    def times(self, depth: int) -> Counted:
        """The same with `depth` such networks side by side."""
        return Counted(self.network, {name: step.each(lambda work: work * depth) for name, step in self.steps.items()})


@dataclass(frozen=True)
class Runtime:
    """The study's setting.

    Args:
        networks: shapes to predict for.
        spec: the machine.
        digital: the digital side.
        half: the same in lower precision.
        intervals: steps between refreshes.

    Raises:
        ValueError: an interval below 1, or none.
    """

    networks: Sequence[Network]
    spec: MachineSpec
    digital: Digital
    half: Digital | None = None
    intervals: tuple[int, ...] = (1, 10, 100)

    def __post_init__(self) -> None:
        if not self.intervals or min(self.intervals) < 1:
            raise ValueError(f"intervals between refreshes are 1 step or more, got {self.intervals}")

    @property
    def hardware(self) -> Hardware:
        """One machine for every matrix."""
        return Hardware(self.digital, self.spec, self.half)

    @property
    def methods(self) -> tuple[Method, ...]:
        """What is compared."""
        return methods(self.spec)

    def run(self, folder: Path, *, watch: Watch = lambda name, fresh: None) -> list[Counted]:
        """Count what is not counted yet.

        Args:
            folder: of the counts.
            watch: told of every count, and whether it was made just now.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return [count(network, self.methods, folder, watch=watch) for network in self.networks]


def count(
    network: Network,
    wanted: Sequence[Method],
    folder: Path,
    *,
    watch: Watch = lambda name, fresh: None,
) -> Counted:
    """Count the steps of one network, or read them where they were counted before."""
    steps: dict[str, StepWork] = {}
    for method in wanted:
        if method.counted_as is not None:
            continue
        path = folder / f"{network.name}-{method.name}.json"
        made = {"format": FORMAT, "network": network.title, "method": repr((method.solver, method.form))}
        step = _read(path, made)
        watch(path.stem, step is None)
        if step is None:
            step = _count(network, method)
            path.write_text(json.dumps({**made, "step": step.to_json()}) + "\n", encoding="utf-8")
        steps[method.name] = step
    for method in wanted:
        if method.counted_as is not None and method.counted_as[0] in steps:
            steps[method.name] = method.counted_as[1](steps[method.counted_as[0]])
    return Counted(network, {method.name: steps[method.name] for method in wanted if method.name in steps})


def _count(network: Network, method: Method) -> StepWork:
    if method.optimizer is not None:
        return first_order_step(network, method.optimizer)
    assert method.solver is not None  # a method is one or the other
    return second_order_step(network, method.solver, form=method.form)


def _read(path: Path, made: dict[str, Any]) -> StepWork | None:  # Any: JSON values
    """The counts in a file; None if there is none, if it is torn, or of another setting."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return StepWork.from_json(data["step"]) if {key: data[key] for key in made} == made else None
    except (OSError, ValueError, KeyError):
        return None


def with_time_constant(spec: MachineSpec, seconds: float) -> MachineSpec:
    """The same machine with another τ; its noise stays, since the resistance is what changes.

    Raises:
        ValueError: a time that is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"a time constant is positive, got {seconds}")
    if spec.resistance is not None and spec.capacitance is not None:
        return replace(spec, tau=None, resistance=seconds / spec.capacitance)
    return replace(spec, tau=seconds)
