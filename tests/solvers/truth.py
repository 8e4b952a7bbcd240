"""Problems, judges and approximate solvers that the solver tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heatbath.operators import Dense, Operator
from heatbath.solvers import Outcome, Solution, Solver
from heatbath.solvers.inverse import Inverse
from heatbath.work import Work, elementwise


def fresh(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=fresh(seed), dtype=torch.float64)


def with_spectrum(values: Tensor, *stack: int, seed: int = 0) -> Tensor:
    """Symmetric matrices `[*stack, n, n]` with these eigenvalues and random eigenvectors."""
    n = values.shape[-1]
    basis = torch.linalg.qr(normal(*stack, n, n, seed=seed)).Q
    matrix = basis @ torch.diag_embed(values.double().expand(*stack, n)) @ basis.mT
    return 0.5 * (matrix + matrix.mT)


def spd(*stack: int, n: int, condition: float = 10.0, seed: int = 0) -> Tensor:
    """SPD matrices with eigenvalues log-spaced from 1 down to 1/condition."""
    return with_spectrum(torch.logspace(0, -math.log10(condition), n, dtype=torch.float64), *stack, seed=seed)


def solved(matrix: Tensor, rhs: Tensor) -> Tensor:
    """LAPACK's solution for rows `[*stack, m, n]`."""
    return torch.linalg.solve(matrix, rhs.mT).mT


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


class HostSyncError(AssertionError):
    """A tensor's value was read on the host."""


class NoHostSync(TorchDispatchMode):
    """Inside, reading a tensor's value on the host is an error: on an accelerator it would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise HostSyncError("a tensor's value was read on the host")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Approximate(Solver[Inverse]):
    """An inexact but deterministic and linear solver: M⁻¹ of another matrix.

    Args:
        inverse: P, `[*stack, n, n]`, whatever the operator.
        bad_visits: numbers of the solves (from 0) that return NaN.
    """

    inverse: Tensor
    bad_visits: tuple[int, ...] = ()
    visits: Any = None

    def prepare(
        self, operator: Operator, *, previous: Inverse | None = None, generator: torch.Generator | None = None
    ) -> tuple[Inverse, Work]:
        codes = torch.zeros(operator.stack, dtype=torch.int8)
        return Inverse(Dense(self.inverse), codes), Work.of(elementwise(1))

    def solve(
        self, state: Inverse, rhs: Tensor, *, guess: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Solution:
        value, codes = state.operator @ rhs, state.outcome
        if self.visits is not None:
            if len(self.visits) in self.bad_visits:
                value, codes = value * torch.nan, torch.full_like(codes, Outcome.LATE.code)
            self.visits.append(rhs)
        return Solution(value, Work.of(elementwise(1)), codes)

    def outcome(self, state: Inverse) -> Tensor:
        return state.outcome


def entry_variance(answer: Callable[[Tensor], Tensor], matrix: Tensor, deviation: float) -> float:
    """Variance, summed over what `answer` returns, that independent errors of all entries i ≤ j of `matrix` cause: first order.

    Args:
        answer: of a symmetric matrix `[n, n]`; its derivative is taken by central differences.
        matrix: where.
        deviation: rms error of an entry.
    """
    n, h, total = len(matrix), 1e-5, 0.0
    for i in range(n):
        for j in range(i, n):
            unit = torch.zeros_like(matrix)
            unit[i, j] = unit[j, i] = 1.0
            total += ((answer(matrix + h * unit) - answer(matrix - h * unit)) / (2 * h)).square().sum().item()
    return total * deviation**2


def rounding(matrix: Tensor, bits: int) -> Tensor:
    """What rounding to the nearest of 2ᵇ − 1 levels from −1 to 1 of the largest entry does to each entry."""
    step = matrix.abs().amax((-2, -1), keepdim=True) / (2 ** (bits - 1) - 1)
    return (matrix / step).round() * step - matrix
