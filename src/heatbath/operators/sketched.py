"""Large symmetric PSD matrices known by a sketch Y = AΩ with a fixed test matrix Ω `[n, r]`.

The sketch is linear in A, and so is its trace. Hence moving averages, micro-batches, sums over processes and scalings act on
sketches as they do on matrices in full, for 2nr operations a row in place of n² and nr numbers in place of n². The matrix comes
back by Nyström's formula, stabilized by a small shift ν (Tropp, Yurtsever, Udell & Cevher 2017, arXiv 1706.05736; Frangella,
Tropp & Udell 2021, arXiv 2110.02820): with Y' = Y + νΩ and Â = Y' (Ωᵀ Y')⁻¹ Y'ᵀ − νI within range(Y'),

    0 ≤ Â ≤ A + νI,    E tr(A − Â) ≤ (1 + p/(q − 1)) Σ_{j>p} λ_j    for all p + q = r, q ≥ 2,

λ_j the eigenvalues of A in descending order, the mean over Gaussian Ω (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, theorem
10.5, for A^½). In the factors Y' = QR and ΩᵀY' = LLᵀ that is Â = Q (Z Zᵀ − νI) Qᵀ with Z = R L⁻ᵀ; outside range(Q) the
`LowRank` made of it holds the mean of what is missing,

    τ = (tr A − tr Â)/(n − r) ≥ 0,

so the trace is that of A, and A itself comes back, to rounding, wherever its rank is at most r.

Deviations from the papers: 1. eigenvalues of Â are not sought, so nothing is truncated to a smaller rank, and the step calls
neither `eigh` nor `svd`; 2. what is missing is not dropped but spread as τ; 3. Ω has orthonormal columns, of the same range,
hence of the same Â, better conditioned.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators.base import Operator
from heatbath.operators.low_rank import LowRank
from heatbath.operators.tree import tree

ROUNDING = 16  # ν over ε·tr(ΩᵀY); sums over rows leave ΩᵀY symmetric PSD to a few ε


@tree
@dataclass(frozen=True, eq=False)
class Sketched(Operator):
    """Symmetric PSD matrices A + shift·I, known by sketches of A.

    Args:
        sketch: Y = AΩ, `[*stack, n, r]`, with Ω = `random_basis(n, r)`.
        mass: tr A, `[*stack]`.
        amount: the shift, `[*stack]`.

    Raises:
        ValueError: no sketch of fewer columns than rows.
    """

    sketch: Tensor
    mass: Tensor
    amount: Tensor

    def __post_init__(self) -> None:
        if self.sketch.ndim < 2 or self.sketch.shape[-1] >= self.sketch.shape[-2]:
            raise ValueError(f"a sketch is [*stack, n, r] with r < n, got shape {tuple(self.sketch.shape)}")

    @property
    def domain(self) -> torch.Size:
        return self.sketch.shape[-2:-1]

    @property
    def stack(self) -> torch.Size:
        return self.sketch.shape[:-2]

    @property
    def rank(self) -> int:
        """R."""
        return self.sketch.shape[-1]

    def low_rank(self) -> LowRank:
        """The matrices as Nyström's formula has them, 6nr² operations; NaN where ΩᵀY is not PSD to rounding, so no sketch."""
        omega = random_basis(self.size, self.rank, self.sketch.dtype, self.sketch.device)
        inner = omega.mT @ self.sketch
        inner = 0.5 * (inner + inner.mT)
        diagonal, limits = inner.diagonal(dim1=-2, dim2=-1), torch.finfo(inner.dtype)
        nu = (ROUNDING * limits.eps * diagonal.sum(-1)).clamp_min(math.sqrt(limits.tiny))  # above zero for A = 0, too
        diagonal.add_(nu.unsqueeze(-1))  # ΩᵀΩ = I
        factor, info = torch.linalg.cholesky_ex(inner)
        basis, upper = torch.linalg.qr(self.sketch + nu[..., None, None] * omega)
        half = torch.linalg.solve_triangular(factor, upper.mT, upper=False)
        core = half.mT @ half
        core.diagonal(dim1=-2, dim2=-1).sub_(nu.unsqueeze(-1))
        core = torch.where((info == 0)[..., None, None], core, math.nan)
        missing = self.mass - core.diagonal(dim1=-2, dim2=-1).sum(-1)
        rest = (missing / (self.size - self.rank)).clamp_min(0.0)
        return LowRank(basis.contiguous(), core, rest).shift(self.amount)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.low_rank().__matmul__(x)

    def dense(self) -> Tensor:
        return self.low_rank().dense()

    def trace(self) -> Tensor:
        return self.mass + self.size * self.amount

    def square_norm(self) -> Tensor:
        """An estimate, n/r ‖AΩ‖_F² of A's part: its mean over uniformly random orthonormal Ω is the squared norm itself."""
        of_sketch = self.sketch.square().sum((-2, -1)) * (self.size / self.rank)
        return of_sketch + self.amount * (2 * self.mass + self.size * self.amount)

    def shift(self, amount: Tensor | float) -> Sketched:
        return Sketched(self.sketch, self.mass, self.amount + amount)

    def scaled(self, factor: Tensor) -> Sketched:
        """The matrices times a number each, `[*stack]`."""
        return Sketched(self.sketch * factor[..., None, None], self.mass * factor, self.amount * factor)


@functools.cache  # a basis that was dropped would be made anew at each capture, and a stream may be reading it still
def random_basis(size: int, rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ω: the orthonormalized columns of a Gaussian matrix, `[n, r]`; the same for every matrix of one size.

    It depends on nothing but its shape (no generator is asked, as no stream of torch's is promised to stay), so processes agree
    and a checkpoint need not hold it. Made on the CPU in float64, once, and kept, `[n, r]` for each shape, dtype and device.

    Args:
        size: n.
        rank: r < n.
        dtype: of the result.
        device: of the result.
    """
    with torch.inference_mode(False), torch.no_grad():
        gaussian = _gaussian(size * rank).view(size, rank)
        factor = torch.linalg.cholesky(gaussian.mT @ gaussian)
        columns = torch.linalg.solve_triangular(factor, gaussian.mT, upper=False)
        return columns.mT.to(dtype).contiguous().to(device)


def _gaussian(count: int) -> Tensor:
    """Standard normal numbers, float64, by Box & Muller (1958) from the bits of `_mixed`."""
    even = count + count % 2
    uniform = (_mixed(torch.arange(1, even + 1, device="cpu")) >> 11).bitwise_and(2**53 - 1).double().add(0.5) / 2**53
    radius, angle = uniform.view(2, -1)
    radius = (-2 * radius.log()).sqrt()
    return torch.cat((radius * (2 * math.pi * angle).cos(), radius * (2 * math.pi * angle).sin()))[:count]


def _mixed(index: Tensor) -> Tensor:
    """64 random bits for each index, as SplitMix64 has them (Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195)."""
    bits = index * -7046029254386353131  # 0x9E3779B97F4A7C15 modulo 2⁶⁴; products wrap around
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
        bits = (bits ^ (bits >> shift).bitwise_and((1 << (64 - shift)) - 1)) * factor
    return bits ^ (bits >> 31).bitwise_and((1 << 33) - 1)
