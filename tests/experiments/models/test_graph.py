from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.experiments.data.graphs import Graphs
from heatbath.experiments.models.graph import (
    GCN,
    Categories,
    EntryDropout,
    GraphNetwork,
    average_precision,
    labelled_loss,
    loss_per_label,
    propagate,
)
from heatbath.recipes import ogbg_gnn

pytestmark = pytest.mark.usefixtures("seeded_doubles")


def graphs() -> Graphs:
    sizes, bonds = [4, 1, 6], [6, 0, 10]
    edges = [torch.randint(n, (2, e)) for n, e in zip(sizes, bonds, strict=True)]
    nodes, features = torch.randint(3, (11, 2)), torch.randint(2, (16, 1))
    return Graphs(nodes, torch.cat(edges, 1), features, torch.tensor(sizes), torch.tensor(bonds), torch.zeros(3, 5))


def network() -> GraphNetwork:
    return GraphNetwork(Categories((3, 3), 6), Categories((2,), 6), latent=6, rounds=2, tasks=5)


def test_graphs_in_a_batch_do_not_see_each_other() -> None:
    model, split = network(), graphs()
    together = model(*split.batch(torch.arange(3))[:-1])
    for number in range(3):
        torch.testing.assert_close(model(*split.batch(torch.tensor([number]))[:-1]), together[number : number + 1])


def test_the_order_of_nodes_and_edges_is_nothing_to_the_network() -> None:
    model = network()
    nodes, edges, bonds, node_counts, edge_counts, _ = graphs().batch(torch.tensor([2]))
    order, shuffle = torch.randperm(6), torch.randperm(10)
    moved = order.argsort()[edges][:, shuffle]
    expected = model(nodes, edges, bonds, node_counts, edge_counts)
    torch.testing.assert_close(model(nodes[order], moved, bonds[shuffle], node_counts, edge_counts), expected)


def test_a_prediction_depends_on_edges_their_direction_and_their_features() -> None:
    model = network()
    nodes, edges, bonds, *counts, _ = graphs().batch(torch.tensor([0]))
    expected = model(nodes, edges, bonds, *counts)
    for other in ((edges.flip(0), bonds), (edges, 1 - bonds)):
        assert float((model(nodes, *other, *counts) - expected).detach().abs().max()) > 1e-6


def test_categories_are_sums_of_one_hot_products() -> None:
    embed, features = Categories((3, 4, 2), 5), torch.tensor([[0, 3, 1], [2, 0, 0]])
    one_hot = torch.cat([F.one_hot(features[:, i], size) for i, size in enumerate((3, 4, 2))], dim=1)
    torch.testing.assert_close(embed(features), one_hot.double() @ embed.table.weight)


def test_algoperfs_network_has_its_layers_and_widths() -> None:
    """Shapes as in AlgoPerf's models.py (ogbg_pytorch): latent 256, graphs start as 128 zeros."""
    model = ogbg_gnn().model()
    shapes = [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Linear)]
    first = [(256, 3 * 256 + 128), (256, 3 * 256 + 128), (256, 2 * 256 + 128)]
    later = [(256, 4 * 256), (256, 4 * 256), (256, 3 * 256)]
    assert shapes == [(256, 9), (256, 3), *first, *later * 4, (128, 256)]


def test_propagation_is_the_normalized_adjacency_with_loops() -> None:
    pairs = torch.tensor([[0, 1], [1, 2], [0, 3]])
    edges = torch.cat([pairs, pairs.flip(1)]).T
    a = torch.eye(5)
    a[edges[0], edges[1]] = 1
    root = torch.diag(a.sum(1).rsqrt())
    x = torch.randn(5, 3)
    torch.testing.assert_close(propagate(x, edges), root @ a @ root @ x)


def test_a_gcn_is_two_propagated_linear_layers_at_the_nodes_asked_for() -> None:
    model, x = GCN((7, 4, 3), dropout=0.5).eval(), torch.randn(5, 7)
    edges, nodes = torch.tensor([[0, 1, 2, 4], [1, 0, 4, 2]]), torch.tensor([4, 1])
    eye = propagate(torch.eye(5), edges)
    first, second = model.hidden, model.logits
    expected = eye @ (F.relu(eye @ (x @ first.weight.T + first.bias)) @ second.weight.T + second.bias)
    torch.testing.assert_close(model(x, edges, nodes), expected[nodes])


def test_dropout_of_entries_drops_and_scales_those_that_are_not_zero() -> None:
    layer, x = EntryDropout(0.25), torch.randn(100, 100) * (torch.rand(100, 100) < 0.2)
    assert layer.eval()(x) is x
    dropped = layer.train()(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.75)
    count = int((x != 0).sum())
    assert abs(int(kept.sum()) - 0.75 * count) < 5 * (count * 0.75 * 0.25) ** 0.5  # five standard deviations of a binomial


def labelled() -> tuple[Tensor, Tensor]:
    logits, target = torch.randn(40, 3), torch.randint(2, (40, 3)).double()
    target[torch.rand(40, 3) < 0.3] = torch.nan
    return logits, target


def test_losses_count_labels_and_nothing_else() -> None:
    logits, target = labelled()
    terms = [
        F.binary_cross_entropy_with_logits(logits[b, t], target[b, t])
        for b in range(40)
        for t in range(3)
        if not target[b, t].isnan()
    ]
    torch.testing.assert_close(labelled_loss(logits, target), torch.stack(terms).sum() / 40)
    torch.testing.assert_close(loss_per_label(logits, target), torch.stack(terms).mean())


def test_missing_labels_bring_no_gradient() -> None:
    logits, target = labelled()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(labelled_loss(logits, target), logits)
    assert torch.equal(gradient != 0, ~target.isnan())


def test_average_precision_is_the_mean_precision_at_each_positive() -> None:
    logits, target = labelled()
    target[:, 2] = torch.where(target[:, 2].isnan(), torch.nan, 1.0)  # no negative: does not count
    scores = []
    for task in range(2):
        kept = ~target[:, task].isnan()
        truth = target[kept, task][logits[kept, task].argsort(descending=True)]
        precision = truth.cumsum(0) / torch.arange(1, len(truth) + 1)
        scores.append(precision[truth == 1].mean())
    torch.testing.assert_close(average_precision(logits, target).double(), torch.stack(scores).mean(), atol=1e-6, rtol=0)
