"""Inverses that are followed: a few products from the last inverse, a factorization where there is none.

Between two refreshes M moves little, so the last inverse X₀ is near the new one: with R = I − X₀M and ‖R‖ = ρ < 1, k steps of
Newton–Schulz leave ρ^(2ᵏ) after 2k + 1 products of n × n matrices (`newton_schulz`). A product runs at an accelerator's full
speed and a factorization far below it; on a CPU, where both run alike, 2(2k + 1)n³ operations do not pay against the n³ of
Cholesky with inverse.

The residual is measured on the device. A member that misses the tolerance (damping or curvature jumped) is reported as
INACCURATE, and its value must not be used. Nobody waits to hear of it: the optimizer keeps that member's last inverse, reads
the report one step later and prepares the member from scratch (`heatbath.optim.renewal`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from heatbath.operators import Dense, Operator
from heatbath.solvers.base import Solution, Solver
from heatbath.solvers.cholesky import Cholesky
from heatbath.solvers.inverse import Inverse, apply_inverse
from heatbath.solvers.newton_schulz import NewtonSchulz
from heatbath.solvers.products import members
from heatbath.work import Work, elementwise, matmul


@dataclass(frozen=True)
class WarmStarted(Solver[Inverse]):
    """Newton–Schulz from the last inverse, Cholesky from scratch; takes `Dense` and `Diagonal` operators.

    Prefer it on accelerators, with refreshes so frequent that two or three steps reach the tolerance. A tolerance below what
    the products' rounding allows, about κ times 1e-3 in TF32, sends every refresh to Cholesky.

    Args:
        inner: how to go on from an inverse; `product_dtype=torch.bfloat16` there makes the early products cheaper.
        cold: how to start, and to start again.

    Raises:
        TypeError: `inner` is no `NewtonSchulz`, or `cold` no `Cholesky`.
    """

    inner: NewtonSchulz = field(default_factory=lambda: NewtonSchulz(warm_steps=4, tolerance=1e-2))
    cold: Cholesky = field(default_factory=Cholesky)

    def __post_init__(self) -> None:
        for name, kind in (("inner", NewtonSchulz), ("cold", Cholesky)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise TypeError(
                    f"{name} of WarmStarted must be {kind.__name__}(...), which goes by products, got {value!r}; machines "
                    "have starts of their own: ThermodynamicSolve(machine, warm_start=True)"
                )

    def prepare(
        self, operator: Operator, *, previous: Inverse | None = None, generator: torch.Generator | None = None
    ) -> tuple[Inverse, Work]:
        last = None if previous is None else previous.operator
        if isinstance(operator, Dense) and isinstance(last, Dense) and last.matrix.shape == operator.matrix.shape:
            return self.inner.prepare(operator, previous=previous)
        state, work = self.cold.prepare(operator)
        if not isinstance(operator, Dense):
            return state, work
        n = operator.size
        residual = torch.eye(n, dtype=operator.matrix.dtype, device=operator.matrix.device) - operator @ state.operator.dense()
        measured = Work.of(matmul(n, n, n), members(operator)) + Work.of(elementwise(n * n, 2), members(operator))
        size = residual.flatten(-2).norm(dim=-1) / math.sqrt(n)
        mixable = replace(state, residual=size, symmetric=False)  # as a warm start's is, so that members of both can be mixed
        return mixable, work + measured

    def solve(
        self, state: Inverse, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        return apply_inverse(state, rhs)

    def outcome(self, state: Inverse) -> Tensor:
        return state.outcome
