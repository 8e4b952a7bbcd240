"""The tasks of `time_to_target.py`: nine kinds of network and of loss, on real data where there are data.

Each task says what its loss is, in the words of its own field: a mean over examples (classification), a sum over a batch (the
variational autoencoder), a mean over elements (the Poisson equation, molecules). That is the point: a default must not care.
Data sets are those of `heatbath.experiments.data`, looked for in the folder that HEATBATH_DATA names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.experiments.data import Dataset, held_out
from heatbath.experiments.data.cifar10 import cifar10
from heatbath.experiments.data.mnist import mnist
from heatbath.experiments.data.molecules import ATOM_CATEGORIES, BOND_CATEGORIES, TASKS, molecules
from heatbath.experiments.data.shakespeare import ALPHABET, shakespeare
from heatbath.experiments.models import VisionTransformer, autoencoder
from heatbath.experiments.models.graph import Categories, average_precision
from heatbath.experiments.models.language import GPT, CharacterLSTM

LENGTH = 64  # characters of a window
EVALUATION = 512  # examples measured at once
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Task:
    """What is trained and how it is judged.

    Args:
        name: on the command line.
        model: builds the network.
        loss: of a model on a batch.
        score: of a model, on held-out data.
        batches: endless batches of a size, the same for every contestant.
        higher: whether more is better.
        steps: length of a run.
        batch_size: examples a step.
        every: steps between two measurements.
    """

    name: str
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    score: Callable[[nn.Module], float]
    batches: Callable[[int], Iterator[Batch]]
    higher: bool
    steps: int
    batch_size: int
    every: int = 10


def load(name: str) -> Task:
    """A task by name, with its data in memory.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS_BY_NAME:
        raise ValueError(f"no task {name!r}: choose from {', '.join(TASKS_BY_NAME)}")
    return TASKS_BY_NAME[name]()


def _drawn(dataset: Dataset) -> Callable[[int], Iterator[Batch]]:
    """Batches without replacement, epoch after epoch, in an order that is the same for everybody."""

    def batches(size: int) -> Iterator[Batch]:
        order = torch.Generator().manual_seed(1)
        while True:
            permutation = torch.randperm(len(dataset.train), generator=order)
            for start in range(0, len(permutation) - size + 1, size):
                yield dataset.train.batch(permutation[start : start + size])

    return batches


def _held_out(dataset: Dataset, measure: Callable[[nn.Module, Batch], Tensor], most: int) -> Callable[[nn.Module], float]:
    """The mean of a measure over held-out examples, each weighted alike."""

    def score(model: nn.Module) -> float:
        count = min(most, len(dataset.test))
        total = 0.0
        for indices in torch.arange(count).split(EVALUATION):
            total += float(measure(model, dataset.test.batch(indices))) * len(indices)
        return total / count

    return score


def _accuracy(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]).argmax(-1) == batch[-1]).float().mean()


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[-1])


def _language_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[-1].flatten())


def mnist_autoencoder() -> Task:
    """The deep autoencoder of the K-FAC paper; binary cross-entropy, a mean over pixels and images."""
    dataset = held_out(mnist).load()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].flatten(1)
        return F.binary_cross_entropy_with_logits(model(x), x)

    def error(model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].flatten(1)
        return (torch.sigmoid(model(x)) - x).square().sum() / len(x)

    return Task("mnist-autoencoder", autoencoder, loss, _held_out(dataset, error, 2000), _drawn(dataset), False, 150, 500)


def char_gpt() -> Task:
    """A GPT of four blocks of width 128 on tiny-shakespeare by characters."""
    dataset = held_out(shakespeare(LENGTH)).load()
    return Task(
        "char-gpt",
        lambda: GPT(len(ALPHABET), LENGTH, width=128, heads=4, depth=4),
        _language_loss,
        _held_out(dataset, _language_loss, 256),
        _drawn(dataset),
        False,
        300,
        16,
        20,
    )


def char_lstm() -> Task:
    """An LSTM of 128 cells on the same text."""
    dataset = held_out(shakespeare(LENGTH)).load()
    return Task(
        "char-lstm",
        lambda: CharacterLSTM(len(ALPHABET), embedded=64, width=128),
        _language_loss,
        _held_out(dataset, _language_loss, 256),
        _drawn(dataset),
        False,
        300,
        32,
        20,
    )


def cifar_vit() -> Task:
    """A vision transformer of four blocks of width 96 on 32 × 32 pictures."""
    dataset = held_out(cifar10).load()
    return Task(
        "cifar-vit",
        lambda: VisionTransformer(size=32, patch=4, width=96, depth=4, heads=4, hidden=384, classes=10),
        _cross_entropy,
        _held_out(dataset, _accuracy, 1024),
        _drawn(dataset),
        True,
        240,
        64,
        20,
    )


def cifar_cnn() -> Task:
    """A convolutional network with batch normalization on the same pictures."""
    dataset = held_out(cifar10).load()

    def model() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))

    return Task("cifar-cnn", model, _cross_entropy, _held_out(dataset, _accuracy, 1024), _drawn(dataset), True, 240, 128, 20)


