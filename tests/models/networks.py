"""Small versions of the networks people train, each with a batch it can learn. `NETWORKS` is the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, LENGTH, WIDTH, CLASSES = 7, 6, 12, 3


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


def resnet() -> nn.Module:
    stem = (nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nn.Sequential(
        *stem, Residual(4, 4, 1), Residual(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
    )


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 5, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        x = torch.cat((self.token.expand(len(x), -1, -1), tokens), 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class CausalBlock(nn.Module):
    """Attention by `scaled_dot_product_attention` between plain linear layers, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A causal language model, its head tied to the embedding or not."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(CausalBlock(), CausalBlock())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens) + self.positions[: tokens.shape[1]])))


class Translator(nn.Module):
    """`nn.Transformer`, sources to targets."""

    def __init__(self) -> None:
        super().__init__()
        self.sources, self.targets = nn.Embedding(TOKENS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Parameter(0.5 * torch.randn(LENGTH, WIDTH))
        self.transformer = nn.Transformer(WIDTH, 2, 1, 1, 24, dropout=0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1]).to(self.positions.dtype)
        x, y = self.sources(source) + self.positions, self.targets(target) + self.positions
        return self.head(self.transformer(x, y, tgt_mask=mask, tgt_is_causal=True))


class LanguageLSTM(nn.Module):
    """Embedding, two LSTM layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(TOKENS, 8), nn.LSTM(8, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


class GIN(nn.Module):
    """A graph isomorphism network: sums over neighbours by `index_add_`, a learned ε, sum pooling (arXiv 1810.00826)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(i, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()) for i in (2, WIDTH)
        )
        self.eps = nn.Parameter(torch.zeros(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        for eps, layer in zip(self.eps, self.layers, strict=True):
            neighbours = torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])
            x = layer((1 + eps) * x + neighbours)
        pooled = x.new_zeros(int(graph.max()) + 1, x.shape[1]).index_add_(0, graph, x)
        return self.head(pooled / 8)


def autoencoder() -> nn.Module:
    encoder = (nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh())
    decoder = (nn.Linear(6, 64), nn.Tanh(), nn.Unflatten(1, (4, 4, 4)))
    return nn.Sequential(*encoder, *decoder, nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=2), nn.Conv2d(4, 2, 1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def physics() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))


# --- batches and losses: one number per example --------------------------------------------------------------------------

Batch = tuple[Tensor, ...]


def vectors(generator: torch.Generator, count: int) -> Batch:
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    return x, (x[:, :CLASSES] * x[:, 3:4].sign()).argmax(1)


