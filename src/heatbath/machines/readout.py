"""What a host makes of single reads: observers over one iterator of them.

Each takes reads x `[*stack, m, c, n]` in chunks, in time order, and keeps what it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from heatbath.machines.device import RawReads


class Observer(Protocol):
    """Something to keep of reads."""

    def observe(self, reads: Tensor) -> None:
        """Take the next reads, `[*stack, m, c, n]`."""


@dataclass
class SecondMoment:
    """Σ x xᵀ, `[*stack, n, n]`, over all reads."""

    total: Tensor | float = 0.0

    def observe(self, reads: Tensor) -> None:
        rows = reads.flatten(-3, -2)
        self.total = self.total + rows.mT @ rows


@dataclass
class LaggedMoment:
    """Σ_j x_j x_{j+1}ᵀ, `[*stack, n, n]`, over neighbouring reads of one drive."""

    total: Tensor | float = 0.0
    last: Tensor | None = None

    def observe(self, reads: Tensor) -> None:
        joined = reads if self.last is None else torch.cat([self.last, reads], -2)
        self.total = self.total + (joined[..., :-1, :].mT @ joined[..., 1:, :]).sum(-3)
        self.last = reads[..., -1:, :]


class Samples:
    """The reads themselves, `[*stack, m, k, n]`."""

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []

    def observe(self, reads: Tensor) -> None:
        self.chunks.append(reads)

    @property
    def values(self) -> Tensor:
        """All of them."""
        return torch.cat(self.chunks, -2)


@dataclass(frozen=True, eq=False)
class Observed:
    """What watching told besides: readings out of range, int64 `[*stack]`, and machines that were late, bool `[*stack]`."""

    clipped: Tensor
    late: Tensor


def watch(chunks: Iterable[RawReads], observer: Observer) -> Observed:
    """Show every chunk of reads to an observer."""
    clipped: Tensor | int = 0
    late: Tensor | bool = False
    for raw in chunks:
        observer.observe(raw.codes * raw.unit.unsqueeze(-2))
        clipped = clipped + raw.railed.sum((-3, -2, -1), dtype=torch.int64)
        late = late | raw.late
    return Observed(torch.as_tensor(clipped), torch.as_tensor(late))
