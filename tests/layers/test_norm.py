from __future__ import annotations

import pytest
import torch
from torch import nn

from heatbath.layers import Call, NormRule
from tests.layers.truth import assert_pack_inverts, assert_rows_are_example_gradients, noise, outer_sums, rule_of

CASES = {
    "layer": (nn.LayerNorm(4), (3, 5, 4)),
    "layer over two dims": (nn.LayerNorm((5, 4)), (3, 2, 5, 4)),
    "layer without bias": (nn.LayerNorm(4, bias=False), (3, 4)),
    "rms": (nn.RMSNorm(4), (3, 5, 4)),
    "rms with eps": (nn.RMSNorm((2, 2), eps=0.1), (3, 5, 2, 2)),
    "batch1d flat": (nn.BatchNorm1d(4), (5, 4)),
    "batch1d": (nn.BatchNorm1d(4), (3, 4, 5)),
    "batch2d": (nn.BatchNorm2d(4, eps=0.1), (3, 4, 2, 3)),
    "batch3d": (nn.BatchNorm3d(2), (3, 2, 2, 3, 2)),
    "batch without statistics": (nn.BatchNorm1d(4, track_running_stats=False), (3, 4, 5)),
    "group": (nn.GroupNorm(2, 4, eps=0.1), (3, 4, 5, 2)),
    "group flat": (nn.GroupNorm(2, 4), (3, 4)),
    "instance1d": (nn.InstanceNorm1d(4, affine=True), (3, 4, 5)),
    "instance2d": (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (3, 4, 5, 2)),
    "instance3d": (nn.InstanceNorm3d(2, affine=True), (3, 2, 2, 2, 2)),
}
POSITIONS = {"layer": 5, "layer over two dims": 2, "rms": 5, "batch1d flat": 1, "batch2d": 6, "group": 10, "instance3d": 8}


def ready(name, *, training=True):
    """The layer with parameters and running statistics that are not their defaults, and an input."""
    layer, shape = CASES[name]
    layer = layer.double().requires_grad_(True).train(training)
    with torch.no_grad():
        for index, tensor in enumerate((*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point()))):
            tensor.copy_(1 + 0.3 * noise(*tensor.shape, seed=index).abs())
    return layer, noise(*shape, seed=9) + 0.5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_rows_are_the_gradients_of_each_example(name, training):
    layer, x = ready(name, training=training)
    statistics = {n: b.clone() for n, b in layer.named_buffers()}
    (rows,) = assert_rows_are_example_gradients(layer, x)
    names = sum(p.requires_grad for p in layer.parameters())
    assert rows.inputs.shape == (layer.weight.numel(), x.shape[0], 1, names)
    assert torch.equal(rows.outputs, torch.ones_like(rows.outputs))
    assert all(torch.equal(b, statistics[n]) for n, b in layer.named_buffers())


@pytest.mark.parametrize("name", CASES)
def test_unpack_inverts_pack(name):
    assert_pack_inverts(ready(name)[0].float())


@pytest.mark.parametrize("name", POSITIONS)
def test_rows_say_how_many_positions_they_sum(name):
    layer, x = ready(name)
    (rows,) = NormRule().rows(layer, Call((x,)), torch.ones_like(x))
    assert rows.summed == POSITIONS[name]


def test_the_input_factor_is_the_exact_fisher_block_of_a_feature():
    """Σ_b ∇_b ∇_bᵀ of each feature's (γ, β), from the rows and from autograd's per-example gradients."""
    layer, x = ready("batch2d")
    g = noise(*x.shape, seed=1)
    (rows,) = NormRule().rows(layer, Call((x,)), g)
    factor = torch.einsum("pbsi,pbsj->pij", rows.inputs, rows.inputs)
    y = layer(x)
    for feature in range(4):
        jacobian = torch.zeros(3, 2, dtype=torch.float64)
        for example in range(3):
            pair = torch.autograd.grad((y * g)[example].sum(), [layer.weight, layer.bias], retain_graph=True)
            jacobian[example] = torch.stack([p[feature] for p in pair])
        assert torch.allclose(factor[feature], jacobian.T @ jacobian, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layer,shape", [(nn.LayerNorm(4), (4,)), (nn.InstanceNorm1d(2, affine=True), (2, 5))])
def test_an_unbatched_input_is_one_example(layer, shape):
    (rows,) = assert_rows_are_example_gradients(layer.double(), noise(*shape), batched=False)
    assert rows.inputs.shape[1] == 1


@pytest.mark.parametrize("frozen,name", [("weight", "bias"), ("bias", "weight")])
def test_a_frozen_parameter_leaves_the_block(frozen, name):
    layer = nn.LayerNorm(4, dtype=torch.float64)
    layer.get_parameter(frozen).requires_grad_(False)
    (block,) = rule_of(layer).blocks(layer)
    assert (block.parameters, block.places, block.domain) == ((name,), 4, (1, 1))
    assert_rows_are_example_gradients(layer, noise(3, 5, 4))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3, affine=False), nn.LayerNorm(3, elementwise_affine=False)])
def test_a_norm_without_parameters_has_no_blocks(layer):
    assert NormRule().blocks(layer) == NormRule().rows(layer, Call((torch.ones(1, 3),)), torch.ones(1, 3)) == ()


def test_the_mode_of_the_call_counts_not_the_mode_now():
    layer, x = ready("batch1d")
    (in_training,) = NormRule().rows(layer, Call((x,)), torch.ones_like(x))
    layer.eval()
    (later,) = NormRule().rows(layer, Call((x,), training=True), torch.ones_like(x))
    (now,) = NormRule().rows(layer, Call((x,)), torch.ones_like(x))
    assert torch.equal(later.inputs, in_training.inputs)
    assert not torch.allclose(now.inputs, in_training.inputs)


def test_synchronized_batch_norm_is_not_supported():
    assert not NormRule().supports(nn.SyncBatchNorm(3))


def test_an_empty_batch_gives_no_rows():
    (rows,) = NormRule().rows(nn.LayerNorm(3), Call((torch.zeros(0, 5, 3),)), torch.zeros(0, 5, 3))
    assert outer_sums(rows).shape == (3, 0, 1, 2)


def test_a_gradient_of_another_call_is_refused():
    with pytest.raises(ValueError, match=r"output of LayerNorm should have shape \[2, 3\], got \[3\]"):
        NormRule().rows(nn.LayerNorm(3), Call((torch.ones(2, 3),)), torch.ones(3))
