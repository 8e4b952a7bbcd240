"""The Ising model: E(m) = −Σ_{i<j} J_ij m_i m_j − Σ_i h_i m_i over spins m_i = ±1, and P(m) ∝ exp(−βE(m))."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators import check_symmetric


@dataclass(frozen=True, eq=False)
class Ising:
    """Couplings and biases of spins ±1.

    Args:
        couplings: J, `[n, n]`, symmetric, zero diagonal.
        biases: h, `[n]`.

    Raises:
        TypeError: not tensors of one floating dtype.
        ValueError: shapes that do not fit, NaN or inf, J not symmetric, or a diagonal (a constant: m_i² = 1).
    """

    couplings: Tensor
    biases: Tensor

    def __post_init__(self) -> None:
        check_symmetric(self.couplings, "couplings")
        n = self.couplings.shape[-1]
        if self.couplings.ndim != 2:
            raise ValueError(f"couplings must be one matrix [n, n], got shape {tuple(self.couplings.shape)}")
        if not isinstance(self.biases, Tensor) or self.biases.dtype != self.couplings.dtype:
            raise TypeError(f"biases must be a tensor of {self.couplings.dtype}, like couplings")
        if tuple(self.biases.shape) != (n,) or not bool(torch.isfinite(self.biases).all()):
            raise ValueError(f"biases must be {n} finite numbers, got shape {tuple(self.biases.shape)}")
        if bool((self.couplings.diagonal() != 0).any()):
            raise ValueError("couplings must have a zero diagonal: m_i² = 1, so a diagonal adds a constant; set it to 0")

    @property
    def size(self) -> int:
        """Number of spins."""
        return self.couplings.shape[-1]

    def energy(self, spins: Tensor) -> Tensor:
        """E(m) = −½ mᵀJm − hᵀm of spins `[*batch, n]` in {−1, 1}: `[*batch]`."""
        m = spins.to(self.couplings.dtype)
        return -0.5 * ((m @ self.couplings) * m).sum(-1) - m @ self.biases

    def states(self) -> Tensor:
        """All 2ⁿ states `[2ⁿ, n]`, for judging samplers on small networks.

        Raises:
            ValueError: more than 20 spins.
        """
        if self.size > 20:
            raise ValueError(f"enumeration of {self.size} spins means 2^{self.size} states; at most 20 are taken")
        count = torch.arange(2**self.size)
        return 2 * ((count[:, None] >> torch.arange(self.size)) & 1).to(self.couplings.dtype) - 1

    def probabilities(self, beta: float = 1.0) -> Tensor:
        """P(m) of all 2ⁿ states, `[2ⁿ]`, in the order of `states`."""
        return torch.softmax(-beta * self.energy(self.states()), -1)
