"""Averaging over rounded copies: the mean of many rough answers is a good one (Aifer et al. 2024, arXiv 2401.16231).

Rounding M at random without bias gives M + E with E[E] = 0 and ‖E‖ ~ ε, whose solutions

    (M + E)⁻¹ b = M⁻¹b − M⁻¹E M⁻¹b + M⁻¹E M⁻¹E M⁻¹b − …

err by ε each; the first-order term averages out over K copies and leaves a bias of order ε² and a fluctuation of ε/√K. The
copies are programmed into K machines that run at once, so time is that of one copy; machine mismatch averages out as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Operator, map_tensors, tree
from heatbath.solvers.base import Solution, Solver, check_solver, usable
from heatbath.solvers.products import finite_members, over
from heatbath.work import Work, elementwise


@tree
@dataclass(frozen=True, eq=False)
class Copies:
    """State of `Averaged`: the inner state of a stack `[*stack, copies]`."""

    inner: Any  # Any: state of any solver


@dataclass(frozen=True)
class Averaged(Solver[Copies]):
    """Solve on several copies and average; takes what `inner` takes.

    Prefer it where bits are few and machines are many. It needs randomness in the copies: `stochastic_rounding`, write noise or
    mismatch in the machine's specification. Rounding to nearest makes copies that are equal, and averages nothing.

    Args:
        inner: solver of one copy, such as `ThermodynamicSolve(machine)`.
        copies: K. Those that fail are left out; the outcome is that of the rest, the number used is in the notes.

    Raises:
        ValueError: fewer than two copies.
    """

    inner: Solver[Any]  # Any: any state
    copies: int = 16

    def __post_init__(self) -> None:
        check_solver(self.inner, "inner")
        if self.copies < 2:
            raise ValueError(f"Averaged needs at least two copies, got {self.copies}; with one use the inner solver")

    def prepare(
        self, operator: Operator, *, previous: Copies | None = None, generator: torch.Generator | None = None
    ) -> tuple[Copies, Work]:
        stack = len(operator.stack)
        many = map_tensors(lambda t: self._repeat(t, stack), operator)
        inner, work = self.inner.prepare(many, previous=None if previous is None else previous.inner, generator=generator)
        return Copies(inner), work

    def solve(
        self, state: Copies, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        stack = self.inner.outcome(state.inner).ndim - 1
        start = None if guess is None else self._repeat(guess, stack)
        each = self.inner.solve(state.inner, self._repeat(rhs, stack), guess=start, generator=generator)
        good = usable(each.outcome) & finite_members(each.value, stack + 1)
        used = good.sum(-1)
        value = torch.where(over(good, each.value), each.value, 0.0)
        mean = value.sum(stack) / over(used.clamp_min(1), rhs)
        deviation = torch.where(over(good, value), value - mean.unsqueeze(stack), 0.0)
        spread = deviation.reshape(*used.shape, -1).square().sum(-1) / (used * (used - 1)).clamp_min(1)
        size = mean.reshape(*used.shape, -1).norm(dim=-1).clamp_min(torch.finfo(rhs.dtype).tiny)
        notes = {**_over_copies(each.notes), "copies": used, "standard_error": spread.sqrt() / size}
        work = each.work + Work.of(elementwise(rhs.numel(), self.copies))
        successor = None if each.state is None else Copies(each.state)
        return Solution(mean, work, _best(each.outcome, good), notes=notes, state=successor)

    def outcome(self, state: Copies) -> Tensor:
        codes = self.inner.outcome(state.inner)
        return _best(codes, usable(codes))

    def _repeat(self, x: Tensor, stack: int) -> Tensor:
        """`[*stack, …]` as `[*stack, copies, …]`."""
        return x.unsqueeze(stack).expand(*x.shape[:stack], self.copies, *x.shape[stack:])


def _best(codes: Tensor, good: Tensor) -> Tensor:
    """One outcome for all copies, `[*stack]`: that of the copies that are used, or of the failed ones where none is."""
    from_good = torch.where(good, codes, 0).amax(-1)
    from_bad = torch.where(good, 0, codes).amax(-1)
    return torch.where(good.any(-1), from_good, from_bad).to(torch.int8)


def _over_copies(notes: dict[str, Any]) -> dict[str, Any]:  # Any: notes are tensors or strings
    """Notes of a stack of copies as notes of the stack: counts summed, other numbers averaged."""
    merged = {}
    for name, note in notes.items():
        if isinstance(note, Tensor) and note.ndim:
            merged[name] = note.mean(-1) if note.is_floating_point() else note.sum(-1)
        else:
            merged[name] = note
    return merged
