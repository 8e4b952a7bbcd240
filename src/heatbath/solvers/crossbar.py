"""Crossbar: the noise-free analog rival, a cross-point array in the feedback of amplifiers (Sun et al., PNAS 116 (2019) 4123).

It settles in one step, as its authors say, to (Â + D/A₀)⁻¹ b̂ with D_ii = 1 + Σ_j |Â_ij| and A₀ the amplifiers' gain. What is
left after a time t is e^{−λ t/τ} in each mode, λ an eigenvalue of D⁻¹Â, so the smallest one decides the time (Sun et al. 2020,
arXiv 2005.04530; `heatbath.machines.ClosedLoop` has the circuit). Conductance bits, converters and mismatch are the machine's,
as for a thermodynamic solver at equal bits; noise is not emulated. In place of noise it has systematic errors, which
averaging does not lower and a digital residual does: wrap it in `Refined`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines import ClosedLoop, Machine, Schedule
from heatbath.operators import Operator
from heatbath.solvers.base import Solution, Solver
from heatbath.solvers.held import Held, notes_of, outcome_of, program
from heatbath.work import Work, elementwise


@dataclass(frozen=True)
class Crossbar(Solver[Held]):
    """Closed-loop analog solve; takes `Dense` operators.

    Prefer it to a thermodynamic solve where the machine's noise, not its bits, limits the answer.

    Args:
        machine: the machine; `amplifier_gain` of its specification is A₀ and `tau` the inverse gain–bandwidth product.
        settle_seconds: from drive to the one read; None: the machine's stated `settle_taus`, or 50 τ.
        equilibrate: scale to a unit diagonal before programming.

    Raises:
        ValueError: a settling time that is not positive.
    """

    machine: Machine
    settle_seconds: float | None = None
    equilibrate: bool = True

    def __post_init__(self) -> None:
        if self.settle_seconds is not None and not self.settle_seconds > 0:
            raise ValueError(f"settle_seconds must be positive, got {self.settle_seconds}")

    @property
    def schedule(self) -> Schedule:
        """One read at the end of the settling time."""
        spec = self.machine.spec
        settle = self.settle_seconds
        return Schedule(spec.default_settle_seconds if settle is None else settle, 0.0, reads=1)

    def prepare(
        self, operator: Operator, *, previous: Held | None = None, generator: torch.Generator | None = None
    ) -> tuple[Held, Work]:
        loop = ClosedLoop(self.machine.spec.amplifier_gain) if self.machine.emulated else None
        return program(self.machine, operator, self.schedule, equilibrate=self.equilibrate, circuit=loop, generator=generator)

    def solve(
        self, state: Held, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        root = state.root.reshape(*state.root.shape[:-1], *(1,) * (rhs.ndim - state.root.ndim), -1)
        schedule = self.schedule
        start = None if guess is None else guess / root
        reading = self.machine.run(
            state.programmed, rhs * root, schedule=schedule, guess=start, keep_end=False, generator=generator
        )
        digital = Work.of(elementwise(rhs.numel(), 2)) if self.equilibrate else Work()
        notes = {**notes_of(reading), "matrix_clipped": state.programmed.clipped}
        return Solution(reading.mean * root, reading.work + digital, outcome_of(reading, state.outcome), notes=notes)

    def outcome(self, state: Held) -> Tensor:
        return state.outcome
