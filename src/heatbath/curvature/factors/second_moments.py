"""Second moments of gradients along given axes, for eigenvalue-corrected curvature.

With a basis U_B ⊗ U_A, an example's gradient G = Σ_s g_s a_sᵀ has coordinates (U_Bᵀ G U_A)_{oi}. Summing their squares over
examples, scaled like the output factor, gives S of EKFAC (George et al. 2018, arXiv 1806.03884). Without shared positions the
square of a product is the product of squares, one matrix product for all examples; with them each example's gradient is
formed, a few at a time. Uses of a weight in different calls of one pass count as examples of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.layers import OneHot, Rows
from heatbath.operators import EigenCorrected
from heatbath.work import Work, matmul

CHUNK = 2**24  # numbers of per-example gradients held at a time


@dataclass(eq=False)
class SquareSums:
    """Running sums Σ (U_Bᵀ G U_A)² for a stack of L blocks.

    Args:
        basis: the axes; its values play no part.
        total: `[L, O, I]`.
    """

    basis: EigenCorrected
    total: Tensor

    @staticmethod
    def zeros(basis: EigenCorrected) -> SquareSums:
        """Empty sums along the axes of `basis`."""
        return SquareSums(basis, torch.zeros_like(basis.values))

    def add(self, span: slice, rows: Rows) -> Work:
        """Add the rows of one block to its places, in place; returns the products."""
        assert not isinstance(rows.inputs, OneHot)  # such stacks have no dense right side, hence no basis
        places, batch, positions, _ = rows.outputs.shape
        left, right = self.basis.left[span], self.basis.right[span]
        g = rows.outputs.to(left.dtype) @ left.unsqueeze(1)
        a = rows.inputs.to(right.dtype) @ right.unsqueeze(1)
        out, inputs = g.shape[-1], a.shape[-1]
        count = batch * positions
        work = Work.of(matmul(count, out, out), places) + Work.of(matmul(count, inputs, inputs), places)
        if positions == 1:
            self.total[span].baddbmm_(g[:, :, 0].square().mT, a[:, :, 0].square())
            return work + Work.of(matmul(out, batch, inputs), places)
        step = max(1, CHUNK // (places * out * inputs))
        for g_part, a_part in zip(g.split(step, 1), a.split(step, 1), strict=True):
            self.total[span] += (g_part.mT @ a_part).square().sum(1)
        return work + Work.of(matmul(out, positions, inputs), places * batch)
