"""Keeping eigenvalue-corrected curvature up to date (EKFAC; George et al. 2018, arXiv 1806.03884).

Eigenbases are found anew at each refresh, second moments S along them are averaged at each capture. When the basis turns from
U to U', Q = U'ᵀU, the corrected matrix U diag(S) Uᵀ is looked at along the new axes: its diagonal there is

    S' = (Q_B ∘ Q_B) S (Q_A ∘ Q_A)ᵀ,

which keeps the trace, so that averages live on through a turn. Until S has seen data it is K-FAC's own λ_B λ_Aᵀ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heatbath.curvature import SquareSums, average_weights
from heatbath.operators import Dense, EigenCorrected, Operator, upload
from heatbath.optim.stacks import Stack
from heatbath.solvers import Eigen
from heatbath.work import Work, matmul


def fold_squares(stack: Stack, batch: Tensor | None, decay: float) -> None:
    """Fold second moments of one batch `[L, O, I]` into the stack's average; None: there are none."""
    if batch is None or stack.corrected is None:
        return
    seen = [c.rows > 0 for c in stack.sums.counts]
    weights = upload(average_weights(stack.square_ages, seen, decay, stack.sums.spans), batch.device, batch.dtype)
    finite = torch.isfinite(batch.flatten(1).sum(1))
    weight = torch.where(finite, weights, 0.0).view(-1, 1, 1)
    old = stack.corrected.values
    new = torch.where(finite.view(-1, 1, 1), batch, 0.0)
    stack.corrected = EigenCorrected(stack.corrected.left, stack.corrected.right, old + weight * (new - old))


def correct(stack: Stack, *, rotate: bool) -> tuple[Operator, Work]:
    """The corrected curvature of a stack, and what finding it took; the mean itself where a side is not held in full.

    Args:
        stack: the stack, with a mean.
        rotate: find eigenbases anew.
    """
    mean = stack.mean
    assert mean is not None
    if not (isinstance(mean.left, Dense) and isinstance(mean.right, Dense)):
        return mean, Work()
    if stack.corrected is not None and not rotate:
        return stack.corrected, Work()
    spectrum, work = Eigen().prepare(mean)
    assert spectrum.left is not None and spectrum.right is not None
    values = spectrum.values
    if stack.corrected is not None:
        out, inputs = stack.domain
        turn_left = (spectrum.left.mT @ stack.corrected.left).square()
        turn_right = (spectrum.right.mT @ stack.corrected.right).square()
        work = work + Work.of(matmul(out, out, out), stack.length) + Work.of(matmul(inputs, inputs, inputs), stack.length)
        known = [age > 0 for age, span in zip(stack.square_ages, stack.sums.spans, strict=True) for _ in range(span)]
        turned = turn_left @ stack.corrected.values @ turn_right.mT
        values = torch.where(upload(known, values.device).view(-1, 1, 1), turned, values)
    stack.corrected = EigenCorrected(spectrum.left, spectrum.right, values)
    stack.sums.squares = SquareSums.zeros(stack.corrected)
    return stack.corrected, work
