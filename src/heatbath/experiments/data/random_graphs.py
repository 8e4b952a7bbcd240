"""Random graphs in the mean shape of ogbg-molpcba: for what a step costs, and for nothing else.

A molecule of ogbg-molpcba has 26.0 atoms and 28.1 bonds on average (Hu et al. 2020, arXiv 2005.00687, table 2) and 128 tasks;
here every graph has 26 nodes and 28 edges, each in both directions. Features and labels are random numbers.
"""

from __future__ import annotations

import torch

from heatbath.experiments.data.base import Dataset, Source
from heatbath.experiments.data.graphs import Graphs

NODES, EDGES, TASKS = 26, 28, 128
ATOMS, BONDS = 9, 3  # features of a node and of an edge
TRAIN, TEST = 1024, 32


def load_random_graphs() -> Dataset:
    """The same graphs each time; features are float32."""
    source = "random graphs made by this program; shapes only, for predictions of time and energy: nothing can be learned"
    return Dataset("random-graphs", source, _graphs(TRAIN, seed=0), _graphs(TEST, seed=1))


def _graphs(count: int, *, seed: int) -> Graphs:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(NODES, (count * EDGES, 2), generator=generator)
    both = torch.stack([ends, ends.flip(1)], dim=1).reshape(-1, 2)
    return Graphs(
        torch.randn(count * NODES, ATOMS, generator=generator),
        both.T.contiguous(),
        torch.randn(count * EDGES, BONDS, generator=generator).repeat_interleave(2, dim=0),
        torch.full((count,), NODES),
        torch.full((count,), 2 * EDGES),
        torch.randint(2, (count, TASKS), generator=generator).float(),
    )


random_graphs = Source(
    "random-graphs",
    "random graphs in the mean shape of ogbg-molpcba, made here: for predictions of time and energy",
    load_random_graphs,
    shapes_only=True,
)
