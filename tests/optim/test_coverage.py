from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.optim import KFAC, Policy
from tests.laws import Scale


def model() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), Scale(6), nn.Linear(6, 5), nn.Linear(5, 2))
    net[3].requires_grad_(False)
    return net


def test_every_parameter_is_listed_once():
    net = model()
    coverage = KFAC(net).coverage()
    assert sum(row.parameters for row in coverage.rows) == sum(p.numel() for p in net.parameters())
    assert coverage.count("kfac") == 2 * 3 * 19 + 2 * 6
    assert coverage.count("adamw") == 6
    assert coverage.count("frozen") == 35
    assert [(r.name, r.kind, r.treatment) for r in coverage.rows] == [
        ("0", "Conv2d", "kfac 2×3×19"),
        ("4", "Linear", "kfac 2×6"),
        ("2.scale", "Scale", "adamw"),
        ("3.weight", "Linear", "frozen"),
        ("3.bias", "Linear", "frozen"),
    ]


def test_printed_it_is_a_table_with_a_total():
    lines = str(KFAC(model()).coverage()).splitlines()
    assert lines[0].split() == ["layer", "kind", "treatment", "parameters"]
    assert set(lines[1]) == {"-", " "}
    assert lines[2].split() == ["0", "Conv2d", "kfac", "2×3×19", "114"]
    assert lines[-1].startswith("126 of 132 trainable numbers by curvature; state ")


def test_a_model_that_is_one_layer_has_a_name():
    assert KFAC(nn.Linear(2, 2)).coverage().rows[0].name == "(model)"


def test_a_skipped_layer_is_under_adamw_with_its_kind():
    rows = KFAC(model(), policy=Policy(skip=lambda name, module: name == "4")).coverage().rows
    assert ("4.weight", "Linear", "adamw") in [(r.name, r.kind, r.treatment) for r in rows]


def test_tied_layers_are_listed_once_with_all_their_names():
    """Alike they are one site; unlike ones would need a sum of Kronecker products, and are AdamW's."""
    net = nn.ModuleDict({"table": nn.Embedding(9, 4), "a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    net["head"] = nn.Linear(4, 9, bias=False)
    net["head"].weight, net["b"].weight, net["b"].bias = net["table"].weight, net["a"].weight, net["a"].bias
    rows = KFAC(net).coverage().rows
    assert [(r.name, r.kind, r.treatment, r.parameters) for r in rows] == [
        ("a", "Linear", "kfac 4×5, tied: a and b", 20),
        ("table.weight", "Embedding + Linear", "adamw, tied: table and head", 36),
    ]


def test_a_layer_that_is_never_called_is_under_adamw_once_that_is_known():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.first(x), self.second.weight, self.second.bias)

    net = Functional()
    optimizer = KFAC(net)
    assert [r.treatment for r in optimizer.coverage().rows] == ["kfac 4×4", "kfac 2×5"]
    net(torch.ones(4, 3)).square().mean().backward()
    with pytest.warns(UserWarning, match="second: gradients came, but through no call of the module; AdamW trains it"):
        optimizer.step()
    assert [r.treatment for r in optimizer.coverage().rows] == ["kfac 4×4", "adamw, no call seen"]


def test_state_bytes_are_those_of_every_tensor_held():
    """One Linear(3, 2) in float32: averages, inverses and momentum, and the sums where they are held."""
    net = nn.Linear(3, 2)
    optimizer = KFAC(net)
    before = optimizer.coverage().state_bytes
    F.cross_entropy(net(torch.ones(4, 3)), torch.zeros(4).long()).backward()
    optimizer.step()
    factors, update = (2 * 2 + 4 * 4) * 4, 2 * 4 * 4
    outcomes = 2
    assert optimizer.coverage().state_bytes == before + 2 * factors + outcomes + update


def test_state_is_one_factor_one_inverse_and_momentum_and_it_says_so():
    """After a step that captured and refreshed: no captured sums, no second copy; n² numbers for each factor and inverse."""
    net = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 20), nn.Linear(20, 5))
    optimizer = KFAC(net, policy=Policy(1, 1, 0))
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.ones(4, 30)), torch.zeros(4).long()).backward()
        assert optimizer.coverage().held["captured"] > 0
        optimizer.step()
    factors = 4 * sum(n * n for n in (31, 20, 21, 20, 21, 5))
    momentum = 4 * (31 * 20 + 21 * 20 + 21 * 5)
    assert optimizer.coverage().held == {"factors": factors, "solver": factors + 6, "momentum": momentum, "captured": 0}
    assert str(optimizer.coverage()).endswith("state 0.0 MiB (factors 0.0, solver 0.0, momentum 0.0)")
