from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heatbath.experiments.data.graphs import Graphs, NodeLabels
from heatbath.experiments.data.random_graphs import random_graphs

SIZES, BONDS = [3, 1, 4, 2], [4, 0, 6, 2]  # the second graph has no edge


def split(generator: torch.Generator) -> Graphs:
    edges = [torch.randint(n, (2, e), generator=generator) for n, e in zip(SIZES, BONDS, strict=True)]
    return Graphs(
        torch.arange(sum(SIZES))[:, None].to(torch.int8),
        torch.cat(edges, dim=1).to(torch.int16),
        10 + torch.arange(sum(BONDS))[:, None].to(torch.int8),
        torch.tensor(SIZES),
        torch.tensor(BONDS),
        torch.arange(4.0)[:, None],
    )


def alone(graphs: Graphs, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, edges and bonds of one graph, by slices."""
    n, e = sum(SIZES[:number]), sum(BONDS[:number])
    edges = slice(e, e + BONDS[number])
    return graphs.nodes[n : n + SIZES[number]], graphs.edges[:, edges], graphs.bonds[edges]


@pytest.mark.parametrize("chosen", [[2], [1], [3, 0], [0, 1, 2, 3], [2, 2]])
def test_a_batch_holds_each_graph_with_its_edges_renumbered(chosen: list[int], generator: torch.Generator) -> None:
    graphs = split(generator)
    nodes, edges, bonds, node_counts, edge_counts, target = graphs.batch(torch.tensor(chosen))
    assert (node_counts.tolist(), edge_counts.tolist()) == ([SIZES[c] for c in chosen], [BONDS[c] for c in chosen])
    assert target.flatten().tolist() == chosen
    n = e = 0
    for number in chosen:
        expected = alone(graphs, number)
        assert torch.equal(nodes[n : n + SIZES[number]], expected[0])
        assert torch.equal(edges[:, e : e + BONDS[number]] - n, expected[1])
        assert torch.equal(bonds[e : e + BONDS[number]], expected[2])
        n, e = n + SIZES[number], e + BONDS[number]
    assert (len(nodes), edges.shape[1]) == (n, e)
    assert {nodes.dtype, edges.dtype, bonds.dtype} == {torch.int64}


def test_taking_graphs_and_batching_them_commute(generator: torch.Generator) -> None:
    graphs, chosen = split(generator), torch.tensor([3, 1, 0])
    taken = graphs.take(chosen)
    assert len(taken) == 3
    for a, b in zip(taken.batch(torch.tensor([2, 0])), graphs.batch(chosen[[2, 0]]), strict=True):
        assert torch.equal(a, b)


def test_counts_that_do_not_add_up_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="a split of 4 graphs should hold 11 nodes and 12 edges by its counts, got 10 nodes"):
        replace(split(generator), node_counts=torch.tensor([3, 1, 4, 3]))


def test_labelled_nodes_come_with_the_whole_graph() -> None:
    features, edges = torch.randn(5, 2), torch.tensor([[0, 1], [1, 0]])
    labels = NodeLabels(features, edges, torch.tensor([4, 2, 0]), torch.tensor([1, 0, 1])).to(torch.device("cpu"))
    whole, ends, nodes, target = labels.batch(torch.tensor([2, 1]))
    assert torch.equal(whole, features)
    assert torch.equal(ends, edges)
    assert (nodes.tolist(), target.tolist(), len(labels)) == ([0, 2], [1, 0], 3)


def test_random_graphs_have_the_mean_shape_of_molpcba_and_say_what_they_are() -> None:
    dataset = random_graphs.load()
    nodes, edges, bonds, node_counts, edge_counts, target = dataset.train.batch(torch.arange(3))
    assert (nodes.shape, edges.shape, bonds.shape, target.shape) == ((78, 9), (2, 168), (168, 3), (3, 128))
    assert node_counts.tolist() == [26] * 3
    assert edge_counts.tolist() == [56] * 3
    assert random_graphs.shapes_only
    assert "shapes only" in dataset.source
    assert torch.equal(edges[:, 0::2], edges[:, 1::2].flip(0))  # both directions
