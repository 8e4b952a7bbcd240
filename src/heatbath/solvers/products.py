"""What solvers ask of an operator beside its product: the work of one, its diagonal, and a sign of health.

All are `functools.singledispatch` functions, so that a new operator registers its own rule beside its class's solver code.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from heatbath.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    EigenCorrected,
    Gram,
    Kronecker,
    LowRank,
    Operator,
    Shifted,
    Sketched,
)
from heatbath.solvers.base import Outcome, usable
from heatbath.work import Work, cholesky, elementwise, matmul, triangular_solve


@functools.singledispatch
def product_work(operator: Operator, vectors: int) -> Work:
    """The work of `operator @ x` for `vectors` vectors of each member of the stack.

    An operator that registered no rule is counted as a dense one, an upper bound.
    """
    return Work.of(matmul(vectors, operator.size, operator.size), members(operator))


@product_work.register
def _(operator: Diagonal, vectors: int) -> Work:
    return Work.of(elementwise(vectors * operator.size), members(operator))


@product_work.register
def _(operator: Kronecker, vectors: int) -> Work:
    left, right = operator.left, operator.right
    return product_work(right, vectors * left.size) + product_work(left, vectors * right.size)


@product_work.register
def _(operator: Shifted, vectors: int) -> Work:
    return product_work(operator.operator, vectors) + Work.of(elementwise(vectors * operator.size, 2), members(operator))


@product_work.register
def _(operator: BlockDiagonal, vectors: int) -> Work:
    count, m = operator.blocks.shape[-3:-1]
    return Work.of(matmul(vectors, m, m), members(operator) * count)


@product_work.register
def low_rank_product(operator: LowRank, vectors: int) -> Work:
    """The rule of `LowRank`, by name for what `torch.compile` has to follow."""
    n, r = operator.size, operator.rank
    products = Work.of(matmul(vectors, n, r)) + Work.of(matmul(vectors, r, r)) + Work.of(matmul(vectors, r, n))
    return (products + Work.of(elementwise(vectors * n))) * members(operator)


@product_work.register
def _(operator: Sketched, vectors: int) -> Work:
    return low_rank_work(operator) + product_work(operator.low_rank(), vectors)


def low_rank_work(operator: Sketched) -> Work:
    """The work of `operator.low_rank()`: ΩᵀY, both halves of QR (as products of as many operations), and what is r × r."""
    n, r = operator.size, operator.rank
    tall = Work.of(matmul(r, n, r), 3)
    small = Work.of(cholesky(r)) + Work.of(triangular_solve(r, r)) + Work.of(matmul(r, r, r))
    return (tall + small + Work.of(elementwise(n * r, 2))) * members(operator)


@product_work.register
def _(operator: EigenCorrected, vectors: int) -> Work:
    out, inputs = operator.domain
    once = Work.of(matmul(vectors * inputs, out, out), 2) + Work.of(matmul(vectors * out, inputs, inputs), 2)
    return (once + Work.of(elementwise(vectors * operator.size))) * members(operator)


@product_work.register
def _(operator: Gram, vectors: int) -> Work:
    return operator.root.work(vectors) + Work.of(elementwise(vectors * operator.size, 2), members(operator))


@functools.singledispatch
def vitality(operator: Operator) -> Tensor:
    """A number for each member, `[*stack]`, that is positive and finite if the matrix may be definite: by default its trace."""
    return operator.trace()


@vitality.register
def _(operator: Gram) -> Tensor:
    """SᵀS is semidefinite by construction, and its trace as dear as S: λ decides."""
    m, n = operator.root.shape
    return operator.amount if m < n else torch.where(operator.amount >= 0, 1 + operator.amount, operator.amount)


@functools.singledispatch
def diagonal_of(operator: Operator) -> Tensor:
    """The diagonal of each matrix, `[*stack, *domain]`.

    Raises:
        TypeError: the operator registered no rule.
    """
    raise TypeError(
        f"the diagonal of a {type(operator).__name__} is not known; use preconditioner=None, or register a rule with "
        "diagonal_of.register"
    )


@diagonal_of.register
def _(operator: Dense) -> Tensor:
    return operator.matrix.diagonal(dim1=-2, dim2=-1)


@diagonal_of.register
def _(operator: Diagonal) -> Tensor:
    return operator.diagonal


@diagonal_of.register
def _(operator: Kronecker) -> Tensor:
    return diagonal_of(operator.left).unsqueeze(-1) * diagonal_of(operator.right).unsqueeze(-2)


@diagonal_of.register
def _(operator: Shifted) -> Tensor:
    inner = diagonal_of(operator.operator)
    return inner + operator.amount.to(inner).reshape(*operator.stack, *(1,) * len(operator.domain))


@diagonal_of.register
def _(operator: BlockDiagonal) -> Tensor:
    return operator.blocks.diagonal(dim1=-2, dim2=-1).flatten(-2)[..., : operator.length]


@diagonal_of.register
def _(operator: LowRank) -> Tensor:
    within = operator.basis.square().sum(-1)
    return ((operator.basis @ operator.core) * operator.basis).sum(-1) + operator.rest.unsqueeze(-1) * (1 - within)


@diagonal_of.register
def _(operator: Sketched) -> Tensor:
    return diagonal_of(operator.low_rank())


@diagonal_of.register
def _(operator: EigenCorrected) -> Tensor:
    return operator.left.square() @ operator.values @ operator.right.square().mT


def members(operator: Operator) -> int:
    """How many matrices a stack holds."""
    return max(operator.stack.numel(), 1)


def vectors_of(operator: Operator, x: Tensor) -> int:
    """How many vectors of each member `x` `[*stack, *batch, *domain]` holds."""
    return x.numel() // (members(operator) * operator.size)


def binary_scale(x: Tensor) -> Tensor:
    """The power of two at or just below the largest magnitude along the last dimension; ½ where there is none but 0."""
    peak = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    return torch.exp2(torch.frexp(peak).exponent.to(x.dtype) - 1)


def norms(x: Tensor, lead: int) -> Tensor:
    """‖x‖ over all but the first `lead` dimensions, with entries scaled first: squares of 1e-24 are 0 in float32."""
    size, scale = _scaled_norms(x, lead)
    return size * scale


def relative_residual(residual: Tensor, rhs: Tensor, stack: int) -> Tensor:
    """‖r‖/‖b‖ over all right-hand sides of a member, `[*stack]`, at any scale of b; 0/0 counts as 0, r/0 as infinite."""
    error, error_scale = _scaled_norms(residual, stack)
    size, size_scale = _scaled_norms(rhs, stack)
    return torch.where(error == 0, 0.0, (error / size) * (error_scale / size_scale))


def _scaled_norms(x: Tensor, lead: int) -> tuple[Tensor, Tensor]:
    """Norm of x over its scale, and the scale."""
    flat = x.unsqueeze(-1).flatten(lead)
    scale = binary_scale(flat)
    return (flat / scale.unsqueeze(-1)).norm(dim=-1), scale


def better_than_nothing(x: Tensor, rhs: Tensor, residual: Tensor, stack: int) -> Tensor:
    """Whether x is nearer to M⁻¹b than 0 is in the norm of M, bool `[*stack]`; for b = 0 whether x is 0.

    ‖x − M⁻¹b‖_M² < ‖M⁻¹b‖_M² is xᵀ(2b − Mx) > 0, and 2b − Mx is b + r.
    """
    values, towards = (v.unsqueeze(-1).flatten(stack) for v in (x, rhs + residual))
    values, towards = (v / binary_scale(v).unsqueeze(-1) for v in (values, towards))
    absent = (rhs == 0).unsqueeze(-1).flatten(stack).all(-1) & (values == 0).all(-1)
    return ((values * towards).sum(-1) > 0) | absent


def finite_members(x: Tensor, stack: int) -> Tensor:
    """Which members hold finite numbers only, bool `[*stack]`."""
    return torch.isfinite(x).unsqueeze(-1).flatten(stack).all(-1)


def mark_nonfinite(codes: Tensor, x: Tensor) -> Tensor:
    """Outcome codes `[*stack]`, with NONFINITE for members that were usable and whose `x` `[*stack, …]` is not finite."""
    good = finite_members(x, codes.ndim) | ~usable(codes)
    return torch.where(good, codes, Outcome.NONFINITE.code).to(torch.int8)


def over(weights: Tensor, x: Tensor) -> Tensor:
    """`weights` `[*lead]` reshaped to multiply or mask `x` `[*lead, …]`."""
    return weights.reshape(*weights.shape, *(1,) * (x.ndim - weights.ndim))
