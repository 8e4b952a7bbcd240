"""Linear layers of other packages: rules against `torch.func`, whole models where the package is installed."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from heatbath.layers import Call, LinearRule, default_rules, rule_for
from tests.layers.truth import assert_close, assert_pack_inverts, assert_rows_are_example_gradients, noise, rule_of


class Conv1D(nn.Module):
    """A stand-in with the weight stored input first, as in Transformers."""

    def __init__(self, nf, nx):
        super().__init__()
        self.weight, self.bias = nn.Parameter(noise(nx, nf, seed=1)), nn.Parameter(noise(nf, seed=2))

    def forward(self, x):
        return x @ self.weight + self.bias


class Linear(nn.Module):
    """A stand-in with sizes under other names, as in PyTorch Geometric."""

    def __init__(self, in_channels, out_channels, bias=True):
        super().__init__()
        self.weight = nn.Parameter(noise(out_channels, in_channels, seed=1))
        self.register_parameter("bias", nn.Parameter(noise(out_channels, seed=2)) if bias else None)

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


PATHS = {Conv1D: "transformers.pytorch_utils", Linear: "torch_geometric.nn.dense.linear"}


@pytest.fixture(params=[lambda: Conv1D(4, 3), lambda: Linear(3, 4), lambda: Linear(3, 4, bias=False)])
def layer(request, monkeypatch):
    """A layer whose class stands where its package would have it."""
    module = request.param()
    stand_in = types.ModuleType(PATHS[type(module)])
    setattr(stand_in, type(module).__name__, type(module))
    monkeypatch.setitem(sys.modules, PATHS[type(module)], stand_in)
    return module


@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 3, 2)])
def test_rows_sum_to_the_gradient_of_each_example(layer, leading):
    (rows,) = assert_rows_are_example_gradients(layer, noise(*leading, 3))
    assert rows.inputs.shape == (1, leading[0], torch.Size(leading[1:]).numel(), 3 + (layer.bias is not None))


def test_the_packed_weight_times_the_rows_is_the_output(layer):
    x = noise(5, 3)
    (rows,) = LinearRule().rows(layer, Call((), {"x": x}), noise(5, 4, seed=3))
    (packed,) = LinearRule().pack(layer, dict(layer.named_parameters()))
    assert_close((rows.inputs @ packed.mT)[0, :, 0].detach(), layer(x).detach())


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_leaves_the_block(layer, frozen):
    if layer.bias is None:
        frozen = "weight"
    layer.get_parameter(frozen).requires_grad_(False)
    if any(p.requires_grad for p in layer.parameters()):
        assert_rows_are_example_gradients(layer, noise(5, 3))
        assert_pack_inverts(layer)
    else:
        assert rule_of(layer).blocks(layer) == ()


def test_unpack_inverts_pack(layer):
    assert_pack_inverts(layer)


def test_a_subclass_with_a_forward_of_its_own_is_not_supported(layer):
    class Doubled(type(layer)):
        def forward(self, x):
            return 2 * super().forward(x)

    layer.__class__ = Doubled
    assert rule_for(layer, default_rules()) is None


def test_a_class_of_the_same_name_from_elsewhere_is_not_supported():
    assert rule_for(Linear(3, 4), default_rules()) is None


# --- the packages themselves -----------------------------------------------------------------------------------------------


def test_linear_of_torch_geometric():
    geometric = pytest.importorskip("torch_geometric.nn.dense.linear", exc_type=ImportError)
    layer = geometric.Linear(-1, 4).double()
    assert rule_for(layer, default_rules()) is None  # its weight has no shape yet
    layer(noise(2, 3))
    assert isinstance(rule_for(layer, default_rules()), LinearRule)
    assert_rows_are_example_gradients(layer, noise(5, 3))
    assert_pack_inverts(layer.float())


def test_conv1d_of_transformers():
    transformers = pytest.importorskip("transformers.pytorch_utils", exc_type=ImportError)
    layer = transformers.Conv1D(4, 3).double()
    assert_rows_are_example_gradients(layer, noise(2, 5, 3))
    assert_pack_inverts(layer.float())
