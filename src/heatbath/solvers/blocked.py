"""Block elimination: a matrix larger than the machine, block by block.

With blocks A (one machine's worth), B and C and the Schur complement S,

    M = | A  B |   W = BᵀA⁻¹,   S = C − W B,      M⁻¹ b:  y = b₂ − W b₁,   x₂ = S⁻¹ y,   x₁ = A⁻¹ b₁ − Wᵀ x₂,
        | Bᵀ C |

and S is eliminated in the same way until it fits: a block L D Lᵀ factorization whose diagonal blocks sit on machines. Each of
K blocks is programmed once and driven once per right-hand side; preparing W takes n(K − 1)/2 drives more. Products with B
and W are digital: n³(K − 1)(2K − 1)/3K² operations to prepare, 2n²(1 − 1/K) per right-hand side. S is no worse conditioned
than M, but errors of W enter it, and add up over blocks: wrap `Blocked` in `Refined`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Dense, Operator, tree
from heatbath.solvers.base import Solution, Solver, check_solver, worse
from heatbath.solvers.products import members
from heatbath.work import Work, elementwise, matmul


@tree
@dataclass(frozen=True, eq=False)
class BlockFactors:
    """State of `Blocked`.

    Args:
        blocks: inner states of the diagonal blocks of D, in order.
        couplings: W of every block but the last, `[*stack, rest, size]`.
        outcome: int8 codes `[*stack]`.
    """

    blocks: tuple[Any, ...]  # Any: states of the inner solver
    couplings: tuple[Tensor, ...]
    outcome: Tensor


@dataclass(frozen=True)
class Blocked(Solver[BlockFactors]):
    """Solve with `Dense` operators of any size on machines of `cells` cells.

    Prefer it only where the matrix does not fit, as its digital part is of order n³ again. It ignores `guess`.

    Args:
        inner: solver of one block.
        cells: largest block; blocks are made as equal as they can be.

    Raises:
        ValueError: no cells.
    """

    inner: Solver[Any]  # Any: any state
    cells: int

    def __post_init__(self) -> None:
        check_solver(self.inner, "inner")
        if self.cells < 1:
            raise ValueError(f"Blocked needs cells >= 1, got {self.cells}")

    def prepare(
        self, operator: Operator, *, previous: BlockFactors | None = None, generator: torch.Generator | None = None
    ) -> tuple[BlockFactors, Work]:
        if not isinstance(operator, Dense):
            raise TypeError(f"Blocked takes Dense operators, got {type(operator).__name__}; wrap it: Factorwise(Blocked(...))")
        sizes = block_sizes(operator.size, self.cells)
        before = previous.blocks if previous is not None and len(previous.blocks) == len(sizes) else (None,) * len(sizes)
        rest, work, codes = operator.matrix, Work(), None
        blocks, couplings = [], []
        for size, last in zip(sizes, before, strict=True):
            block, more = self.inner.prepare(Dense(rest[..., :size, :size]), previous=last, generator=generator)
            blocks.append(block)
            work, outcome = work + more, self.inner.outcome(block)
            if size < rest.shape[-1]:
                across = rest[..., size:, :size]
                solution = self.inner.solve(block, across, generator=generator)
                complement = rest[..., size:, size:] - solution.value @ across.mT
                couplings.append(solution.value)
                outcome = worse(outcome, solution.outcome)
                left = complement.shape[-1]
                product = Work.of(matmul(left, size, left)) + Work.of(elementwise(left * left, 3))
                work = work + solution.work + product * members(operator)
                rest = 0.5 * (complement + complement.mT)
            codes = outcome if codes is None else worse(codes, outcome)
        assert codes is not None
        return BlockFactors(tuple(blocks), tuple(couplings), codes), work

    def solve(
        self, state: BlockFactors, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        rest = rhs.reshape(*state.outcome.shape, -1, rhs.shape[-1])
        codes, work, notes, parts, successors = state.outcome, Work(), {}, [], []
        for k, block in enumerate(state.blocks):
            own = rest
            if k < len(state.couplings):
                coupling = state.couplings[k]
                own, rest = rest[..., : coupling.shape[-1]], rest[..., coupling.shape[-1] :]
                rest = rest - own @ coupling.mT
            solution = self.inner.solve(block, own, generator=generator)
            parts.append(solution.value)
            successors.append(solution.state or block)
            codes, work = worse(codes, solution.outcome), work + solution.work
            notes.update({f"block{k}.{name}": note for name, note in solution.notes.items()})
        x = parts[-1]
        for part, coupling in zip(reversed(parts[:-1]), reversed(state.couplings), strict=True):
            x = torch.cat([part - x @ coupling, x], -1)
            left, size = coupling.shape[-2:]
            work = work + Work.of(matmul(x.shape[-2], left, size), 2 * max(state.outcome.numel(), 1))
        changed = any(new is not old for new, old in zip(successors, state.blocks, strict=True))
        successor = replace(state, blocks=tuple(successors)) if changed else None
        return Solution(x.reshape(rhs.shape), work, codes, notes=notes, state=successor)

    def outcome(self, state: BlockFactors) -> Tensor:
        return state.outcome


def block_sizes(n: int, cells: int) -> list[int]:
    """As few blocks of at most `cells` as n needs, as equal as they can be.

    >>> block_sizes(10, 4)
    [4, 3, 3]
    """
    count = math.ceil(n / cells)
    return [n // count + (k < n % count) for k in range(count)]