def images(generator: torch.Generator, count: int) -> Batch:
    """Noise with a bright corner, which is the class."""
    x = 0.5 * torch.randn(count, 2, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.arange(count) % CLASSES
    for i, corner in enumerate(y.tolist()):
        x[i, :, 4 * (corner // 2) :, 4 * (corner % 2) :][..., :4, :4] += 1
    return x, y


def sequences(generator: torch.Generator, count: int) -> Batch:
    """Walks around a ring, a step of 1 or 2 each time, the same all along."""
    start = torch.randint(TOKENS, (count, 1), generator=generator)
    step = torch.randint(1, 3, (count, 1), generator=generator)
    walk = (start + step * torch.arange(LENGTH + 1)) % TOKENS
    return walk[:, :-1], walk[:, 1:]


def reversals(generator: torch.Generator, count: int) -> Batch:
    source = torch.randint(1, TOKENS, (count, LENGTH), generator=generator)
    target = source.flip(1)
    return source, F.pad(target[:, :-1], (1, 0)), target


def graphs(generator: torch.Generator, count: int) -> Batch:
    """Random graphs of 5 to 8 nodes in one of three densities, which is the class; features are a 1 and noise."""
    y = torch.arange(count) % CLASSES
    sizes = torch.randint(5, 9, (count,), generator=generator)
    edges, graph, first = [], [], 0
    for i, size in enumerate(sizes.tolist()):
        chance = (0.2, 0.5, 0.9)[int(y[i])]
        upper = (torch.rand(size, size, generator=generator) < chance).triu(1)
        edges.append((upper | upper.T).nonzero().T + first)
        graph.append(torch.full((size,), i))
        first += size
    noise = 0.3 * torch.randn(first, 1, generator=generator, dtype=torch.float64)
    return torch.cat((torch.ones(first, 1, dtype=torch.float64), noise), 1), torch.cat(edges, 1), torch.cat(graph), y


def points(generator: torch.Generator, count: int) -> Batch:
    """Points in the unit square and on its edge."""
    inner = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    edge = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    side = torch.arange(count)
    edge[side, side % 2] = (side // 2 % 2).double()
    return inner, edge


def classified(model: nn.Module, batch: Batch) -> Tensor:
    *inputs, y = batch
    return F.cross_entropy(model(*inputs), y, reduction="none")


def predicted(model: nn.Module, batch: Batch) -> Tensor:
    """Mean over the tokens of each sequence."""
    *inputs, y = batch
    return F.cross_entropy(model(*inputs).mT, y, reduction="none").mean(1)


def rebuilt(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[0]).square().flatten(1).mean(1)


def poisson(model: nn.Module, batch: Batch) -> Tensor:
    """−Δu = 2π² sin πx sin πy inside, u = 0 on the edge: squared residuals, by derivatives of derivatives."""
    inner, edge = batch
    inner = inner.clone().requires_grad_()
    (first,) = torch.autograd.grad(model(inner).sum(), inner, create_graph=True)
    seconds = [torch.autograd.grad(first[:, i].sum(), inner, create_graph=True)[0][:, i] for i in range(2)]
    source = 2 * torch.pi**2 * (torch.pi * inner).sin().prod(1)
    return (seconds[0] + seconds[1] + source.detach()).square() / 100 + model(edge).square().sum(1)


@dataclass(frozen=True)
class NetworkRow:
    """A network and how it is trained.

    Args:
        make: the network.
        batch: `batch(generator, examples)`; integers, and float64.
        losses: one per example, whose mean is the loss.
        steps: how many it is given to halve its loss, with the defaults of K-FAC.
        fallback: names of the parameters that AdamW is to train.
        owner: where rows are not examples: of a batch, to which example each row belongs.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator, int], Batch]
    losses: Callable[[nn.Module, Batch], Tensor]
    steps: int = 30
    fallback: tuple[str, ...] = ()
    owner: Callable[[Batch], Tensor] | None = None

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A network with fixed weights; PyTorch's global generator is put back."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return self.make().to(dtype)

    def examples(self, count: int, dtype: torch.dtype = torch.float32) -> Batch:
        """A fixed batch."""
        batch = self.batch(torch.Generator().manual_seed(1), count)
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)


NETWORKS: dict[str, NetworkRow] = {
    "mlp": NetworkRow(mlp, vectors, classified),
    "resnet": NetworkRow(resnet, images, classified, steps=15),
    "vit": NetworkRow(VisionTransformer, images, classified, fallback=("token", "positions")),
    "gpt": NetworkRow(partial(GPT, tied=False), sequences, predicted, fallback=("positions",)),
    "gpt, tied": NetworkRow(partial(GPT, tied=True), sequences, predicted, fallback=("embedding.weight", "positions")),
    "encoder-decoder": NetworkRow(Translator, reversals, predicted, 60, fallback=("positions",)),
    "lstm": NetworkRow(LanguageLSTM, sequences, predicted),
    "gin": NetworkRow(GIN, graphs, classified, 60, fallback=("eps",), owner=lambda batch: batch[2]),
    "autoencoder": NetworkRow(autoencoder, images, rebuilt, 40, fallback=("8.weight", "8.bias")),
    "physics": NetworkRow(physics, points, poisson, 80),
}
