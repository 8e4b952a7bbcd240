"""The emulated thermodynamic computer: a `Device` that is exact for linear circuits.

Emulation never touches the ideal matrix after programming: it may decompose what the machines hold, nothing else. Its host may
keep the state of what is programmed itself (`program`, `respond`, `stream`), so that nothing waits for an accelerator; `load`
and `run` do the same with the state in slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from heatbath.machines.device import RawReads, ReadPlan
from heatbath.machines.dynamics import Clock, Derivation, Dynamics, ExactDynamics, SettledApproximation
from heatbath.machines.emulator.front_end import (
    EmulatedReads,
    Network,
    excite,
    gram_of_reads,
    read_average,
    read_average_of_each,
    read_each,
)
from heatbath.machines.emulator.imperfections import cells_of
from heatbath.machines.emulator.programming import program_conductances
from heatbath.machines.schedule import Schedule
from heatbath.machines.spec import MachineSpec
from heatbath.operators import tree


@tree
@dataclass(frozen=True, eq=False)
class Emulated:
    """What the emulator knows of a stack of programmed machines, and no real machine would tell.

    Args:
        network: conductances, cells and their dynamics.
        schedule: the schedule that the dynamics were chosen for; None: any.
    """

    network: Network
    schedule: Schedule | None

    @property
    def conductance(self) -> Tensor:
        """Â, what the cells hold, over full scale, `[*stack, n, n]`."""
        return self.network.conductance

    @property
    def dynamics(self) -> Dynamics:
        """How the cells answer."""
        return self.network.dynamics

    @property
    def slowest(self) -> Tensor:
        """λ_min of what is held, in 1/τ, `[*stack]`: e^{−λ_min t/τ} is what a start leaves after t."""
        return self.dynamics.slowest

    @property
    def definite(self) -> Tensor:
        """Whether Â is positive definite, bool `[*stack]`; where it is not, voltages run away."""
        return self.slowest > 0


@dataclass(frozen=True)
class Emulator:
    """An emulated device with as many machines as are asked for: slot i is the specimen with serial number `serial` + i.

    Args:
        spec: what it is.
        serial: serial number of the first machine: decides its mismatch.
        tolerance: stated relative error of a reading's variance up to which the settled approximation replaces the exact
            dynamics; a thousandth of it is allowed on the mean. 0: always exact.
        read_by_read: draw and convert each of k averaged reads on its own.

    Raises:
        TypeError: `spec` is not a `MachineSpec`.
        ValueError: a negative serial number or tolerance.
    """

    spec: MachineSpec
    serial: int = 0
    tolerance: float = 0.01
    read_by_read: bool = False
    slots: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    stacks: dict[tuple[int, ...], Emulated] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.spec, MachineSpec):
            raise TypeError(f"a machine needs a MachineSpec, got {self.spec!r}; load one: Machine(load_machine('tngd-2024'))")
        if self.serial < 0 or self.tolerance < 0:
            raise ValueError(f"serial and tolerance must be 0 or more, got {self.serial} and {self.tolerance}")

    @property
    def shortcut(self) -> Emulator:
        """What a host may use in place of `load` and `run`."""
        return self

    # ------------------------------------------------------------------------------------------------ as any device

    def load(self, codes: Tensor, slots: Sequence[int]) -> None:
        """See `Device.load`."""
        conductances = program_conductances(codes, self.spec, self._serials(slots), None)
        for slot, conductance in zip(slots, conductances, strict=True):
            self.slots[slot] = conductance
        for key in [key for key in self.stacks if not set(key).isdisjoint(slots)]:
            del self.stacks[key]

    def run(
        self,
        slots: Sequence[int],
        drive: Tensor | None,
        plan: ReadPlan,
        *,
        initial: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> RawReads:
        """See `Device.run`; the dynamics are exact.

        Raises:
            ValueError: a slot that nothing was loaded into.
        """
        missing = [slot for slot in slots if slot not in self.slots]
        if missing:
            raise ValueError(f"nothing was loaded into machine {missing[0]}; call load first")
        key = tuple(slots)
        if key not in self.stacks:
            conductance = torch.stack([self.slots[slot] for slot in key])
            self.stacks[key] = self._derive(conductance, key, None, ExactDynamics)
        if not plan.every:
            return self.respond(self.stacks[key], drive, plan, initial=initial, generator=generator).raw
        chunks = list(self.stream(self.stacks[key], drive, plan, generator=generator))
        codes, railed = (torch.cat([getattr(c, name) for c in chunks], -2) for name in ("codes", "railed"))
        return replace(chunks[0], codes=codes, railed=railed)

    # ------------------------------------------------------------------------------------------------ the shortcut

    def program(
        self,
        codes: Tensor,
        slots: Sequence[int],
        *,
        schedule: Schedule | None = None,
        circuit: Derivation | None = None,
        generator: torch.Generator | None = None,
    ) -> Emulated:
        """What machines that were sent `codes` `[*stack, n, n]` hold.

        Args:
            codes: of the matrices.
            slots: the machine for each member of the stack.
            schedule: how they will be read, to choose the cheapest dynamics that meet `tolerance`, which waits for the torch
                device; None: the exact dynamics.
            circuit: another circuit than the one specified, or the dynamics to use (`ExactDynamics`); does not wait.
            generator: source of write noise.
        """
        conductance = program_conductances(codes, self.spec, self._serials(slots), generator)
        return self._derive(conductance, slots, schedule, circuit)

    def respond(
        self,
        emulated: Emulated,
        drive: Tensor | None,
        plan: ReadPlan,
        *,
        initial: Tensor | None = None,
        start: Tensor | None = None,
        keep_end: bool = False,
        generator: torch.Generator | None = None,
    ) -> EmulatedReads:
        """Averaged readings, as `run`; on request with the voltages at the end, from which a later run may start."""
        _check_plan(emulated, plan)
        network, clock = emulated.network, plan.clock(self.spec.time_constant)
        excitation = excite(network, self._codes(emulated, drive), initial, start, self.spec)
        if self.read_by_read and plan.reads is not None:
            return read_average_of_each(network, excitation, clock, self.spec, generator)
        return read_average(network, excitation, clock, self.spec, keep_end=keep_end, generator=generator)

    def stream(
        self,
        emulated: Emulated,
        drive: Tensor | None,
        plan: ReadPlan,
        *,
        gram: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[RawReads]:
        """Every read, in chunks; with `gram` others that have the same second moment, where that is cheaper."""
        _check_plan(emulated, plan)
        network, clock = emulated.network, plan.clock(self.spec.time_constant)
        few = gram_of_reads(network, clock, self.spec, generator) if gram and drive is None else None
        if few is not None:
            return iter([few])
        excitation = excite(network, self._codes(emulated, drive), None, None, self.spec)
        return read_each(network, excitation, clock, self.spec, shared_range=True, generator=generator)

    def _serials(self, slots: Sequence[int]) -> list[int]:
        return [self.serial + slot for slot in slots]

    def _codes(self, emulated: Emulated, drive: Tensor | None) -> Tensor:
        return torch.zeros_like(emulated.conductance[..., :1, :]) if drive is None else drive

    def _derive(
        self, conductance: Tensor, slots: Sequence[int], schedule: Schedule | None, circuit: Derivation | None
    ) -> Emulated:
        cells = cells_of(self.spec, self._serials(slots), conductance)
        matrix, offset = cells.embed(conductance)
        clock = None if schedule is None else Clock.of(schedule, self.spec.time_constant)
        dynamics: Dynamics | None = None
        simple = cells.isotropic and cells.inertia is None and not cells.capacitive
        if circuit is not None:
            dynamics = circuit.of(matrix, cells, clock)
        elif clock is not None and simple and self.tolerance > 0 and not self.read_by_read:
            settled = SettledApproximation.of(matrix, cells, clock)
            variance, mean = settled.error(clock)
            if bool(((variance <= self.tolerance) & (mean <= 1e-3 * self.tolerance)).all()):
                dynamics = settled
        if dynamics is None:
            dynamics = ExactDynamics.of(matrix, cells, clock)
        return Emulated(Network(conductance, cells, offset, dynamics), schedule)


def _check_plan(emulated: Emulated, plan: ReadPlan) -> None:
    """Refuse a plan that asks more of the settled approximation than the schedule it was chosen for.

    Raises:
        ValueError: a shorter burn-in or duration, closer reads, or another way of reading.
    """
    chosen = emulated.schedule
    if chosen is None or not isinstance(emulated.dynamics, SettledApproximation):
        return
    alike = (plan.reads is None, plan.reads == 1) == (chosen.reads is None, chosen.reads == 1)
    alike = alike and (plan.burn_in == 0) == (chosen.burn_in == 0)
    spacing, least = (s.duration / (s.reads or 1) for s in (plan, chosen))
    if not alike or plan.burn_in < chosen.burn_in or (spacing < least * (1 - 1e-9) and plan.reads != 1):
        raise ValueError(
            f"the {emulated.dynamics.name} was chosen for {chosen} and may not hold for {plan}; "
            "program again with the schedule you will run, or with none"
        )
