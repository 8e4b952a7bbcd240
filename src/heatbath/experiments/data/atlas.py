"""All graphs of up to seven nodes, which ship with networkx (Read & Wilson, An Atlas of Graphs, 1998): 1,252 of them.

They stand in for molecules, in the same form: the degree of a node is its only category that varies, and six properties of a
graph are the tasks. Every fifth graph is for testing, the one after it for validation.
"""

from __future__ import annotations

import torch

from heatbath.experiments.data.base import Dataset
from heatbath.experiments.data.graphs import Graphs

ATOMS, BONDS, DEGREE = 9, 3, 2  # columns of features, and the one of the degree


def load_atlas(tasks: int, *, why: str) -> Dataset:
    """The atlas as molecules.

    Args:
        tasks: how many a target has room for; those beyond the six properties have no labels.
        why: why the set that was asked for is not used; goes into the record.
    """
    import networkx as nx
    from networkx.generators.atlas import graph_atlas_g

    found = [graph for graph in graph_atlas_g() if len(graph)]
    pairs = [torch.tensor(list(graph.edges), dtype=torch.int64).reshape(-1, 2) for graph in found]
    edges = [torch.cat([one, one.flip(1)]) for one in pairs]
    degrees = torch.tensor([degree for graph in found for _, degree in sorted(graph.degree)])
    nodes = torch.zeros(len(degrees), ATOMS, dtype=torch.int64)
    nodes[:, DEGREE] = degrees
    tests = (nx.is_connected, nx.is_bipartite, nx.is_forest, nx.is_eulerian, nx.is_regular)
    target = torch.full((len(found), tasks), torch.nan)
    target[:, : len(tests)] = torch.tensor([[float(test(graph)) for test in tests] for graph in found])
    target[:, len(tests)] = torch.tensor([float(any(nx.triangles(graph).values())) for graph in found])
    joined = torch.cat(edges)
    graphs = Graphs(
        nodes,
        joined.T.contiguous(),
        torch.zeros(len(joined), BONDS, dtype=torch.int64),
        torch.tensor([len(graph) for graph in found]),
        torch.tensor([len(one) for one in edges]),
        target,
    )
    part = torch.arange(len(found)) % 5
    train, valid, test = (graphs.take(chosen.nonzero()[:, 0]) for chosen in (part > 1, part == 1, part == 0))
    source = f"ships with networkx, all graphs of up to seven nodes and six of their properties; a stand-in, because {why}"
    return Dataset("graph-atlas", source, train, test, valid)
