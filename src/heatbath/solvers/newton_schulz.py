"""Newton–Schulz: an inverse by matrix products alone, X ← (2I − XM)X (Schulz 1933; Pan & Schreiber 1991).

The residual R = I − XM squares in every step, R ← R², so from ‖R‖ = ρ < 1 it takes log₂(ln(1/ε)/ln(1/ρ)) steps to ε. With
rounding ε the residual ends near κε and, transposed, near κ²ε: right-hand sides are rows, x = bX, so it is R that counts.

Cold start X₀ = αI with α = 2/(λ⁺ + max(λ⁻, λ⁺/20)), from the trace bounds λ± = m ± s√(n−1), m = tr(M)/n, s² = ‖M‖_F²/n − m²
(Wolkowicz & Styan 1980), and λ⁺ ≤ ‖M‖_∞. Then ρ ≈ 1 − 1.9/κ⁺ with κ⁺ = λ⁺/λ_min, so about log₂(κ⁺ ln(1/ε)/1.9) steps: 13 for
κ⁺ = 1000 and ε = 10⁻⁵.

Warm start X₀ = the last inverse, which contracts if and only if ρ(I − X₀M) < 1. R is similar to a symmetric matrix, so
tr(R₁²) = Σ ρᵢ⁴ < 1 after one step proves it at the cost of n² operations, on the device; members that fail it start cold.
Early steps need few digits, as the iteration corrects itself: they may run in bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators import Dense, Diagonal, Operator
from heatbath.solvers.base import Outcome, Solution, Solver
from heatbath.solvers.inverse import Inverse, apply_inverse, invert_diagonal
from heatbath.solvers.products import finite_members, members
from heatbath.work import Work, elementwise, matmul


@dataclass(frozen=True)
class NewtonSchulz(Solver[Inverse]):
    """Invert by 2 · steps + 1 products of n × n matrices; takes `Dense` and `Diagonal` operators.

    Prefer it on accelerators, whose products are fast, and for refreshes so frequent that the last inverse is close: then two
    or three warm steps do. Members that have to start cold at a warm refresh need as many steps as at the first one:
    `Guarded` catches those that do not get there.

    Args:
        steps: at a cold start.
        warm_steps: where there is a previous inverse; None: as many as `steps`.
        tolerance: largest ‖I − XM‖_F/√n, the relative residual over unit vectors, that counts as solved.
        product_dtype: of the products in all but the last `polish` steps, such as `torch.bfloat16`, which needs condition
            numbers well below 1/ε = 256; None: the operator's.
        polish: last steps in the operator's dtype.

    Raises:
        ValueError: no steps, negative polish, or a tolerance that is not positive.
    """

    steps: int = 20
    warm_steps: int | None = None
    tolerance: float = 1e-3
    product_dtype: torch.dtype | None = None
    polish: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.warm_steps is not None and self.warm_steps < 1):
            raise ValueError(f"NewtonSchulz needs at least one step, got steps={self.steps}, warm_steps={self.warm_steps}")
        if self.tolerance <= 0 or self.polish < 0:
            raise ValueError(f"NewtonSchulz needs tolerance > 0 and polish >= 0, got {self.tolerance} and {self.polish}")

    def prepare(
        self, operator: Operator, *, previous: Inverse | None = None, generator: torch.Generator | None = None
    ) -> tuple[Inverse, Work]:
        if isinstance(operator, Diagonal):
            return invert_diagonal(operator)
        if not isinstance(operator, Dense):
            raise TypeError(
                f"NewtonSchulz takes Dense or Diagonal, got {type(operator).__name__}; wrap it: Factorwise(NewtonSchulz())"
            )
        matrix = operator.matrix
        scale = cold_scale(matrix)[..., None, None]
        identity = torch.eye(operator.size, dtype=matrix.dtype, device=matrix.device)
        last = None if previous is None else previous.operator
        warm = isinstance(last, Dense) and last.matrix.shape == matrix.shape
        steps = self.steps
        if isinstance(last, Dense) and warm:
            steps, x = self.warm_steps or steps, last.matrix.to(matrix)
            r = identity - self._product(x, matrix, low=steps > self.polish)
        else:
            x, r = scale * identity, identity - scale * matrix
        for step in range(steps):
            low = step < steps - self.polish
            x = x + self._product(r, x, low=low)
            r = identity - self._product(x, matrix, low=low and step + 1 < steps - self.polish)
            if warm and step == 0:
                contracts = ((r * r.mT).sum((-2, -1)) < 1)[..., None, None]
                x = torch.where(contracts, x, scale * identity)
                r = torch.where(contracts, r, identity - scale * matrix)
        residual = r.flatten(-2).norm(dim=-1) / math.sqrt(operator.size)
        return Inverse(Dense(x), self._judge(matrix, residual), residual=residual), _work(operator, steps, warm)

    def solve(
        self, state: Inverse, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        return apply_inverse(state, rhs)

    def outcome(self, state: Inverse) -> Tensor:
        return state.outcome

    def _judge(self, matrix: Tensor, residual: Tensor) -> Tensor:
        """Outcome codes; a definite matrix never ends with a residual of 1 or more, unless κ exceeds what rounding allows."""
        codes = torch.where(residual <= self.tolerance, Outcome.SOLVED.code, Outcome.INACCURATE.code)
        codes = torch.where(residual < 1, codes, Outcome.INDEFINITE.code)
        return torch.where(finite_members(matrix, matrix.ndim - 2), codes, Outcome.NONFINITE.code).to(torch.int8)

    def _product(self, a: Tensor, b: Tensor, *, low: bool) -> Tensor:
        """A product in the precision of this step, returned in the dtype of `a`."""
        if self.product_dtype is None or not low:
            return a @ b
        return (a.to(self.product_dtype) @ b.to(self.product_dtype)).to(a.dtype)


def cold_scale(matrix: Tensor) -> Tensor:
    """α of the cold start, `[*stack]`, for symmetric positive definite `[*stack, n, n]`."""
    n = matrix.shape[-1]
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    spread = (matrix.square().sum((-2, -1)) / n - mean.square()).clamp_min(0).sqrt() * math.sqrt(n - 1)
    largest = torch.minimum(mean + spread, matrix.abs().sum(-1).amax(-1))
    return 2 / (largest + torch.maximum(mean - spread, largest / 20))


def _work(operator: Operator, steps: int, warm: bool) -> Work:
    """Two products a step, one for the residual of a warm start (a cold start's takes none), and passes over n² numbers."""
    n = operator.size
    products = 2 * steps + (1 if warm else 0)
    return (Work.of(matmul(n, n, n), products) + Work.of(elementwise(n * n, 2), steps + 2)) * members(operator)
