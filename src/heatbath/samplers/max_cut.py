"""Maximum cut by annealing: split a graph's nodes in two so that the weight of the edges between the parts is largest.

    cut(m) = Σ_{i<j} w_ij (1 − m_i m_j)/2,    so the largest cut is the ground state of couplings J = −w

(Barahona 1982; Lucas 2014, arXiv 1302.5843). A network of probabilistic bits is cooled: β rises geometrically from a start
where spins hardly see each other to an end where they follow every neighbour. The cut found is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines import Ising, Order, PbitMachine
from heatbath.work import Work


@dataclass(frozen=True, eq=False)
class Cut:
    """The best cut of all chains, and all of them.

    Args:
        sides: −1 or 1 for each node, `[n]`.
        value: weight of the cut, by the weights as given, not as held.
        values: that of each chain, `[chains]`.
        work: what it asked of hardware.
    """

    sides: Tensor
    value: float
    values: Tensor
    work: Work


def cut_value(weights: Tensor, sides: Tensor) -> Tensor:
    """Weight between the sides: `[n, n]` and `[*batch, n]` to `[*batch]`."""
    m = sides.to(weights.dtype)
    return 0.25 * (weights.sum() - ((m @ weights) * m).sum(-1))


def max_cut(
    weights: Tensor,
    machine: PbitMachine,
    *,
    sweeps: int = 500,
    chains: int = 32,
    order: Order = Order.CHROMATIC,
    generator: torch.Generator | None = None,
) -> Cut:
    """Anneal a network of probabilistic bits towards a maximum cut.

    Args:
        weights: w, `[n, n]`, symmetric with zero diagonal, ≥ 0 for an ordinary cut.
        machine: the machine.
        sweeps: updates of every bit; more find larger cuts.
        chains: independent annealings; the best counts.
        order: in which bits are updated.
        generator: source of randomness.

    Raises:
        ValueError: weights that are not symmetric or finite, have a diagonal, or are all 0; fewer than 2 sweeps.
    """
    if sweeps < 2:
        raise ValueError(f"annealing needs at least 2 sweeps, got {sweeps}")
    network = machine.program(Ising(-weights, torch.zeros_like(weights[..., 0])))
    pull = float(weights.abs().sum(-1).max())
    if pull == 0:
        raise ValueError("weights are all 0: there is nothing to cut")
    smallest = float(weights.abs()[weights != 0].min())
    ladder = torch.logspace(torch.tensor(0.1 / pull).log10().item(), torch.tensor(5 / smallest).log10().item(), sweeps)
    samples = machine.run(network, beta=ladder, chains=chains, order=order, generator=generator)
    values = cut_value(weights, samples.spins[-1])
    best = int(values.argmax())
    return Cut(samples.spins[-1, best], float(values[best]), values, network.write + samples.work)
