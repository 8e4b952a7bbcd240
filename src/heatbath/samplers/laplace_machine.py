"""Weights drawn from a Laplace posterior by a machine at equilibrium.

A machine of n cells that holds M is distributed as N(0, M⁻¹) (`heatbath.machines.voltages`), but Λ = B ⊗ A + δI has O·I rows.
In the eigenbasis of B alone it falls into O blocks, one for each row of the rotated weights,

    W − W* = U_B Y,    y_o ~ N(0, M_o⁻¹),    M_o = β_o A + δI

so a fleet of O machines with I cells each samples the posterior itself, exact damping included; the digital side
diagonalizes B and turns the readings. The smaller side is the one that is diagonalized. Each M_o is scaled to a unit
diagonal D first. Its slowest mode then relaxes within τ · max D/δ, as xᵀM_o x ≥ δ xᵀx ≥ (δ/max D) xᵀD x: a bound that needs
no spectrum. It is one of M_o: rounding may hold a matrix whose slowest mode is slower, short of indefinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines import Machine
from heatbath.operators import Dense, Diagonal, Operator
from heatbath.samplers.gaussian import CLIPS, Draws, read_scaled
from heatbath.samplers.laplace import Laplace, PosteriorBlock, WeightDraws, unpack_draws
from heatbath.work import Work, matmul

SETTLED = 12.0  # relaxation times of the slowest mode: a variance is then short of e⁻²⁴ of itself
FLEET_NUMBERS = 2**24  # most matrix entries that are emulated at once


def sample_weights_on(
    posterior: Laplace,
    machine: Machine,
    samples: int,
    *,
    burn_in: float | None = None,
    interval: float | None = None,
    chains: int = 1,
    generator: torch.Generator | None = None,
) -> WeightDraws:
    """Draw weights by reading machines that hold the posterior's precision.

    Args:
        posterior: from `fit_laplace`.
        machine: with noise that is small against full scale, since the widest mode is √(max diag(M_o)/δ) times as wide as one
            cell's; clipped readings are counted.
        samples: S, over all chains.
        burn_in: seconds before the first reading; None: until settled by the bound above.
        interval: seconds between readings of one chain; None: as `burn_in`, so that they are independent.
        chains: machines at work side by side on each block; divides S.
        generator: source of randomness.

    Raises:
        ValueError: no samples or chains, chains that do not divide the samples, a machine with too few cells for the smaller
            side of a layer, without noise, or on which rounding made a precision indefinite.
    """
    if samples < 1 or chains < 1 or samples % chains:
        raise ValueError(f"samples and chains must be at least 1 and chains divide samples, got {samples} and {chains}")
    job = _Job(machine, samples // chains, chains, burn_in, interval, generator)
    drawn, work, notes = [], Work(), dict.fromkeys(CLIPS, 0)
    for block in posterior.blocks:
        values, used, counts = _sample_block(block, job)
        drawn.append(block.mean + values)
        work = work + used
        notes = {name: notes[name] + counts[name] for name in notes}
    return WeightDraws(unpack_draws(posterior, drawn), work, notes)


@dataclass(frozen=True, eq=False)
class _Job:
    """How machines are read."""

    machine: Machine
    reads: int
    chains: int
    burn_in: float | None
    interval: float | None
    generator: torch.Generator | None

    def read(self, precision: Tensor, slowest: float) -> Draws:
        """Samples of N(0, M⁻¹) for M `[K, n, n]`, whose eigenvalues are `slowest` and more."""
        diagonal = precision.diagonal(dim1=-2, dim2=-1)
        settled = SETTLED * self.machine.spec.time_constant * float(diagonal.max()) / slowest
        burn_in = settled if self.burn_in is None else self.burn_in
        return read_scaled(
            self.machine,
            precision,
            reads=self.reads,
            interval=burn_in if self.interval is None else self.interval,
            burn_in=burn_in,
            chains=self.chains,
            generator=self.generator,
        )


def _sample_block(block: PosteriorBlock, job: _Job) -> tuple[Tensor, Work, dict[str, int]]:
    """Draws of W − W*, `[S, P, O, I]`, with work and clip counts."""
    spectrum, places = block.spectrum, block.mean.shape[0]
    right = _on_machine(block, job.machine.spec.cells)
    held = (block.curvature.right if right else block.curvature.left).dense()  # [P, n, n]
    basis, other = (spectrum.left, block.curvature.left) if right else (spectrum.right, block.curvature.right)
    weights = _eigenvalues(other, basis)  # [P, m]
    n, identity = held.shape[-1], torch.eye(held.shape[-1], dtype=held.dtype, device=held.device)
    rows, work, counts = [], Work(), dict.fromkeys(CLIPS, 0)
    pairs = [(p, w) for p in range(places) for w in weights[p].split(max(1, FLEET_NUMBERS // n**2))]
    for place, some in pairs:
        precision = some[:, None, None] * held[place] + block.prior * identity
        draws = job.read(0.5 * (precision + precision.mT), block.prior)
        rows.append(draws.values.flatten(1, 2))
        work, counts = work + draws.work, {name: counts[name] + draws.notes[name] for name in counts}
    y = torch.cat(rows).unflatten(0, (places, -1)).movedim(2, 0)  # [S, P, m, n]
    y = y if basis is None else basis @ y
    samples, m = len(y), weights.shape[-1]
    work = work + Work.of(matmul(m, m, n), samples * places)
    return (y if right else y.mT), work, counts


def _on_machine(block: PosteriorBlock, cells: int | None) -> bool:
    """Whether the machine holds the input side A, rather than B."""
    _, out, inputs = block.mean.shape
    fits = [cells is None or n <= cells for n in (out, inputs)]
    if not any(fits):
        raise ValueError(
            f"the layer {block.site.name!r} needs machines of {min(out, inputs)} cells, this one has {cells}: "
            "choose other layers"
        )
    if isinstance(block.curvature.right, Diagonal):
        return not fits[0]
    return fits[1] and (inputs >= out or not fits[0])


def _eigenvalues(side: Operator, basis: Tensor | None) -> Tensor:
    """Of a side whose eigenbasis is known, `[P, n]`."""
    if basis is None:
        assert isinstance(side, Diagonal)  # Eigen turns every other side
        return side.diagonal
    assert isinstance(side, Dense)  # the only other side that factors have
    return ((side.matrix @ basis) * basis).sum(-2).clamp_min(0)
