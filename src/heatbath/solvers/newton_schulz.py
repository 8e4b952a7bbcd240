"""Newton–Schulz: an inverse by matrix products alone, X ← (2I − XM)X (Schulz 1933; Pan & Schreiber 1991).

The residual R = I − XM squares in every step, R ← R², so from ‖R‖ = ρ < 1 it takes log₂(ln(1/ε)/ln(1/ρ)) steps to ε. With
rounding ε the residual ends near κε and, transposed, near κ²ε: right-hand sides are rows, x = bX, so it is R that counts.

Cold start X₀ = αI with α = 2/(λ⁺ + max(λ⁻, λ⁺/20)), from the trace bounds λ± = m ± s√(n−1), m = tr(M)/n, s² = ‖M‖_F²/n − m²
(Wolkowicz & Styan 1980), and λ⁺ ≤ ‖M‖_∞. Then ρ ≈ 1 − 1.9/κ⁺ with κ⁺ = λ⁺/λ_min, so about log₂(κ⁺ ln(1/ε)/1.9) steps: 13 for
κ⁺ = 1000 and ε = 10⁻⁵.

Warm start X₀ = αX, X the last inverse. XM is similar to a symmetric definite matrix, with most eigenvalues near 1 and, where
a batch brought a direction that was not there before, a few far above, λ⁺ at most; above 2 the iteration would run away with
α = 1. So α = 2/(1.1λ⁺ + 1) where λ⁺ > 1.5, else 1, with λ⁺ by six products with a vector (power iteration from the largest row
of R). From the first step on R has eigenvalues ρ² ≥ 0, so 0 ≤ XM ≤ I: what has not converged makes solutions shorter.
A start that is no inverse of anything like M (tr(R₁²) ≥ n after a step) is replaced by a cold one, on the device.
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

POWER_STEPS = 6


@dataclass(frozen=True)
class NewtonSchulz(Solver[Inverse]):
    """Invert by 2 · steps + 1 products of n × n matrices; takes `Dense` and `Diagonal` operators.

    Prefer it on accelerators, whose products are fast, and for refreshes so frequent that the last inverse is close: then three
    to four warm steps do. Members that have to start cold at a warm refresh need as many steps as at the first one: `Guarded`
    catches those that do not get there.

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
            product = self._product(x, matrix, low=steps > self.polish)
            warm_factor = warm_scale(product)[..., None, None]
            x, r = warm_factor * x, identity - warm_factor * product
        else:
            x, r = scale * identity, identity - scale * matrix
        for step in range(steps):
            low = step < steps - self.polish
            x = x + self._product(r, x, low=low)
            r = identity - self._product(x, matrix, low=low and step + 1 < steps - self.polish)
            if warm and step == 0:
                contracts = ((r * r.mT).sum((-2, -1)) < operator.size)[..., None, None]
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


def warm_scale(product: Tensor) -> Tensor:
    """α of a warm start, `[*stack]`, from XM `[*stack, n, n]`; 1 where XM is zero or no number."""
    residual = torch.eye(product.shape[-1], dtype=product.dtype, device=product.device) - product
    largest_row = residual.square().sum(-1).argmax(-1)[..., None, None].expand(*product.shape[:-2], 1, product.shape[-1])
    v = residual.gather(-2, largest_row)
    largest = torch.zeros_like(product[..., 0, 0])
    for _ in range(POWER_STEPS):
        image = v @ product
        largest = (image.norm(dim=-1) / v.norm(dim=-1).clamp_min(torch.finfo(v.dtype).tiny)).squeeze(-1)
        v = image / image.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    return torch.where(torch.isfinite(largest) & (largest > 1.5), 2 / (1.1 * largest + 1), 1.0)


def _work(operator: Operator, steps: int, warm: bool) -> Work:
    """Two products a step, one for the residual of a warm start (a cold start's takes none), and passes over n² numbers."""
    n = operator.size
    work = Work.of(matmul(n, n, n), 2 * steps) + Work.of(elementwise(n * n, 2), steps + 2)
    if warm:
        work = work + Work.of(matmul(n, n, n)) + Work.of(matmul(1, n, n), POWER_STEPS)
    return work * members(operator)