class GIN(nn.Module):
    """A graph isomorphism network (Xu et al. 2019, arXiv 1810.00826) with bonds added to messages, as OGB's baseline has it.

    Args:
        width: features of an atom.
        rounds: of message passing.
    """

    def __init__(self, width: int, rounds: int) -> None:
        super().__init__()
        self.atoms = Categories(ATOM_CATEGORIES, width)
        self.bonds = nn.ModuleList(Categories(BOND_CATEGORIES, width) for _ in range(rounds))
        self.updates = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(rounds)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(rounds))
        self.read = nn.Linear(width, TASKS)

    def forward(self, nodes: Tensor, edges: Tensor, bonds: Tensor, node_counts: Tensor, edge_counts: Tensor) -> Tensor:
        """Logits `[graphs, tasks]`."""
        h = self.atoms(nodes)
        start, end = edges
        for embed, update, norm in zip(self.bonds, self.updates, self.norms, strict=True):
            messages = F.relu(h[start] + embed(bonds))
            h = h + F.relu(norm(update(h + torch.zeros_like(h).index_add(0, end, messages))))
        owner = torch.arange(len(node_counts)).repeat_interleave(node_counts)
        pooled = h.new_zeros(len(node_counts), h.shape[1]).index_add(0, owner, h)
        return self.read(pooled / node_counts[:, None])


def molecules_gin() -> Task:
    """128 assays of molecules with missing labels; the loss is a mean over the labels that are there."""
    dataset = held_out(molecules).load()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        target = batch[-1]
        known = ~target.isnan()
        return F.binary_cross_entropy_with_logits(model(*batch[:-1])[known], target[known])

    def score(model: nn.Module) -> float:
        parts = [dataset.test.batch(i) for i in torch.arange(len(dataset.test)).split(EVALUATION)]
        logits = torch.cat([model(*part[:-1]) for part in parts])
        return float(average_precision(logits, torch.cat([part[-1] for part in parts])))

    return Task("molecules-gin", lambda: GIN(128, 4), loss, score, _drawn(dataset), True, 300, 128, 25)


class VAE(nn.Module):
    """The variational autoencoder that ships with PyTorch's examples: 784-400-20-400-784."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.log_variance = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, mean and log variance of the code."""
        hidden = F.relu(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def _evidence(model: nn.Module, batch: Batch) -> Tensor:
    """The negative evidence lower bound, a sum over the batch."""
    x = batch[0].flatten(1)
    logits, mean, log_variance = model(x)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + divergence


def vae() -> Task:
    """A variational autoencoder of MNIST whose loss is a sum over the batch, in thousands of nats."""
    dataset = held_out(mnist).load()
    measure = _held_out(dataset, lambda model, batch: _evidence(model, batch) / len(batch[0]), 2000)
    return Task("vae", VAE, _evidence, measure, _drawn(dataset), False, 200, 128, 20)


def poisson() -> Task:
    """A physics-informed network: −Δu = 2π² sin πx sin πy on the unit square, u = 0 on its border; judged by ‖u − u*‖/‖u*‖."""

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1)
        )

    def exact(points: Tensor) -> Tensor:
        return (math.pi * points).sin().prod(1, keepdim=True)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        inner = batch[0].requires_grad_(True)
        u = network(inner)
        (slope,) = torch.autograd.grad(u.sum(), inner, create_graph=True)
        bends = [torch.autograd.grad(slope[:, i].sum(), inner, create_graph=True)[0][:, i : i + 1] for i in range(2)]
        residual = sum(bends) + 2 * math.pi**2 * exact(inner)
        return residual.square().mean() + 100 * network(batch[1]).square().mean()

    grid = torch.cartesian_prod(torch.linspace(0, 1, 41), torch.linspace(0, 1, 41))

    def score(network: nn.Module) -> float:
        truth = exact(grid)
        return float((network(grid) - truth).norm() / truth.norm())

    def batches(size: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(1)
        while True:
            border = torch.rand(size // 4, 2, generator=draw)
            side = torch.randint(4, (size // 4,), generator=draw)
            border[torch.arange(len(side)), side % 2] = (side // 2).float()
            yield torch.rand(size, 2, generator=draw), border

    return Task("poisson", model, loss, score, batches, False, 300, 256, 20)


def bandit_policy() -> Task:
    """Policy gradients, as noisy as reinforcement learning's: digits are states, naming one is an action, reward 1 if right.

    The loss is a sum over the batch of −log π(a|s)(r − mean r), as REINFORCE has it (Williams 1992).
    """
    dataset = held_out(mnist).load()

    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        policy = torch.distributions.Categorical(logits=network(batch[0]))
        action = policy.sample()
        reward = (action == batch[1]).float()
        return -(policy.log_prob(action) * (reward - reward.mean())).sum()

    return Task("bandit-policy", model, loss, _held_out(dataset, _accuracy, 2000), _drawn(dataset), True, 300, 256, 20)


TASKS_BY_NAME: dict[str, Callable[[], Task]] = {
    "mnist-autoencoder": mnist_autoencoder,
    "char-gpt": char_gpt,
    "char-lstm": char_lstm,
    "cifar-vit": cifar_vit,
    "cifar-cnn": cifar_cnn,
    "molecules-gin": molecules_gin,
    "vae": vae,
    "poisson": poisson,
    "bandit-policy": bandit_policy,
}
