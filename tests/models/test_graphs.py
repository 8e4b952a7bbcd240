"""Graph networks: rows are nodes, terms of the loss are graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, ExactFisher
from tests.curvature.test_fisher import observer
from tests.curvature.truth import error, factors, fill, optimizer_for
from tests.models.networks import GIN, NETWORKS

Graphs = tuple[Tensor, Tensor, Tensor, Tensor]


def batch(count: int = 6) -> Graphs:
    x, edges, graph, y = NETWORKS["gin"].examples(count, torch.float64)
    return x, edges, graph, y


def joined(first: Graphs, second: Graphs) -> Graphs:
    """Two batches as one: numbers of nodes and graphs go on."""
    nodes, count = len(first[0]), len(first[3])
    shifted = (second[0], second[1] + nodes, second[2] + count, second[3])
    x, edges, graph, y = (
        torch.cat(pair, dim) for pair, dim in zip(zip(first, shifted, strict=True), (0, 1, 0, 0), strict=True)
    )
    return x, edges, graph, y


def found(*batches: Graphs) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of one or more micro-batches of a mean over graphs."""
    optimizer = optimizer_for(model := fill(GIN()))
    total = sum(len(b[3]) for b in batches)
    for *inputs, y in batches:
        (F.cross_entropy(model(*inputs), y, reduction="sum") / total).backward()
    return {name: (block.left.dense(), block.right.dense()) for name, block in factors(optimizer).items()}


def assert_same(one: dict[str, tuple[Tensor, Tensor]], other: dict[str, tuple[Tensor, Tensor]]) -> None:
    assert one.keys() == other.keys()
    assert len(one) == 5
    for name, sides in one.items():
        assert all(error(b, a) < 1e-12 for a, b in zip(sides, other[name], strict=True))


def test_terms_are_graphs_and_rows_are_nodes():
    *inputs, y = batch()
    optimizer = optimizer_for(model := fill(GIN()))
    F.cross_entropy(model(*inputs), y).backward()
    assert list(optimizer.capture.terms.values()) == [(6, 6)]
    counted = {place.site.name: stack.sums.counts[place.index].rows for stack in optimizer.stacks for place in stack.places}
    nodes = len(inputs[0])
    assert counted == {"layers.0.0": nodes, "layers.0.2": nodes, "layers.1.0": nodes, "layers.1.2": nodes, "head": 6}


def test_the_output_factor_is_the_number_of_graphs_times_the_sum_over_nodes():
    """B = G Σ g gᵀ with g the gradient at nodes of a mean over G graphs, which the judge asks autograd for."""
    *inputs, y = batch()
    model = fill(GIN())
    kept: list[Tensor] = []
    handle = model.layers[1][0].register_forward_hook(lambda module, args, output: kept.append(output))
    (g,) = torch.autograd.grad(F.cross_entropy(model(*inputs), y), kept)
    handle.remove()
    torch.testing.assert_close(found(batch())["layers.1.0"][0][0], 6 * g.mT @ g, rtol=1e-10, atol=1e-14)


def test_duplicated_graphs_change_nothing():
    assert_same(found(batch()), found(joined(batch(), batch())))


def test_micro_batches_of_graphs_equal_one_batch():
    first, second = batch(4), batch(7)
    assert_same(found(joined(first, second)), found(first, second))


def test_graphs_of_one_node_are_rows_of_an_mlp():
    """Without edges and with a node each, the network is an MLP of sums."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.eps, self.head = GIN().layers, nn.Parameter(torch.zeros(2)), GIN().head

        def forward(self, x: Tensor) -> Tensor:
            for eps, layer in zip(self.eps, self.layers, strict=True):
                x = layer((1 + eps) * x)
            return self.head(x / 8)

    x, y = batch()[0][:6], batch()[3]
    plain = fill(Plain())
    graphs = fill(GIN())
    plain.load_state_dict(graphs.state_dict())
    optimizer = optimizer_for(plain)
    F.cross_entropy(plain(x), y).backward()
    truth = {name: (block.left.dense(), block.right.dense()) for name, block in factors(optimizer).items()}
    optimizer = optimizer_for(graphs)
    F.cross_entropy(graphs(x, torch.zeros(2, 0).long(), torch.arange(6)), y).backward()
    got = {name: (block.left.dense(), block.right.dense()) for name, block in factors(optimizer).items()}
    assert_same(truth, got)


class Nodes(nn.Module):
    """A network that classifies nodes; which of them count is the caller's business."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.layer(x).tanh()
        return self.head(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))


def test_masked_nodes_make_curvature_too_large_rather_than_too_small_and_observing_them_mends_it():
    x, edges, _, _ = batch()
    nodes, y = len(x), torch.arange(len(x)) % 3
    mask = torch.arange(nodes) % 4 == 0
    terms = int(mask.sum())
    model = fill(Nodes())
    optimizer = optimizer_for(model)
    F.cross_entropy(model(x, edges)[mask], y[mask]).backward()
    left = factors(optimizer)["head"].left.dense()[0]
    gamma = (model(x, edges).softmax(1) - F.one_hot(y, 3)).detach()[mask]
    truth = gamma.mT @ gamma / terms
    torch.testing.assert_close(left, truth * nodes / terms, rtol=1e-10, atol=1e-13)

    model = fill(Nodes())
    optimizer = observer(model, ExactFisher(Categorical()))
    outputs = optimizer.observe(model(x, edges), mask=mask)
    F.cross_entropy(outputs[mask], y[mask]).backward()
    left = factors(optimizer)["head"].left.dense()[0]
    p = outputs.softmax(1).detach()[mask]
    torch.testing.assert_close(left, (torch.diag(p.sum(0)) - p.mT @ p) / terms, rtol=1e-10, atol=1e-13)
