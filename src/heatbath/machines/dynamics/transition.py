"""Affine Gaussian maps of the modes of a linear circuit, and what a reading makes of them.

Over a stretch of time the state z of a mode (its voltage y first, the reading I last) goes to

    z ↦ Φ z + γ b + N(0, Q),      then:  Φ = Φ₂Φ₁,  γ = γ₂ + Φ₂γ₁,  Q = Q₂ + Φ₂ Q₁ Φ₂ᵀ

an associative composition, so k equal stretches take 2 log₂ k of them. Between modes i, j that share noise, Q is a matrix of
blocks Q_ij ↦ Q₂,ij + Φ₂,i Q₁,ij Φ₂,jᵀ. A reading is the integral or sum I of y over its time, from a settling stretch in
which I stands still; only sums of positive terms occur, so no digits are lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.random import normal
from heatbath.operators import tree

CHUNK = 256  # reads drawn at once


@tree
@dataclass(frozen=True, eq=False)
class GaussianTransition:
    """z ↦ Φ z + γ b + N(0, Q) for every mode.

    Args:
        carry: Φ, `[*stack, n, d, d]`.
        gain: γ, `[*stack, n, d]`.
        covariance: Q, `[*stack, n, d, d]` for independent modes, `[*stack, n, n, d, d]` for modes that share noise.
    """

    carry: Tensor
    gain: Tensor
    covariance: Tensor

    @property
    def between_modes(self) -> bool:
        """Whether Q holds covariances between modes."""
        return self.covariance.ndim > self.carry.ndim

    def then(self, late: GaussianTransition) -> GaussianTransition:
        """This stretch of time, then `late`."""
        left = late.carry.unsqueeze(-3) if self.between_modes else late.carry
        right = late.carry.unsqueeze(-4) if self.between_modes else late.carry
        return GaussianTransition(
            _times(late.carry, self.carry),
            late.gain + (late.carry * self.gain.unsqueeze(-2)).sum(-1),
            late.covariance + _times(_times(left, self.covariance), right.mT),
        )

    def repeated(self, times: int) -> GaussianTransition:
        """This stretch `times` ≥ 1 times over."""
        power, total = self, None
        while True:
            if times & 1:
                total = power if total is None else total.then(power)
            times >>= 1
            if not times:
                return total or power
            power = power.then(power)

    def after_a_read(self) -> GaussianTransition:
        """Add the voltage to I, then this stretch (during which I must stand still)."""
        carry = self.carry.clone()
        carry[..., -1, 0] += 1
        return GaussianTransition(carry, self.gain, self.covariance)

    def averaged(self, weight: float) -> GaussianTransition:
        """I over `weight`."""
        scale = torch.ones(self.carry.shape[-1], dtype=self.carry.dtype, device=self.carry.device)
        scale[-1] = 1 / weight
        column = scale.unsqueeze(-1)
        return GaussianTransition(self.carry * column, self.gain * scale, self.covariance * column * scale)

    def scaled(self, noise: float) -> GaussianTransition:
        """The same with Q times `noise`."""
        return GaussianTransition(self.carry, self.gain, self.covariance * noise)

    def of_state(self) -> GaussianTransition:
        """Without I."""
        return GaussianTransition(self.carry[..., :-1, :-1], self.gain[..., :-1], self.covariance[..., :-1, :-1])


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Products of many matrices of a few rows: faster than `@`, which is made for large ones."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def walk(
    first: GaussianTransition,
    each: GaussianTransition,
    start: Tensor,
    drive: Tensor,
    reads: int,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Voltages in the modes at k times, in chunks `[*stack, m, c, n]`.

    Args:
        first: from the start to the first time, without I.
        each: from one time to the next, without I.
        start: y at the start, `[*stack, m or 1, n]`; whatever else the state has is 0.
        drive: b in the modes, `[*stack, m, n]`.
        reads: k.
        generator: source of randomness.
    """
    shape = drive.shape
    state = torch.zeros(*shape[:-1], first.carry.shape[-1], shape[-1], dtype=first.carry.dtype, device=drive.device)
    state[..., 0, :] = start
    begin, step = _Mover(first, drive), _Mover(each, drive)
    state = begin.move(state, begin.noise(state, 1, generator)[..., 0, :, :])
    chunk = max(1, CHUNK // shape[-2])
    for done in range(0, reads, chunk):
        size = min(chunk, reads - done)
        noise, rows = step.noise(state, size, generator), []
        for j in range(size):
            rows.append(state[..., 0, :])
            state = step.move(state, noise[..., j, :, :])
        yield torch.stack(rows, -2)


class _Mover:
    """One transition applied to states `[*stack, m, d, n]`."""

    def __init__(self, transition: GaussianTransition, drive: Tensor) -> None:
        self.carry = transition.carry.movedim(-3, -1).unsqueeze(-4)  # [*stack, 1, d, d, n]
        gain = transition.gain.mT.unsqueeze(-3)
        self.push = gain * drive.unsqueeze(-2).to(gain)
        self.mix = psd_root(transition.covariance[..., 0, 0]) if transition.between_modes else None
        self.root = None if transition.between_modes else _small_root(transition.covariance).movedim(-3, -1)

    def noise(self, state: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
        """Noise and drive of so many steps, `[*stack, m, steps, d, n]`."""
        shape = (*state.shape[:-2], steps, *state.shape[-2:])
        white = normal(shape, state, generator)
        if self.mix is not None:
            noise = (white[..., 0, :] @ self.mix.mT.unsqueeze(-3)).unsqueeze(-2)
        else:
            assert self.root is not None
            noise = (self.root.unsqueeze(-4).unsqueeze(-4) * white.unsqueeze(-3)).sum(-2)
        return noise + self.push.unsqueeze(-3)

    def move(self, state: Tensor, noise: Tensor) -> Tensor:
        """The next state."""
        return (self.carry * state.unsqueeze(-3)).sum(-2) + noise


def psd_root(covariance: Tensor) -> Tensor:
    """R with R Rᵀ = covariance, for matrices that may be singular."""
    values, vectors = torch.linalg.eigh(covariance.nan_to_num())
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2)


def _small_root(covariance: Tensor) -> Tensor:
    """R with R Rᵀ = covariance for 1×1 and 2×2 matrices that may be singular, `[*, d, d]`."""
    root = torch.zeros_like(covariance)
    root[..., 0, 0] = covariance[..., 0, 0].clamp(min=0).sqrt()
    if covariance.shape[-1] == 2:
        root[..., 1, 0] = covariance[..., 1, 0] / root[..., 0, 0].clamp(min=math.sqrt(torch.finfo(root.dtype).tiny))
        root[..., 1, 1] = (covariance[..., 1, 1] - root[..., 1, 0].square()).clamp(min=0).sqrt()
    return root
