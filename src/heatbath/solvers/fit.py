"""Whether an inverse X that was made for an older matrix still fits a matrix M, by random vectors.

With R = I − XM and z ~ N(0, I), E‖zR‖² = ‖R‖_F² and Var‖zR‖² = 2‖RRᵀ‖_F² ≤ 2‖R‖_F⁴ (Hutchinson 1990), so with k vectors

    ‖ZR‖_F / √(kn)  estimates  ‖R‖_F / √n,

the relative residual over unit vectors that `NewtonSchulz` reports, and its square has a relative standard deviation of at most
√(2/k). That costs 4kn² operations a side, where another inverse costs n³; a sketched side costs as much as its inverse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import BlockDiagonal, Kronecker, Operator
from heatbath.solvers.base import Outcome
from heatbath.solvers.factorwise import Pieces, Projected, Sides
from heatbath.solvers.guarded import Watched
from heatbath.solvers.inverse import Inverse

PROBES = 8


@functools.singledispatch
def misfit(state: Any, operator: Operator, generator: torch.Generator | None) -> Tensor:  # Any: the state type of a solver
    """Estimate ‖I − XM‖_F/√n, for Kronecker products the larger of both sides.

    Args:
        state: of a solver that ends in explicit inverses, prepared for another operator.
        operator: M, `[*stack]` of them, of the structure that the state was prepared for.
        generator: draws the vectors; None: torch's global one.

    Returns:
        `[*stack]`, on the device.

    Raises:
        TypeError: the state holds no explicit inverse.
    """
    raise TypeError(
        f"a {type(state).__name__} holds no explicit inverse whose fit could be tested: leave Policy.refresh_above at None, or "
        "use a solver that ends in one (Cholesky, NewtonSchulz, WarmStarted, ThermodynamicInverse)"
    )


@misfit.register
def _(state: Inverse, operator: Operator, generator: torch.Generator | None) -> Tensor:
    shape = (*operator.stack, PROBES, operator.size)
    like = state.outcome
    dtype = operator.trace().dtype
    z = torch.randn(shape, generator=generator, dtype=dtype, device=like.device)
    residual = z - operator @ (state.operator @ z)
    return residual.flatten(-2).norm(dim=-1) / math.sqrt(PROBES * operator.size)


@misfit.register
def _(state: Sides, operator: Operator, generator: torch.Generator | None) -> Tensor:
    assert isinstance(operator, Kronecker)
    return torch.maximum(misfit(state.left, operator.left, generator), misfit(state.right, operator.right, generator))


@misfit.register
def _(state: Pieces, operator: Operator, generator: torch.Generator | None) -> Tensor:
    assert isinstance(operator, BlockDiagonal)
    return misfit(state.inner, operator.filled(), generator).amax(-1)


@misfit.register
def _(state: Projected, operator: Operator, generator: torch.Generator | None) -> Tensor:
    if isinstance(state.inner, Watched):
        return _of_watched(state.inner, lambda inner: misfit(replace(state, inner=inner), operator, generator))
    if not isinstance(state.inner, Inverse):
        return misfit(state.inner, operator, generator)  # which says what is wrong
    return misfit(state.inverse(state.inner), operator, generator)


@misfit.register
def _(state: Watched, operator: Operator, generator: torch.Generator | None) -> Tensor:
    return _of_watched(state, lambda inner: misfit(inner, operator, generator))


def _of_watched(state: Watched, measure: Callable[[Any], Tensor]) -> Tensor:  # Any: a state of any solver
    """What is measured of the state in use: the fallback's for members that fell back."""
    inner = measure(state.inner)
    if state.fallback is None:
        return inner
    return torch.where(state.outcome == Outcome.FELL_BACK.code, measure(state.fallback), inner)
