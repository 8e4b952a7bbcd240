"""Networks as shapes: what a step of them asks for is counted on torch's `meta` device, without data, memory or time.

Sizes are those of the papers that made them; where a predicted time depends on a batch, the batch is named here too. Norms,
embeddings and the output layer of a language model are left to AdamW, as users of K-FAC do: a factor of vocabulary size is out
of reach of every method here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.experiments.experiment import Experiment, Loss


def without_norms(name: str, module: nn.Module) -> bool:
    """True for norms and embeddings, and for a layer called `head`: AdamW trains them."""
    return isinstance(module, nn.LayerNorm | nn.Embedding) or name == "head"


@dataclass(frozen=True)
class Network:
    """A network and a batch for it, as shapes.

    Args:
        name: as on the command line.
        title: for people, with its sizes.
        source: where the sizes come from.
        model: builds it, under the default device.
        batch: makes inputs and, last, targets, under the default device.
        loss: of output and targets.
        skip: layers that AdamW trains.
    """

    name: str
    title: str
    source: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, ...]]
    loss: Loss
    skip: Callable[[str, nn.Module], bool] | None = None


def shapes_of(experiment: Experiment, *, batch_size: int | None = None) -> Network:
    """The shapes of a recipe; loads its data once, to see what a batch of them looks like."""
    size = batch_size or experiment.batch_size
    sample = experiment.source.load().train.batch(torch.arange(1))

    def batch() -> tuple[Tensor, ...]:
        return tuple(torch.empty(size, *t.shape[1:], dtype=t.dtype) for t in sample)

    title = f"{experiment.name}, batch {size}"
    return Network(experiment.name, title, "the recipe", experiment.model, batch, experiment.loss)


class Block(nn.Module):
    """A transformer block; `fused` projects queries, keys and values by one matrix."""

    def __init__(self, width: int, heads: int, *, causal: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        sizes = [3 * width] if fused else [width] * 3
        self.into = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, S, width]` to the same."""
        y = self.norms[0](x)
        parts = torch.cat([layer(y) for layer in self.into], -1).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.gelu(self.up(y)))


class VisionTransformer(nn.Module):
    """Patches of 16 × 16 pixels, blocks, the mean over positions, a linear head."""

    def __init__(self, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False, fused=False) for _ in range(depth)))
        self.classify = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` to logits `[B, classes]`."""
        logits: Tensor = self.classify(self.blocks(self.patches(images).flatten(2).transpose(1, 2)).mean(1))
        return logits


class Decoder(nn.Module):
    """Token embedding, causal blocks, and an output layer over the vocabulary."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True, fused=True) for _ in range(depth)))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, S]` to logits `[B, vocabulary, S]`."""
        logits: Tensor = self.head(self.blocks(self.embed(tokens)))
        return logits.transpose(1, 2)


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())


class MessagePassing(nn.Module):
    """One step of a graph network: edges, then nodes, then the whole graph, each from all that is near it."""

    def __init__(self, node: int, overall: int, hidden: int) -> None:
        super().__init__()
        self.edge, self.node = _layer(3 * node + overall, hidden), _layer(3 * node + overall, hidden)
        self.overall = _layer(2 * node + overall, hidden)

    def forward(
        self, nodes: Tensor, edges: Tensor, overall: Tensor, ends: Tensor, owners: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes `[V, d]`, edges `[E, d]`, graphs `[G, d]`; ends `[2, E]` and owners `[V]`, `[E]` are indices."""
        edges = self.edge(torch.cat([edges, nodes[ends[0]], nodes[ends[1]], overall[owners[1]]], -1))
        near = [torch.zeros_like(nodes).index_add(0, end, edges) for end in ends]
        nodes = self.node(torch.cat([nodes, *near, overall[owners[0]]], -1))
        pooled = [nodes.new_zeros(len(overall), values.shape[-1]) for values in (nodes, edges)]
        sums = [p.index_add(0, owner, v) for p, owner, v in zip(pooled, owners, (nodes, edges), strict=True)]
        return nodes, edges, self.overall(torch.cat([*sums, overall], -1))


class GraphNetwork(nn.Module):
    """Five rounds of message passing with latent size 256, 128 tasks."""

    def __init__(self, latent: int = 256, rounds: int = 5, tasks: int = 128) -> None:
        super().__init__()
        self.tasks = tasks
        self.atoms, self.bonds = nn.Linear(9, latent), nn.Linear(3, latent)
        sizes = [tasks] + [latent] * (rounds - 1)
        self.rounds = nn.ModuleList(MessagePassing(latent, overall, latent) for overall in sizes)
        self.decode = nn.Linear(latent, tasks)

    def forward(
        self, atoms: Tensor, bonds: Tensor, ends: Tensor, atom_owner: Tensor, bond_owner: Tensor, like: Tensor
    ) -> Tensor:
        """Logits `[G, tasks]`; `like` `[G]` says how many graphs there are."""
        nodes, edges, overall = self.atoms(atoms), self.bonds(bonds), atoms.new_zeros(len(like), self.tasks)
        for layer in self.rounds:
            nodes, edges, overall = layer(nodes, edges, overall, ends, (atom_owner, bond_owner))
        logits: Tensor = self.decode(overall)
        return logits


def _molecules(graphs: int) -> tuple[Tensor, ...]:
    """Molecules of 26 atoms and 28 bonds, the means of ogbg-molpcba, each bond in both directions."""
    atoms, bonds = 26 * graphs, 56 * graphs
    indices = [torch.empty(*shape, dtype=torch.long) for shape in ((2, bonds), (atoms,), (bonds,), (graphs,))]
    return torch.empty(atoms, 9), torch.empty(bonds, 3), *indices, torch.empty(graphs, 128)


def _tokens(sequences: int, length: int) -> tuple[Tensor, ...]:
    return torch.empty(sequences, length, dtype=torch.long), torch.empty(sequences, length, dtype=torch.long)


NETWORKS = (
    Network(
        "vit-s16",
        "ViT-S/16 on ImageNet, width 384, depth 12, batch 128",
        "Dosovitskiy et al. 2020, arXiv 2010.11929, in the size of AlgoPerf, arXiv 2306.07179",
        lambda: VisionTransformer(384, 12, 6, 1000),
        lambda: (torch.empty(128, 3, 224, 224), torch.empty(128, dtype=torch.long)),
        F.cross_entropy,
        without_norms,
    ),
    Network(
        "ogbg-gnn",
        "graph network on ogbg-molpcba, 5 rounds, latent 256, batch 512",
        "AlgoPerf, arXiv 2306.07179, workload ogbg; 26 atoms and 28 bonds a molecule: Hu et al. 2020, arXiv 2005.00687",
        GraphNetwork,
        lambda: _molecules(512),
        F.binary_cross_entropy_with_logits,
        without_norms,
    ),
    Network(
        "gpt2-small",
        "GPT-2 small, width 768, depth 12, batch 8 × 1024",
        "Radford et al. 2019, Language Models are Unsupervised Multitask Learners; the output layer not tied here",
        lambda: Decoder(50257, 768, 12, 12),
        lambda: _tokens(8, 1024),
        F.cross_entropy,
        without_norms,
    ),
    Network(
        "wide-4096",
        "decoder of width 4096, depth 32, batch 4 × 2048",
        "illustrative: width and depth of LLaMA-7B (Touvron et al. 2023, arXiv 2302.13971) with GPT-2's block",
        lambda: Decoder(32000, 4096, 32, 32),
        lambda: _tokens(4, 2048),
        F.cross_entropy,
        without_norms,
    ),
)
