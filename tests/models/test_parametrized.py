"""Weights computed from other parameters, and layers that only look like ones we know: AdamW trains what curvature cannot."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, parametrize

import heatbath as hb


class LowRank(nn.Module):
    """A frozen layer and a trained product of two matrices, bare parameters or linear layers (LoRA)."""

    def __init__(self, *, bare: bool) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.bare = bare

    def forward(self, x: Tensor) -> Tensor:
        if self.bare:
            return self.base(x) + x @ self.down.weight.mT @ self.up.weight.mT
        return self.base(x) + self.up(self.down(x))


class Delta(nn.Module):
    """The same as a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(0.3 * torch.randn(2, 6)), nn.Parameter(torch.zeros(6, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    """A subclass that computes the same."""


class Squared(nn.Module):
    """`nn.Bilinear` of an input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(6, 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x)


class Attention(nn.Module):
    """Self-attention over copies of a vector, its input projection parametrized."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = parametrizations.weight_norm(nn.MultiheadAttention(6, 2, batch_first=True), "in_proj_weight")
        self.places = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] * self.places
        return self.inner(x, x, x, need_weights=False)[0].sum(1)


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(6, 6))


def low_rank_parametrization() -> nn.Module:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Delta())
    return layer


FALLBACK = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
    "weight norm of old": old_weight_norm,
    "weight norm of a convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), parametrizations.weight_norm(nn.Conv1d(2, 2, 3, padding=1)), nn.Flatten()
    ),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "spectral norm of old": lambda: nn.utils.spectral_norm(nn.Linear(6, 6)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 6)),
    "low rank, parametrization": low_rank_parametrization,
    "a subclass that computes something else": lambda: Doubled(6, 6),
    "bilinear": Squared,
    "attention": Attention,
    "not dynamically quantizable": lambda: NonDynamicallyQuantizableLinear(6, 6),
}
CURVATURE = {"low rank": lambda: LowRank(bare=False), "a subclass that computes the same": lambda: Renamed(6, 6)}


def train(inner: nn.Module, steps: int = 12) -> tuple[hb.KFAC, list[float]]:
    """A network around `inner`; every trainable parameter of it has to move."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), inner, nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(32, 6)
    y = x[:, :3].argmax(1)
    optimizer = hb.KFAC(model, lr=0.1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
    return optimizer, losses


@pytest.mark.parametrize("make", FALLBACK.values(), ids=FALLBACK)
def test_what_curvature_cannot_treat_adamw_trains(make):
    optimizer, losses = train(make())
    assert losses[-1] < losses[0]
    treatments = {r.treatment for r in optimizer.coverage().rows if r.name.startswith("2.")}
    assert treatments == {"adamw"}


@pytest.mark.parametrize("make", CURVATURE.values(), ids=CURVATURE)
def test_what_is_made_of_known_layers_is_treated_by_curvature(make):
    optimizer, losses = train(make())
    assert losses[-1] < losses[0]
    rows = [r for r in optimizer.coverage().rows if r.name.startswith("2") and r.treatment != "frozen"]
    assert rows
    assert all(r.treatment.startswith("kfac") for r in rows)


@pytest.mark.filterwarnings("ignore:.*through no call of the module")
def test_linear_layers_whose_weights_are_used_without_calling_them_are_trained_by_adamw():
    optimizer, losses = train(LowRank(bare=True))
    assert losses[-1] < losses[0]
    treatments = {r.name: r.treatment for r in optimizer.coverage().rows if r.treatment != "frozen"}
    assert treatments["2.down"] == treatments["2.up"] == "adamw, no call seen"


def test_a_lazy_layer_is_treated_once_it_has_a_shape():
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.warns(
        UserWarning, match=r"0\.weight has no shape yet: to treat its layer .* run one batch through the model first"
    ):
        optimizer = hb.KFAC(model)
    assert [r.treatment for r in optimizer.coverage().rows] == ["kfac 2×5", "adamw", "adamw"]
    model(torch.ones(3, 5))
    optimizer.refresh_layout()
    assert [r.treatment for r in optimizer.coverage().rows] == ["kfac 4×6", "kfac 2×5"]
    assert [r.treatment for r in hb.KFAC(model).coverage().rows] == ["kfac 4×6", "kfac 2×5"]


def test_a_lazy_layer_that_stays_with_adamw_trains():
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="no shape yet"):
        optimizer = hb.KFAC(model)
    model(torch.ones(3, 5)).square().mean().backward()
    before = [p.clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
