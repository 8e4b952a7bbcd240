"""A network of probabilistic bits: spins m_i = ±1 that flip at random, each pulled by its neighbours.

    I_i = Σ_j J_ij m_j + h_i,      m_i ← sgn(tanh(β I_i) − r),  r uniform in (−1, 1)

(Camsari, Sutton & Datta 2019, arXiv 1809.04028). Updated one after the other, in whatever order, this is Gibbs sampling of

    P(m) ∝ exp(−β E(m)),           E(m) = −Σ_{i<j} J_ij m_i m_j − Σ_i h_i m_i

Bits without a coupling between them may be updated at once: a colouring of the graph gives rounds (chromatic updates). Coupled
bits may not: all at once samples another distribution. β is the inverse temperature, J symmetric with zero diagonal.
The energy is that of the JAX library thrml, whose `IsingEBM` includes β and keeps spins as booleans (True is +1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from heapq import heapify, heappop, heappush
from itertools import count
from types import MappingProxyType

import torch
from torch import Tensor

from heatbath.machines.converters import quantize
from heatbath.machines.pbits.ising import Ising
from heatbath.machines.random import uniform
from heatbath.work import Job, Work


def greedy_colours(neighbours: Sequence[Sequence[int]]) -> list[int]:
    """A colour for each node of a graph, none shared by neighbours: DSATUR (Brélaz 1979, doi 10.1145/359094.359101).

    The next node is the one whose neighbours have most colours so far, then the one with most neighbours.

    Args:
        neighbours: of each node.
    """
    colours = [-1] * len(neighbours)
    taken: list[set[int]] = [set() for _ in neighbours]
    queue = [(0, -len(near), node) for node, near in enumerate(neighbours)]
    heapify(queue)
    while queue:
        _, _, node = heappop(queue)
        if colours[node] >= 0:  # an older entry of a node that is done
            continue
        colours[node] = next(c for c in count() if c not in taken[node])
        for near in neighbours[node]:
            if colours[near] < 0 and colours[node] not in taken[near]:
                taken[near].add(colours[node])
                heappush(queue, (-len(taken[near]), -len(neighbours[near]), near))
    return colours


class Order(Enum):
    """In which order bits are updated; the value says so in words."""

    CHROMATIC = "colour by colour: bits of one colour are not coupled and update at once"
    ASYNCHRONOUS = "one bit at a time, drawn at random for each chain"


@dataclass(frozen=True)
class PbitSpec:
    """A machine made of probabilistic bits; None: not stated, or ideal.

    Args:
        name: what bills call it.
        source: where the figures were published.
        notes: what a reader should know.
        cells: bits on the machine; None: as many as needed.
        bits: bits of a coupling or bias, sign included; None: exact.
        update_seconds: time of one round, in which bits that are not coupled update at once.
        update_energy: joules of one update of one bit.
        read_energy: joules to read one bit out.
        write_energy: joules to write one bit's couplings and bias.

    Raises:
        ValueError: a figure that is not positive, or fewer than 2 bits.
    """

    name: str
    source: str | None = None
    notes: str | None = None
    cells: int | None = None
    bits: int | None = None
    update_seconds: float | None = None
    update_energy: float | None = None
    read_energy: float | None = None
    write_energy: float | None = None

    def __post_init__(self) -> None:
        for name in ("cells", "update_seconds", "update_energy", "read_energy", "write_energy"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, or None where it is not stated, got {value}")
        if self.bits is not None and self.bits < 2:
            raise ValueError(f"bits must be 2 or more (sign included), or None for exact couplings, got {self.bits}")


def z1_2026() -> PbitSpec:
    """A chip of 269,568 bits, estimated by circuit simulation before silicon."""
    return PbitSpec(
        name="z1-2026",
        source="arXiv 2608.01615, Table IV, as quoted in the documentation of the Rust crate ferrotherm",
        notes="Estimates by SPICE, no measurement; the rate of updates and the bits of a coupling are not stated.",
        cells=269_568,
        update_energy=7.09e-15,
        read_energy=1.692e-12,
        write_energy=153.6e-12,
    )


def pbit_presets() -> Mapping[str, PbitSpec]:
    """All presets by name."""
    return MappingProxyType({spec.name: spec for spec in (z1_2026(),)})


@dataclass(frozen=True, eq=False)
class PbitNetwork:
    """What a machine holds.

    Args:
        held: the model as held: couplings and biases rounded to the machine's bits.
        colours: indices of the bits of each colour.
        write: the work of writing it.
    """

    held: Ising
    colours: tuple[Tensor, ...]
    write: Work


@dataclass(frozen=True, eq=False)
class Samples:
    """What was read.

    Args:
        spins: int8 in {−1, 1}, `[reads, chains, n]`.
        work: what it asked of hardware, writing excluded.
    """

    spins: Tensor
    work: Work


class PbitMachine:
    """An emulated network of probabilistic bits.

    Args:
        spec: the machine.
    """

    def __init__(self, spec: PbitSpec) -> None:
        self.spec = spec

    def program(self, model: Ising) -> PbitNetwork:
        """Write couplings and biases, rounded to the machine's bits over their common full scale.

        Raises:
            ValueError: more spins than the machine has bits.
        """
        n, cells = model.size, self.spec.cells
        if cells is not None and n > cells:
            raise ValueError(f"a model of {n} spins does not fit machine {self.spec.name!r} of {cells} bits")
        if self.spec.bits is not None:
            scale = torch.stack((model.couplings.abs().max(), model.biases.abs().max())).max().clamp_min(1e-300)
            model = Ising(*(quantize(v, self.spec.bits, scale)[0] for v in (model.couplings, model.biases)))
        colour = greedy_colours([row.nonzero().flatten().tolist() for row in model.couplings.cpu()])
        colours = [[i for i in range(n) if colour[i] == c] for c in range(max(colour) + 1)]
        device = model.couplings.device
        numbers = float((model.couplings != 0).sum()) + n
        job = Job(self.spec.name, n, upload_bits=numbers * (self.spec.bits or 32))
        return PbitNetwork(model, tuple(torch.tensor(c, device=device) for c in colours), Work.of(job))

    def run(
        self,
        network: PbitNetwork,
        *,
        beta: Tensor | float,
        sweeps: int | None = None,
        chains: int = 1,
        read_every: int | None = None,
        order: Order = Order.CHROMATIC,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Samples:
        """Update every bit `sweeps` times, reading as it goes.

        Args:
            network: from `program`.
            beta: inverse temperature, or one for each sweep `[sweeps]` (annealing).
            sweeps: how many times all bits update; None: one for each `beta`.
            chains: independent copies of the network.
            read_every: sweeps between reads; None: one read at the end.
            order: chromatic or asynchronous.
            start: spins `[chains, n]`; None: drawn at random.
            generator: source of randomness.

        Raises:
            ValueError: no sweeps or chains, a `beta` that is negative or not one per sweep, a start that does not fit.
        """
        ladder = self._ladder(beta, sweeps)
        held = network.held
        n, dtype, device = held.size, held.couplings.dtype, held.couplings.device
        if chains < 1 or (read_every is not None and read_every < 1):
            raise ValueError(f"chains and read_every must be 1 or more, got {chains} and {read_every}")
        if start is None:
            spins = _draw(torch.zeros(chains, n, dtype=dtype, device=device), generator)
        elif tuple(start.shape) != (chains, n) or not bool((start.abs() == 1).all()):
            raise ValueError(f"start must be {chains} rows of {n} spins in {{-1, 1}}, got shape {tuple(start.shape)}")
        else:
            spins = start.to(device, dtype, copy=True)
        sweep = _chromatic if order is Order.CHROMATIC else _asynchronous
        every, reads = read_every or len(ladder), []
        if len(ladder) % every:
            raise ValueError(f"read_every must divide the number of sweeps, got {every} and {len(ladder)}")
        for k, value in enumerate(ladder, 1):
            sweep(network, spins, value, generator)
            if k % every == 0:
                reads.append(spins.to(torch.int8))
        rounds = len(network.colours) if order is Order.CHROMATIC else n
        job = Job(
            self.spec.name,
            n,
            drives=len(reads),
            settle_seconds=every * rounds * (self.spec.update_seconds or 0.0),
            conversions_out=n,
            updates=float(every * n),
        )
        return Samples(torch.stack(reads), Work.of(job, chains))

    @staticmethod
    def _ladder(beta: Tensor | float, sweeps: int | None) -> list[float]:
        values = torch.as_tensor(beta, dtype=torch.float64).reshape(-1)
        if len(values) == 1 and sweeps is not None and sweeps > 1:
            values = values.expand(sweeps)
        if not len(values) or (sweeps is not None and len(values) != sweeps):
            raise ValueError(f"sweeps must be 1 or more, with one beta for all or one for each; got {sweeps} and {len(values)}")
        if not bool((torch.isfinite(values) & (values >= 0)).all()):
            raise ValueError("beta must be finite and not negative; flip the signs of couplings and biases instead")
        return [float(v) for v in values]


def _chromatic(network: PbitNetwork, spins: Tensor, beta: float, generator: torch.Generator | None) -> None:
    """One sweep in place, colour by colour; spins `[chains, n]`."""
    held = network.held
    for bits in network.colours:
        field = spins @ held.couplings[:, bits] + held.biases[bits]
        spins[:, bits] = _draw(beta * field, generator)


def _asynchronous(network: PbitNetwork, spins: Tensor, beta: float, generator: torch.Generator | None) -> None:
    """N updates in place of bits drawn at random, for each chain its own."""
    held, (chains, n) = network.held, spins.shape
    drawn = (n * uniform((n, chains), spins, generator)).long().clamp_max(n - 1)
    for bit in drawn:
        field = (spins * held.couplings[bit]).sum(-1) + held.biases[bit]
        spins.scatter_(1, bit[:, None], _draw(beta * field, generator)[:, None])


def _draw(pull: Tensor, generator: torch.Generator | None) -> Tensor:
    """sgn(tanh(pull) − r): +1 with probability (1 + tanh)/2."""
    r = 2 * uniform(tuple(pull.shape), pull, generator) - 1
    return torch.where(torch.tanh(pull) > r, 1.0, -1.0).to(pull.dtype)
