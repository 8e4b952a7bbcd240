"""Cholesky: M = L Lᵀ, M⁻¹ = L⁻ᵀ L⁻¹, the digital standard for symmetric positive definite systems.

Cost n³/3 + 2n³/3 operations a refresh and 2n² a right-hand side. On an H100 in float32 a stack of 12 matrices of 768 takes
about 6 ms (1.3 to factor, 4.6 to invert), against 96 ms for an eigendecomposition. Failure (a matrix that is not positive
definite) is reported on the device as an outcome, never raised, so a refresh waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators import Dense, Diagonal, Operator
from heatbath.solvers.base import Outcome, Solution, Solver
from heatbath.solvers.inverse import Inverse, apply_inverse, invert_diagonal
from heatbath.solvers.products import mark_nonfinite
from heatbath.work import Work, cholesky, inverse


@dataclass(frozen=True)
class Cholesky(Solver[Inverse]):
    """Invert by Cholesky, apply by a product; takes `Dense` and `Diagonal` operators.

    Use it by default. For ill-conditioned float32 factors raise the damping, or set `double`.

    Args:
        double: factor in float64 and return the inverse in the operator's dtype; slower, safer for condition numbers above 10⁶.
    """

    double: bool = False

    def prepare(
        self, operator: Operator, *, previous: Inverse | None = None, generator: torch.Generator | None = None
    ) -> tuple[Inverse, Work]:
        if isinstance(operator, Diagonal):
            return invert_diagonal(operator)
        if not isinstance(operator, Dense):
            raise TypeError(f"Cholesky takes Dense or Diagonal, got {type(operator).__name__}; wrap it: Factorwise(Cholesky())")
        matrix = operator.matrix.double() if self.double else operator.matrix
        factor, info = torch.linalg.cholesky_ex(matrix)
        identity = torch.eye(operator.size, dtype=factor.dtype, device=factor.device)
        factor = torch.where((info == 0)[..., None, None], factor, identity)  # on the CPU a singular one would raise
        inverse_matrix = torch.cholesky_inverse(factor).to(operator.matrix.dtype)
        if inverse_matrix.stride(-1) != 1:  # LAPACK's columns are rows of the same symmetric matrix: as a checkpoint has them
            inverse_matrix = inverse_matrix.mT
        code = torch.where(info == 0, Outcome.SOLVED.code, Outcome.INDEFINITE.code).to(torch.int8)
        code = mark_nonfinite(code, inverse_matrix.diagonal(dim1=-2, dim2=-1))  # bounds all entries: |x_ij|² ≤ x_ii x_jj
        count = max(operator.stack.numel(), 1)
        work = Work.of(cholesky(operator.size), count) + Work.of(inverse(operator.size), count)
        return Inverse(Dense(inverse_matrix), code, symmetric=True), work

    def solve(
        self, state: Inverse, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        return apply_inverse(state, rhs)

    def outcome(self, state: Inverse) -> Tensor:
        return state.outcome
