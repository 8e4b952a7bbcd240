"""Networks on graphs, in plain PyTorch: messages are sums by `index_add`, layers are linear ones that see a row for each node.

`GraphNetwork` is the network of AlgoPerf's OGB workload (Dahl et al. 2023, arXiv 2306.07179; Battaglia et al. 2018, arXiv
1806.01261, algorithm 1, with edges summed apart where they start and where they end). With e, h, u the features of edges,
nodes and graphs, φ linear → layer norm → ReLU → dropout, and s → r an edge:

    e ← φ_e(e, h_s, h_r, u),    h ← φ_h(h, Σ_out e, Σ_in e, u),    u ← φ_u(Σ h, Σ e, u)

`GCN` is Kipf & Welling 2017 (arXiv 1609.02907), h ← D^{−½}(A + I)D^{−½}(h Wᵀ + b), but that b is propagated too: it is then
the layer's homogeneous coordinate, and propagation is cheap in the narrower of the two spaces.
Every parameter lies in a layer with a curvature rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Categories(nn.Module):
    """Several categorical features as the sum of an embedding of each: int64 `[n, F]` to `[n, width]`.

    Args:
        sizes: how many categories each of the F features has.
        width: of the embeddings.
    """

    starts: Tensor

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(sizes), width)
        self.register_buffer("starts", torch.tensor([0, *accumulate(sizes[:-1])]), persistent=False)
        nn.init.normal_(self.table.weight, std=len(sizes) ** -0.5)  # so that their sum has variance 1

    def forward(self, features: Tensor) -> Tensor:
        summed: Tensor = self.table(features + self.starts).sum(1)
        return summed


class MessagePassing(nn.Module):
    """One round: edges, then nodes, then graphs.

    Args:
        latent: features of a node and of an edge, before and after.
        outer: features of a graph before.
        dropout: share of features dropped in training.
    """

    def __init__(self, latent: int, outer: int, dropout: float) -> None:
        super().__init__()
        self.of_edges = perceptron(3 * latent + outer, latent, dropout)
        self.of_nodes = perceptron(3 * latent + outer, latent, dropout)
        self.of_graphs = perceptron(2 * latent + outer, latent, dropout)

    def forward(self, state: tuple[Tensor, Tensor, Tensor], edges: Tensor, owners: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """New features.

        Args:
            state: features of nodes `[n, H]`, edges `[e, H]` and graphs `[G, U]`.
            edges: where they start and end, `[2, e]`.
            owners: the graph of each node and of each edge, `[n]` and `[e]`.
        """
        (h, e, u), (start, end), (of_node, of_edge) = state, edges, owners
        e = self.of_edges(torch.cat([e, h[start], h[end], u[of_edge]], dim=1))
        h = self.of_nodes(torch.cat([h, total(e, start, len(h)), total(e, end, len(h)), u[of_node]], dim=1))
        u = self.of_graphs(torch.cat([total(h, of_node, len(u)), total(e, of_edge, len(u)), u], dim=1))
        return h, e, u


class GraphNetwork(nn.Module):
    """Predicts tasks of graphs, `[G, tasks]`, from a batch of `heatbath.experiments.data.graphs.Graphs`.

    Args:
        nodes: embeds the features of nodes, `[n, F]` to `[n, latent]`.
        edges: embeds those of edges.
        latent: width.
        rounds: of message passing.
        tasks: outputs.
        dropout: share of features dropped in training.
    """

    def __init__(
        self, nodes: nn.Module, edges: nn.Module, *, latent: int, rounds: int, tasks: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.nodes, self.edges, self.tasks = nodes, edges, tasks
        self.rounds = nn.ModuleList(MessagePassing(latent, latent if i else tasks, dropout) for i in range(rounds))
        self.read = nn.Linear(latent, tasks)

    def forward(self, nodes: Tensor, edges: Tensor, bonds: Tensor, node_counts: Tensor, edge_counts: Tensor) -> Tensor:
        numbers = torch.arange(len(node_counts), device=nodes.device)
        owners = (
            numbers.repeat_interleave(node_counts, output_size=len(nodes)),
            numbers.repeat_interleave(edge_counts, output_size=len(bonds)),
        )
        h, e = self.nodes(nodes), self.edges(bonds)
        u = h.new_zeros(len(numbers), self.tasks)
        for step in self.rounds:
            h, e, u = step((h, e, u), edges, owners)
        logits: Tensor = self.read(u)
        return logits


class EntryDropout(nn.Module):
    """Dropout that draws for the entries that are not 0 only: the same distribution, for a fraction of the random numbers.

    Args:
        share: of entries dropped in training.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        places = x.nonzero(as_tuple=True)
        return torch.zeros_like(x).index_put(places, F.dropout(x[places], self.share))


class GCN(nn.Module):
    """Two graph convolutions, full batch: logits `[N, classes]` of the nodes asked for.

    Args:
        sizes: features, hidden width, classes.
        dropout: share of features dropped in training, before each convolution.
    """

    def __init__(self, sizes: tuple[int, int, int], *, dropout: float) -> None:
        super().__init__()
        inputs, hidden, classes = sizes
        self.of_words, self.of_hidden = EntryDropout(dropout), nn.Dropout(dropout)
        self.hidden, self.logits = nn.Linear(inputs, hidden), nn.Linear(hidden, classes)
        for layer in (self.hidden, self.logits):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, edges: Tensor, nodes: Tensor) -> Tensor:
        hidden = F.relu(propagate(self.hidden(self.of_words(features)), edges))
        return propagate(self.logits(self.of_hidden(hidden)), edges)[nodes]


def perceptron(inputs: int, width: int, dropout: float) -> nn.Sequential:
    """Linear → layer norm → ReLU → dropout."""
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(dropout))


def total(rows: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sums of rows `[r, H]` that have the same owner `[r]`, `[count, H]`."""
    return rows.new_zeros(count, rows.shape[1]).index_add(0, owner, rows)


def propagate(x: Tensor, edges: Tensor) -> Tensor:
    """D^{−½}(A + I)D^{−½} x for edges in both directions, D the degrees with the loop counted."""
    start, end = edges
    degree = torch.ones(len(x), device=x.device, dtype=x.dtype).index_add(0, end, x.new_ones(edges.shape[1]))
    scaled = x * degree.rsqrt()[:, None]
    return (scaled + total(scaled[start], end, len(x))) * degree.rsqrt()[:, None]


def labelled_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of `[B, tasks]` summed over the tasks with a label and averaged over examples, in nats; NaN is none.

    The sum makes it the negative log-likelihood of an example, however many labels it has.
    """
    return _losses(logits, target).sum() / len(target)


def loss_per_label(logits: Tensor, target: Tensor) -> Tensor:
    """The same, averaged over all labels."""
    return _losses(logits, target).sum() / (~target.isnan()).sum()


def average_precision(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over tasks of scikit-learn's average precision, as OGB judges: labelled examples, tasks with both classes only."""
    from sklearn.metrics import average_precision_score  # takes seconds to import

    scores = []
    for task in range(target.shape[1]):
        labelled = ~target[:, task].isnan()
        truth = target[labelled, task].cpu().numpy()
        if 0 < truth.sum() < len(truth):
            scores.append(float(average_precision_score(truth, logits[labelled, task].cpu().numpy())))
    return torch.tensor(scores).mean()


def _losses(logits: Tensor, target: Tensor) -> Tensor:
    """Losses of single labels, 0 where there is none."""
    losses = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
    return losses.masked_fill(target.isnan(), 0.0)
