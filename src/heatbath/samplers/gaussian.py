"""Gaussian posteriors, sampled by a machine at equilibrium (Aifer et al. 2024, arXiv 2410.01793).

Of a linear model y = Xw + ε with ε ~ N(0, σ²) and w ~ N(0, s²I) the posterior is N(Λ⁻¹b, Λ⁻¹) with

    Λ = XᵀX/σ² + I/s²,    b = Xᵀy/σ²

and a machine that holds Λ and is driven by b *is* distributed so: nothing is solved, its voltages are read. The matrix is
scaled to a unit diagonal before programming, Λ = D^{1/2} M D^{1/2}, so that few bits go a long way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heatbath.machines import Machine
from heatbath.operators import check_symmetric
from heatbath.work import Work, elementwise

CLIPS = ("drive_clipped", "read_clipped")  # counts of a `SampleReading`
RUNAWAY_SHARE = 2.0  # energy of a cell, in units of that at equilibrium, from which a machine counts as running away


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(Λ⁻¹b, Λ⁻¹), by precision and potential.

    Args:
        precision: Λ, `[n, n]`, symmetric positive definite.
        potential: b, `[n]`.

    Raises:
        TypeError: not tensors of one dtype, float32 or float64.
        ValueError: shapes that do not fit, NaN or inf, a precision that is not symmetric.
    """

    precision: Tensor
    potential: Tensor

    def __post_init__(self) -> None:
        check_symmetric(self.precision, "precision")
        if self.precision.ndim != 2:
            raise ValueError(f"precision must be one matrix [n, n], got shape {tuple(self.precision.shape)}")
        if not isinstance(self.potential, Tensor) or self.potential.dtype != self.precision.dtype:
            raise TypeError(f"potential must be a tensor of {self.precision.dtype}, like precision")
        if self.potential.shape != self.precision.shape[:1] or not bool(torch.isfinite(self.potential).all()):
            raise ValueError(f"potential must be {len(self.precision)} finite numbers, got {tuple(self.potential.shape)}")

    def mean(self) -> Tensor:
        """Λ⁻¹b, `[n]`, digitally."""
        return torch.cholesky_solve(self.potential[:, None], torch.linalg.cholesky(self.precision)).squeeze(-1)

    def covariance(self) -> Tensor:
        """Λ⁻¹, `[n, n]`, digitally."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.precision))


@dataclass(frozen=True, eq=False)
class Draws:
    """Samples, and what they took.

    Args:
        values: `[reads, chains, n]`.
        work: what it asked of hardware.
        notes: clip counts by name.
    """

    values: Tensor
    work: Work
    notes: dict[str, Any] = field(default_factory=dict)  # Any: counts and words


def linear_regression(inputs: Tensor, targets: Tensor, *, noise: float, prior: float) -> Gaussian:
    """The posterior of the weights of a linear model.

    Args:
        inputs: X, `[N, D]`.
        targets: y, `[N]`.
        noise: σ, standard deviation of the noise.
        prior: s, standard deviation of each weight before data.

    Raises:
        ValueError: standard deviations that are not positive, or shapes that do not fit.
    """
    if not noise > 0 or not prior > 0:
        raise ValueError(f"noise and prior are standard deviations and must be positive, got {noise} and {prior}")
    if inputs.ndim != 2 or targets.shape != inputs.shape[:1]:
        raise ValueError(f"inputs [N, D] and targets [N] must fit, got {tuple(inputs.shape)} and {tuple(targets.shape)}")
    precision = inputs.mT @ inputs / noise**2
    precision.diagonal().add_(prior**-2)
    return Gaussian(precision, inputs.mT @ targets / noise**2)


def slowest_relaxation(gaussian: Gaussian, machine: Machine) -> float:
    """Seconds in which the slowest mode forgets: τ/λ_min of the precision scaled to a unit diagonal, found digitally.

    Raises:
        ValueError: a precision that is not positive definite.
    """
    root = gaussian.precision.diagonal().clamp_min(0).rsqrt()
    smallest = float(torch.linalg.eigvalsh(torch.nan_to_num(root[:, None] * gaussian.precision * root))[0])
    if not smallest > 0:
        raise ValueError(
            f"the precision is not positive definite: scaled, its smallest eigenvalue is {smallest:.3g}; add a prior"
        )
    return machine.spec.time_constant / smallest


def sample_gaussian(
    gaussian: Gaussian,
    machine: Machine,
    *,
    reads: int,
    interval: float,
    burn_in: float,
    chains: int = 4,
    generator: torch.Generator | None = None,
) -> Draws:
    """Read samples off a machine that holds the precision and is driven by the potential.

    Args:
        gaussian: what to sample.
        machine: needs noise that is not small against full scale (`noise_volts_rms`), or a fine drive converter.
        reads: samples of each chain.
        interval: seconds between them; correlated unless it is several relaxation times τ/λ_min of the scaled precision.
        burn_in: seconds before the first.
        chains: independent chains.
        generator: source of randomness.

    Raises:
        ValueError: a precision whose diagonal is not positive, what `Machine.read_samples` refuses, or cells whose energy
            says that they run away.
    """
    return read_scaled(
        machine,
        gaussian.precision,
        gaussian.potential,
        reads=reads,
        interval=interval,
        burn_in=burn_in,
        chains=chains,
        generator=generator,
    )


def read_scaled(
    machine: Machine,
    precision: Tensor,
    potential: Tensor | None = None,
    *,
    reads: int,
    interval: float,
    burn_in: float,
    chains: int,
    generator: torch.Generator | None = None,
) -> Draws:
    """Program precisions scaled to a unit diagonal, read the machines, and scale the readings back.

    Args:
        machine: that holds each of them.
        precision: Λ, `[*stack, n, n]`.
        potential: b, `[*stack, n]`; None: 0, and so is the mean.
        reads: samples of each chain.
        interval: seconds between them.
        burn_in: seconds before the first.
        chains: independent chains.
        generator: source of randomness.

    Returns:
        samples of N(Λ⁻¹b, Λ⁻¹), `[*stack, reads, chains, n]`; clip counts over the stack.

    Raises:
        ValueError: a diagonal that is not positive, what `Machine.read_samples` refuses, or cells whose energy says that they
            run away.
    """
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    if not bool((diagonal > 0).all()):
        raise ValueError("a precision needs a positive diagonal; add a prior")
    root = diagonal.rsqrt()
    programmed = machine.program(root.unsqueeze(-1) * precision * root.unsqueeze(-2), generator=generator)
    reading = machine.read_samples(
        programmed,
        None if potential is None else root * potential,
        reads=reads,
        interval=interval,
        burn_in=burn_in,
        chains=chains,
        generator=generator,
    )
    _check_energy(reading.samples, root.unsqueeze(-1) * precision * root.unsqueeze(-2), machine)
    counts = {name: int(getattr(reading, name).sum()) for name in CLIPS}
    work = programmed.work + reading.work + Work.of(elementwise(reading.samples.numel()))
    return Draws(reading.samples * root[..., None, None, :], work, dict(counts))


def _check_energy(samples: Tensor, precision: Tensor, machine: Machine) -> None:
    """Equipartition: cells at equilibrium have an energy of half a unit of temperature each, and runaway ones far more.

    Args:
        samples: `[*stack, reads, chains, n]`.
        precision: what was sent, `[*stack, n, n]`.
        machine: the machine.

    Raises:
        ValueError: an energy of `RUNAWAY_SHARE` times that of equilibrium, over the reads about their mean, or no number.
    """
    rows = samples.flatten(-3, -2)
    rows = rows - rows.mean(-2, keepdim=True)
    energy = ((rows @ precision) * rows).sum(-1)
    share = energy.mean(-1) / rows.shape[-1]
    doubt = RUNAWAY_SHARE + 5 * math.sqrt(2 / (rows.shape[-1] * rows.shape[-2]))
    if not bool((share < doubt).all()):
        raise ValueError(
            f"cells of machine {machine.spec.name!r} have {float(share.max()):.3g} times the energy of equilibrium: "
            "they run away, or their noise is not what is stated; rounding may have made the precision indefinite: give the "
            "machine more matrix_bits, or a narrower prior"
        )
