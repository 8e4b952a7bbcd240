"""Another library as judge where K-FAC is no exact block: curvlinops (Dangel et al.), products with random vectors."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import Reduction, Sharing
from heatbath.layers import default_rules, rule_for
from tests.curvature.truth import capture, cross_entropy, exact, fill, squared_error
from tests.laws import noise

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    curvlinops = pytest.importorskip("curvlinops")


def mlp() -> nn.Module:
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)))


def cnn() -> nn.Module:
    return fill(nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)))


class Tokens(nn.Module):
    """Token by token, classes second, as `CrossEntropyLoss` wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(x).tanh()).flatten(0, 1)


CASES = {
    "mlp": (mlp, (6, 3), 1),
    "cnn": (cnn, (6, 2, 4, 4), 1),
    "tokens": (lambda: fill(Tokens()), (6, 5, 3), 5),
}


def assert_products_agree(model: nn.Module, operator, found) -> None:
    """(B ⊗ A) v by both, for a random v in each layer's parameters."""
    vectors = [noise(*p.shape, seed=70 + i) for i, p in enumerate(model.parameters())]
    truth = dict(zip((n for n, _ in model.named_parameters()), operator @ vectors, strict=True))
    given = dict(zip(truth, vectors, strict=True))
    for name, block in found.items():
        module, prefix = model.get_submodule(name), f"{name}."
        rule = rule_for(module, default_rules())
        own = lambda all_: {n.removeprefix(prefix): v for n, v in all_.items() if n.startswith(prefix)}  # noqa: B023, E731
        (v,), (wanted,) = rule.pack(module, own(given)), rule.pack(module, own(truth))
        torch.testing.assert_close(block @ v, wanted.detach(), rtol=1e-9, atol=1e-12)


def theirs(model: nn.Module, loss: nn.Module, data, fisher: str, approximation: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return curvlinops.KFACLinearOperator(
            model,
            loss,
            list(model.parameters()),
            data,
            fisher_type=getattr(curvlinops.FisherType, fisher),
            kfac_approx=getattr(curvlinops.KFACType, approximation),
            separate_weight_and_bias=False,
            check_deterministic=False,
        )


@pytest.mark.parametrize("sharing", Sharing, ids=lambda s: s.name.lower())
@pytest.mark.parametrize("case", CASES)
def test_empirical_factors_are_those_of_curvlinops(case, sharing):
    make, shape, terms = CASES[case]
    model, x = make(), noise(*shape)
    target = torch.arange(shape[0] * terms) % 3
    reduction = Reduction.ROWS if terms > 1 else Reduction.EXAMPLES
    every = {name: sharing for name, module in model.named_modules() if rule_for(module, default_rules())}
    found = capture(model, lambda: F.cross_entropy(model(x), target), reduction=reduction, sharing=every)
    operator = theirs(model, nn.CrossEntropyLoss(), [(x, target)], "EMPIRICAL", sharing.name)
    assert_products_agree(model, operator, found)


@pytest.mark.parametrize("case", ["mlp", "cnn"])
@pytest.mark.parametrize(
    "columns,loss",
    [(cross_entropy, nn.CrossEntropyLoss()), (squared_error, nn.MSELoss())],
    ids=["cross-entropy", "squares"],
)
def test_exact_factors_are_those_of_curvlinops(case, columns, loss):
    make, shape, _ = CASES[case]
    model, x = make(), noise(*shape)
    target = torch.arange(shape[0]) % 3 if columns is cross_entropy else noise(shape[0], 3, seed=9)
    found = exact(model, x, columns)
    assert_products_agree(model, theirs(model, loss, [(x, target)], "TYPE2", "EXPAND"), found)
