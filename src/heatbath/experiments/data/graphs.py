"""Sets of many small graphs, and labels on the nodes of one large graph, as splits.

A batch of graphs is one graph whose parts are not joined: nodes and edges end to end, edges renumbered, and for each graph how
many nodes and edges are its own. So the tensors of a batch lead with nodes, edges or graphs, and the model says which is which.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Graphs:
    """A split of graphs.

    Args:
        nodes: features of all nodes, `[Σn, F]`.
        edges: source and end of all directed edges, as numbers of nodes within their graph, `[2, Σe]`.
        bonds: features of all edges, `[Σe, K]`.
        node_counts: n of each graph, `[G]`.
        edge_counts: e of each graph, `[G]`.
        target: `[G, tasks]`; NaN where there is no label.

    Raises:
        ValueError: counts that do not add up.
    """

    nodes: Tensor
    edges: Tensor
    bonds: Tensor
    node_counts: Tensor
    edge_counts: Tensor
    target: Tensor

    def __post_init__(self) -> None:
        counted = (int(self.node_counts.sum()), int(self.edge_counts.sum()), int(self.edge_counts.sum()))
        found = (len(self.nodes), self.edges.shape[1], len(self.bonds))
        if counted != found or not len(self.node_counts) == len(self.edge_counts) == len(self.target):
            raise ValueError(
                f"a split of {len(self.target)} graphs should hold {counted[0]} nodes and {counted[1]} edges by its counts, "
                f"got {found[0]} nodes, {found[1]} edges and features of {found[2]}"
            )

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Graphs as one: nodes `[n, F]`, edges `[2, e]`, bonds `[e, K]`, node and edge counts `[B]`, target `[B, tasks]`."""
        indices = indices.to(self.target.device)
        node_counts, edge_counts = self.node_counts[indices].long(), self.edge_counts[indices].long()
        edge_rows = rows_of(indices, self.edge_counts)
        first = node_counts.cumsum(0) - node_counts
        edges = self.edges[:, edge_rows].long() + first.repeat_interleave(edge_counts)
        nodes, bonds = self.nodes[rows_of(indices, self.node_counts)], self.bonds[edge_rows]
        return _wide(nodes), edges, _wide(bonds), node_counts, edge_counts, self.target[indices]

    def to(self, device: torch.device) -> Graphs:
        return Graphs(*(getattr(self, field.name).to(device) for field in fields(self)))

    def take(self, indices: Tensor) -> Graphs:
        """The graphs of these numbers, int64 `[G]`, as a split of their own."""
        edge_rows = rows_of(indices, self.edge_counts)
        return Graphs(
            self.nodes[rows_of(indices, self.node_counts)],
            self.edges[:, edge_rows],
            self.bonds[edge_rows],
            self.node_counts[indices],
            self.edge_counts[indices],
            self.target[indices],
        )


@dataclass(frozen=True, eq=False)
class NodeLabels:
    """A split of the labelled nodes of one graph: every batch holds the whole graph, and asks for some of its nodes.

    Args:
        features: of all nodes, `[n, F]`.
        edges: source and end of all directed edges, int64 `[2, e]`.
        nodes: numbers of the labelled nodes of this split, int64 `[N]`.
        target: their labels, int64 `[N]`.
    """

    features: Tensor
    edges: Tensor
    nodes: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.nodes)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        indices = indices.to(self.nodes.device)
        return self.features, self.edges, self.nodes[indices], self.target[indices]

    def to(self, device: torch.device) -> NodeLabels:
        return NodeLabels(*(getattr(self, field.name).to(device) for field in fields(self)))


def rows_of(indices: Tensor, counts: Tensor) -> Tensor:
    """Numbers of the rows that belong to some graphs, in their order, where the c-th graph has `counts[c]` rows."""
    counts = counts.long()
    chosen, starts = counts[indices], counts.cumsum(0) - counts
    offsets = starts[indices] - (chosen.cumsum(0) - chosen)
    return offsets.repeat_interleave(chosen) + torch.arange(int(chosen.sum()), device=counts.device)


def _wide(features: Tensor) -> Tensor:
    """Categories as int64, numbers as they are."""
    return features if features.is_floating_point() else features.long()
