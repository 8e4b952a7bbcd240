"""The state shared by every solver that ends in an explicit inverse, and how to apply it.

Applying an inverse costs one product per side, an eigenbasis two, so K-FAC's steady cost is least with explicit inverses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heatbath.operators import Dense, Diagonal, LowRank, Operator, product, tree
from heatbath.solvers.base import Outcome, Solution
from heatbath.solvers.products import low_rank_product, mark_nonfinite, members, vectors_of
from heatbath.work import Work, elementwise, matmul


@tree
@dataclass(frozen=True, eq=False)
class Inverse:
    """An explicit inverse.

    Args:
        operator: M⁻¹, as an operator of the same domain.
        outcome: int8 codes `[*stack]`.
        carry: what the next preparation may start from besides the inverse (where a machine ended, `[*stack, n, n]`), or None.
        residual: ‖I − XM‖_F/√n of the inverse X `[*stack]` where the solver measured it, else None.
        clipped: what a machine clipped on the way, entries, drives and readings together, int64 `[*stack]`, or None.
        symmetric: whether it is so to the last bit, or may be made so without loss; checkpoints then hold one triangle.
    """

    operator: Operator
    outcome: Tensor
    carry: Tensor | None = None
    residual: Tensor | None = None
    clipped: Tensor | None = None
    symmetric: bool = False


def invert_diagonal(operator: Diagonal) -> tuple[Inverse, Work]:
    """The exact inverse of a diagonal operator, which no solver does differently."""
    positive = (operator.diagonal > 0).all(-1)
    inverse = operator.diagonal.reciprocal()
    code = torch.where(positive, Outcome.SOLVED.code, Outcome.INDEFINITE.code).to(torch.int8)
    work = Work.of(elementwise(operator.size), max(operator.stack.numel(), 1))
    return Inverse(Diagonal(inverse), mark_nonfinite(code, inverse)), work


def apply_inverse(state: Inverse, rhs: Tensor) -> Solution:
    """M⁻¹ b by a product, `[*stack, *batch, n]`."""
    operator = state.operator
    notes = {} if state.residual is None else {"inverse_residual": state.residual}
    value = operator.__matmul__(rhs)  # by name: torch.compile takes `operator @ rhs` for a product of two tensors
    return Solution(value, _work(operator, vectors_of(operator, rhs)), state.outcome, notes=notes)


def apply_inverse_to_columns(state: Inverse, rhs: Tensor) -> Solution:
    """M⁻¹ B by a product, for right-hand sides that are the columns of B `[*stack, n, columns]`, which stay where they lie."""
    operator = state.operator
    if not isinstance(operator, Dense | LowRank):
        solution = apply_inverse(state, rhs.mT)
        return replace(solution, value=solution.value.mT)
    notes = {} if state.residual is None else {"inverse_residual": state.residual}
    if isinstance(operator, LowRank):
        value = operator.columns(rhs)
    else:
        value = product(operator.matrix.mT, rhs)  # as rows are solved, b X: an X by products is symmetric to κ² rounding only
    return Solution(value, _work(operator, rhs.shape[-1]), state.outcome, notes=notes)


def _work(operator: Operator, vectors: int) -> Work:
    """As `product_work`, whose dispatch `torch.compile` does not follow."""
    if isinstance(operator, LowRank):
        return low_rank_product(operator, vectors)
    n = operator.size
    return Work.of(matmul(vectors, n, n) if isinstance(operator, Dense) else elementwise(vectors * n), members(operator))
