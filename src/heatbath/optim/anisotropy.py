"""How far a preconditioner is from a mere learning rate, and how hard its factors are to hold.

With enough damping every preconditioner P becomes a multiple of the identity, and a machine then only has to return what it
was given. Whoever reports that training survives a bad machine has to show that this is not why. For P of n parameters, with
p̄ = tr P/n,

    spread          ‖P − p̄I‖_F / (p̄√n)                       the relative standard deviation of its eigenvalues
    layer spread    √( Σ_l ‖P_l − p̄_l I‖_F² / Σ_l n_l p̄_l² )   the same around a learning rate of its own for each block l
    cosine          vᵀg / (‖v‖‖g‖), v = Pg                    between what moves the parameters and the gradient

All are of P as the run's own solver applies it: quantized, noisy, or rescued by a fallback. The first two need tr P and
‖P‖_F², estimated from products with signs z at random (Hutchinson 1990): E[zᵀPz] = tr P, E‖Pz‖² = ‖P‖_F². A noisy P is
asked twice for each z, and ‖Pz‖² is taken as the product of both answers, so noise alone makes no spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from heatbath.operators import BlockDiagonal, Dense, Diagonal, EigenCorrected, Kronecker, Operator, Shifted, Sketched
from heatbath.optim.natural import NaturalGradient
from heatbath.optim.stacks import Stack

PROBES = 8


@dataclass(frozen=True)
class Anisotropy:
    """What a preconditioner is like.

    Args:
        condition: the largest condition number of a damped factor.
        median_condition: the median over factors.
        spread: relative standard deviation of the eigenvalues of P.
        layer_spread: the same within blocks.
        cosine: between the natural gradient and the gradient; None where there is no gradient.
    """

    condition: float
    median_condition: float
    spread: float
    layer_spread: float
    cosine: float | None


@torch.no_grad()
def anisotropy(
    optimizer: NaturalGradient, *, probes: int = PROBES, generator: torch.Generator | None = None
) -> Anisotropy | None:
    """Look at the preconditioner of an optimizer; changes nothing in it.

    Costs an eigendecomposition of every factor and 2·`probes` solves: for the end of a run, not for every step. Relative
    error of tr P and ‖P‖_F² about √(2/(n·probes)), n the number of directions that matter.

    Args:
        optimizer: after a step; its `.grad` are looked at if they are still there.
        probes: random vectors.
        generator: of the probes and of the solver's noise; not the optimizer's own, whose state would move on.

    Returns:
        None before the first step.

    Raises:
        ValueError: probes below 1.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    stacks = [stack for stack in optimizer.stacks if stack.mean is not None and stack.state is not None]
    if not stacks:
        return None
    conditions = torch.cat([c for stack in stacks for c in _conditions(_damped(optimizer, stack))]).double().cpu()
    moments = [_moments(optimizer, stack, probes, generator) for stack in stacks]
    traces, squares, sizes = (torch.cat(parts) for parts in zip(*moments, strict=True))
    means = traces / sizes
    within = (squares - sizes * means**2).clamp_min(0).sum() / (sizes * means**2).sum()
    n = sizes.sum()
    overall = (n * squares.sum() / traces.sum() ** 2 - 1).clamp_min(0)
    return Anisotropy(
        condition=float(conditions.max()),
        median_condition=median(conditions.tolist()),
        spread=float(overall.sqrt()),
        layer_spread=float(within.sqrt()),
        cosine=_cosine(optimizer, generator),
    )


def _damped(optimizer: NaturalGradient, stack: Stack) -> Operator:
    """The damped curvature of a stack, as the next refresh would see it."""
    curvature = stack.corrected or stack.mean
    assert curvature is not None
    return optimizer.damping(curvature, stack.boost * stack.damping(optimizer.param_groups))


def _conditions(damped: Operator) -> Iterator[Tensor]:
    """Condition numbers of what a solver has to hold, `[L]` each: of both sides, or of the whole where it has none."""
    for part in (damped.left, damped.right) if isinstance(damped, Kronecker) else (damped,):
        values = _eigenvalues(part)
        yield values.amax(-1) / values.amin(-1).clamp_min(0.0)


def _eigenvalues(operator: Operator) -> Tensor:
    """Of each member of the stack, in no order, float64 `[L, n]`.

    Raises:
        TypeError: a structure that no layerwise curvature has.
    """
    match operator:
        case Diagonal():
            return operator.diagonal.double()
        case Dense():
            return torch.linalg.eigvalsh(operator.matrix.double())
        case BlockDiagonal():
            return torch.linalg.eigvalsh(operator.filled().matrix.double()).flatten(-2)
        case Sketched():
            low = operator.low_rank()
            rest = low.rest.double().unsqueeze(-1).expand(*low.stack, low.size - low.rank)
            return torch.cat((torch.linalg.eigvalsh(low.core.double()), rest), -1)
        case EigenCorrected():
            return operator.values.double().flatten(-2)
        case Kronecker():
            left, right = _eigenvalues(operator.left), _eigenvalues(operator.right)
            return (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2)
        case Shifted():
            return _eigenvalues(operator.operator) + operator.amount.double().unsqueeze(-1)
    raise TypeError(f"no eigenvalues are known of {type(operator).__name__}")


def _moments(
    optimizer: NaturalGradient, stack: Stack, probes: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tr P, ‖P‖_F² and n of each block, float64 `[L]` on the host."""
    shape = (stack.length, probes, *stack.domain)
    signs = torch.randint(0, 2, shape, generator=generator, device=stack.boost.device)
    z = (2 * signs - 1).to(stack.dtype)
    once, again = (optimizer.solver.solve(stack.state, z, generator=generator).value.double() for _ in range(2))
    trace = (z * once).sum((-2, -1)).mean(-1).cpu()
    square = (once * again).sum((-2, -1)).mean(-1).cpu()
    return trace, square, torch.full_like(trace, stack.domain[0] * stack.domain[1])


def _cosine(optimizer: NaturalGradient, generator: torch.Generator | None) -> float | None:
    """Between natural gradient and gradient, over all blocks."""
    layout = optimizer.layout
    grads = layout.packing.gather({p: p.grad for p in layout.treated if p.grad is not None})
    if not grads:
        return None
    product, natural, plain = 0.0, 0.0, 0.0
    for i, g in grads.items():
        v = optimizer.solver.solve(optimizer.stacks[i].state, g, generator=generator).value.double()
        product += float((v * g).sum())
        natural, plain = natural + float(v.square().sum()), plain + float(g.double().square().sum())
    return product / (natural * plain) ** 0.5 if natural > 0 and plain > 0 else None
