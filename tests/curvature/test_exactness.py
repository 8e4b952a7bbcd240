"""Laws 1–9 and 15–18: K-FAC blocks against Jacobians, Hessians and equivalent layers, at rounding error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian

from heatbath.curvature import ExactFisher, Gaussian, Reduction, Sharing
from heatbath.layers import default_rules, rule_for
from heatbath.operators import Diagonal
from heatbath.optim import KFAC
from tests.curvature.truth import (
    capture,
    cross_entropy,
    error,
    exact,
    factors,
    fill,
    ggn_block,
    hessian_block,
    packed_jacobian,
    squared_error,
)
from tests.laws import noise
from tests.zoo import PLAIN

ROUNDING = 1e-13
both_bias = pytest.mark.parametrize("bias", [True, False], ids=["joint bias", "no bias"])


def mean_squared_error(x: Tensor, target: Tensor):
    return lambda model, parts: F.mse_loss(functional_call(model, parts, (x,)), target)


# --- one and several linear layers -------------------------------------------------------------------------------------


@both_bias
def test_law_1_one_linear_layer_is_its_hessian(bias):
    """A = XᵀX/N, B = (2/C) I for MSELoss(mean)."""
    model, x, y = fill(nn.Linear(3, 2, bias=bias)), noise(7, 3), noise(7, 2, seed=1)
    found = exact(model, x, squared_error)[""]
    rows = torch.cat((x, torch.ones(7, 1, dtype=x.dtype)), 1) if bias else x
    torch.testing.assert_close(found.right.dense()[0], rows.mT @ rows / 7, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(found.left.dense()[0], torch.eye(2, dtype=x.dtype), rtol=ROUNDING, atol=ROUNDING)
    assert error(found.dense()[0], hessian_block(model, "", mean_squared_error(x, y))) < ROUNDING


@both_bias
@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_law_2_every_block_of_a_deep_linear_net_is_its_hessian_block(bias, layer):
    model = fill(nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Linear(4, 4, bias=bias), nn.Linear(4, 2, bias=bias)))
    x, y = noise(9, 3), noise(9, 2, seed=1)
    found = exact(model, x, squared_error)[layer].dense()[0]
    assert error(found, hessian_block(model, layer, mean_squared_error(x, y))) < ROUNDING
    assert error(found, ggn_block(model, layer, x, squared_error)[0]) < ROUNDING


@both_bias
@pytest.mark.parametrize("columns", [squared_error, cross_entropy])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus, nn.ReLU])
def test_law_3_one_example_is_its_gauss_newton_block(bias, columns, activation):
    model = fill(nn.Sequential(nn.Linear(3, 4, bias=bias), activation(), nn.Linear(4, 3, bias=bias)))
    x = noise(1, 3)
    found = exact(model, x, columns)
    for layer in ("0", "2"):
        assert error(found[layer].dense()[0], ggn_block(model, layer, x, columns)[0]) < ROUNDING


def test_several_examples_of_a_nonlinear_net_are_not_exact():
    """Law 3 needs N = 1: this test would fail if the judge could not tell."""
    model, x = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))), noise(8, 3)
    assert error(exact(model, x, squared_error)["0"].dense()[0], ggn_block(model, "0", x, squared_error)[0]) > 0.02


def test_law_15_a_piecewise_linear_net_has_its_hessian_as_gauss_newton_block():
    model, x, y = fill(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))), noise(1, 3), noise(1, 2, seed=1)
    found = exact(model, x, squared_error)
    for layer in ("0", "2"):
        assert error(found[layer].dense()[0], hessian_block(model, layer, mean_squared_error(x, y))) < ROUNDING


@both_bias
def test_law_16_one_example_is_the_outer_product_of_its_gradient(bias):
    model, x = fill(nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Tanh(), nn.Linear(4, 3, bias=bias))), noise(1, 3)
    found = capture(model, lambda: F.cross_entropy(model(x), torch.tensor([1])))
    F.cross_entropy(model(x), torch.tensor([1])).backward()
    for name, block in found.items():
        layer = model.get_submodule(name)
        gradient = layer.weight.grad if not bias else torch.cat((layer.weight.grad, layer.bias.grad[:, None]), 1)
        assert error(block.dense()[0], torch.outer(gradient.flatten(), gradient.flatten())) < ROUNDING


def test_law_9_a_joint_bias_is_a_homogeneous_coordinate():
    """[W b] has the Hessian of a weight without bias on inputs with a 1 appended."""
    x, target = noise(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
    plain, wide = fill(nn.Linear(3, 2)), nn.Linear(4, 2, bias=False).double()
    wide.weight.data.copy_(torch.cat((plain.weight, plain.bias[:, None]), 1))
    lifted = torch.cat((x, torch.ones(6, 1, dtype=x.dtype)), 1)
    one = capture(plain, lambda: F.cross_entropy(plain(x), target))[""]
    other = capture(wide, lambda: F.cross_entropy(wide(lifted), target))[""]
    assert error(one.dense(), other.dense()) < ROUNDING
    truth = hessian_block(wide, "", mean_squared_error(lifted, noise(6, 2, seed=1)))
    assert error(exact(plain, x, squared_error)[""].dense()[0], truth) < ROUNDING


# --- shared positions --------------------------------------------------------------------------------------------------


@both_bias
@pytest.mark.parametrize("layer", ["0", "1"])
def test_law_4_expand_is_exact_for_independent_positions(bias, layer):
    """Deep linear, R positions, the loss a mean over all N·R·C errors: A = XᵀX/(NR)."""
    model = fill(nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Linear(4, 2, bias=bias)))
    x, y = noise(4, 5, 3), noise(4, 5, 2, seed=1)
    found = exact(model, x, squared_error, terms=20, reduction=Reduction.ROWS)[layer].dense()[0]
    assert error(found, hessian_block(model, layer, mean_squared_error(x, y))) < ROUNDING
    assert error(found, ggn_block(model, layer, x, squared_error, terms=20)[0]) < ROUNDING


class _Pooled(nn.Module):
    """Positions through one layer, their mean through another."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.each, self.pooled = nn.Linear(3, 4, bias=bias), nn.Linear(4, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(self.each(x).mean(1))


@both_bias
def test_law_5_reduce_is_exact_where_positions_are_pooled(bias):
    """A = x̄x̄ᵀ/N, gradients summed over positions; expand is far off here."""
    model, x, y = fill(_Pooled(bias)), noise(6, 5, 3), noise(6, 2, seed=1)
    truth = hessian_block(model, "each", mean_squared_error(x, y))
    reduce = exact(model, x, squared_error, sharing={"each": Sharing.REDUCE})
    assert error(reduce["each"].dense()[0], truth) < ROUNDING
    assert error(reduce["pooled"].dense()[0], hessian_block(model, "pooled", mean_squared_error(x, y))) < ROUNDING
    rows = x.mean(1)
    if bias:
        rows = torch.cat((rows, torch.ones(6, 1, dtype=x.dtype)), 1)
    torch.testing.assert_close(reduce["each"].right.dense()[0], rows.mT @ rows / 6, rtol=ROUNDING, atol=ROUNDING)
    assert error(exact(model, x, squared_error)["each"].dense()[0], truth) > 0.2


def test_positions_summed_within_an_example_follow_kfc():
    """Empirical, by per-example autograd: A = Σ a aᵀ/(NS), B = Σ γγᵀ/N with γ the gradient of one example's loss."""
    model, x, target = fill(nn.Linear(3, 2)), noise(4, 5, 3), noise(4, 5, 2, seed=1)

    def losses() -> Tensor:
        return (model(x) - target).sin().square().sum((1, 2))  # one per example, positions summed

    found = capture(model, lambda: losses().mean())[""]
    outputs = model(x).detach().requires_grad_()
    gamma = torch.autograd.grad((outputs - target).sin().square().sum(), outputs)[0].reshape(20, 2)
    a = torch.cat((x.reshape(20, 3), torch.ones(20, 1, dtype=x.dtype)), 1)
    torch.testing.assert_close(found.right.dense()[0], a.mT @ a / 20, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(found.left.dense()[0], gamma.mT @ gamma / 4, rtol=ROUNDING, atol=ROUNDING)


def test_positions_averaged_in_the_loss_are_terms():
    """Cross-entropy over all tokens of a batch: B = Σ γγᵀ/(NS) with γ the gradient of one token's loss."""
    model, x = fill(nn.Linear(3, 4)), noise(4, 5, 3)
    target = torch.arange(20).reshape(4, 5) % 4
    found = capture(model, lambda: F.cross_entropy(model(x).flatten(0, 1), target.flatten()), reduction=Reduction.ROWS)[""]
    gamma = model(x).detach().softmax(-1).reshape(20, 4) - F.one_hot(target.flatten(), 4)
    torch.testing.assert_close(found.left.dense()[0], gamma.mT @ gamma / 20, rtol=ROUNDING, atol=ROUNDING)


def test_a_sum_over_examples_has_the_factors_of_the_mean():
    model, x, target = fill(nn.Linear(3, 4)), noise(6, 3), torch.arange(6) % 4
    mean = capture(model, lambda: F.cross_entropy(model(x), target))[""]
    total = capture(model, lambda: F.cross_entropy(model(x), target, reduction="sum"), reduction=Reduction.SUM)[""]
    assert error(total.dense(), mean.dense()) < ROUNDING


# --- other layers are linear layers --------------------------------------------------------------------------------------


CONVS = {
    "stride": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "dilation": {"kernel_size": (2, 3), "padding": 2, "dilation": (2, 1), "stride": 2},
}


def _unfolded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Patches by `F.unfold`, `[N, S, C·K]`; padding by hand where it is 'same'."""
    padding = conv.padding
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    amount = 0 if isinstance(padding, str) else padding
    return F.unfold(x, conv.kernel_size, dilation=conv.dilation, padding=amount, stride=conv.stride).mT


def packed_hessian(module: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Hessian of `MSELoss(mean)` over all outputs of one layer, features first, by `torch.func` and the layer itself:
    `[P, O·I, O·I]`; entries between places are asserted to be zero."""
    own = {name: p.detach() for name, p in module.named_parameters()}
    sizes, shapes = [p.numel() for p in own.values()], [p.shape for p in own.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = [v.reshape(shape) for v, shape in zip(flat.split(sizes), shapes, strict=True)]
        return F.mse_loss(functional_call(module, dict(zip(own, parts, strict=True)), (x,)), target)

    full = hessian(loss)(torch.cat([p.flatten() for p in own.values()]))
    rule = rule_for(module, default_rules())
    assert rule is not None
    index = torch.arange(sum(sizes)).split(sizes)
    (order,) = rule.pack(module, {n: i.reshape(shape) for n, i, shape in zip(own, index, shapes, strict=True)})
    order = order.long().flatten(1)
    for p, q in ((p, q) for p in range(len(order)) for q in range(len(order)) if p != q):
        assert full[order[p]][:, order[q]].abs().max() == 0
    return torch.stack([full[row][:, row] for row in order])


def observed_squares(module: nn.Module, x: Tensor, dim: int):
    """Exact factors for `MSELoss(mean)` through `observe`, outputs with their features moved from `dim` to the end."""
    policy = replace(PLAIN, fisher=ExactFisher(Gaussian(), together=True), reduction=None)
    optimizer = KFAC(module, lr=0.0, damping=1.0, momentum=0.0, policy=policy)
    optimizer.observe(module(x).movedim(dim, -1)).mean().backward()
    found = factors(optimizer)[""]
    optimizer.capture.detach()
    return found


@both_bias
@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS.keys())
def test_law_6_a_convolution_has_the_hessian_of_squared_errors(bias, options):
    """Every position is a term of the loss and one layer is linear: law 4 with the patches as positions."""
    conv, x = fill(nn.Conv2d(2, 3, bias=bias, **options)), noise(4, 2, 6, 5)
    truth = packed_hessian(conv, x, noise(*conv(x).shape, seed=1))
    assert error(observed_squares(conv, x, 1).dense(), truth) < ROUNDING


@both_bias
@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS.keys())
def test_law_6_a_convolution_is_a_linear_layer_on_its_patches(bias, options):
    conv, x = fill(nn.Conv2d(2, 3, bias=bias, **options)), noise(4, 2, 6, 5)
    linear, rows = nn.Linear(conv.weight[0].numel(), 3, bias=bias).double(), _unfolded(x, conv)
    linear.weight.data.copy_(conv.weight.flatten(1))
    if bias:
        linear.bias.data.copy_(conv.bias)
    torch.testing.assert_close(conv(x).flatten(2).mT, linear(rows), rtol=1e-12, atol=1e-12)
    one = capture(conv, lambda: conv(x).flatten(2).sin().sum((1, 2)).mean())[""]
    other = capture(linear, lambda: linear(rows).sin().sum((1, 2)).mean())[""]
    assert error(one.dense(), other.dense()) < ROUNDING


@both_bias
def test_law_7_a_grouped_convolution_is_a_linear_layer_for_each_group(bias):
    conv, x = fill(nn.Conv2d(4, 6, (2, 3), groups=2, bias=bias, padding=1)), noise(3, 4, 4, 5)
    found = capture(conv, lambda: conv(x).sin().sum((1, 2, 3)).mean())[""]
    assert found.stack == (2,)
    for group in range(2):
        part = x[:, 2 * group : 2 * group + 2]
        alone = nn.Conv2d(2, 3, (2, 3), bias=bias, padding=1).double()
        alone.weight.data.copy_(conv.weight[3 * group : 3 * group + 3])
        if bias:
            alone.bias.data.copy_(conv.bias[3 * group : 3 * group + 3])
        linear, rows = nn.Linear(12, 3, bias=bias).double(), _unfolded(part, alone)
        linear.load_state_dict({n: p.flatten(1) if n == "weight" else p for n, p in alone.state_dict().items()})
        other = capture(linear, lambda: linear(rows).sin().sum((1, 2)).mean())[""]  # noqa: B023  # called at once
        assert error(found.dense()[group], other.dense()[0]) < ROUNDING
    assert error(found.right.dense()[0], found.right.dense()[1]) > 0.05  # one averaged A would be wrong


@both_bias
@pytest.mark.parametrize("groups", [2, 4], ids=["grouped", "depthwise"])
def test_law_7_a_grouped_convolution_has_the_hessian_of_squared_errors(bias, groups):
    """Block by block, nothing between groups; one A averaged over groups is far off."""
    conv, x = fill(nn.Conv2d(4, 8, (2, 3), groups=groups, bias=bias, padding=1)), noise(3, 4, 4, 5)
    truth = packed_hessian(conv, x, noise(*conv(x).shape, seed=1))
    found = observed_squares(conv, x, 1)
    assert found.stack == (groups,)
    assert error(found.dense(), truth) < ROUNDING
    averaged = torch.stack([torch.kron(b, found.right.dense().mean(0)) for b in found.left.dense()])
    assert error(averaged, truth) > 0.1


def test_law_7_groups_do_not_see_one_another():
    """The gradient of one group's outputs has no entry in another group's block, so their blocks are all there is."""
    conv, x = fill(nn.Conv1d(4, 4, 2, groups=2)), noise(2, 4, 5)
    jacobian = packed_jacobian(conv, "", x)[0]  # [N, channel, position, group, O, I]
    assert jacobian[:, :2, :, 1].abs().max() == 0
    assert jacobian[:, 2:, :, 0].abs().max() == 0
    assert jacobian[:, :2, :, 0].abs().max() > 0


def test_law_8_an_embedding_is_a_linear_layer_on_one_hot_vectors():
    """A = diag(counts/N): a diagonal, never V × V."""
    tokens = torch.tensor([[0, 2, 2], [4, 2, 0]])
    table, linear = fill(nn.Embedding(5, 3)), nn.Linear(5, 3, bias=False).double()
    linear.weight.data.copy_(table.weight.mT)
    hot = F.one_hot(tokens, 5).double()
    one = capture(table, lambda: table(tokens).sin().sum((1, 2)).mean())[""]
    other = capture(linear, lambda: linear(hot).sin().sum((1, 2)).mean())[""]
    assert isinstance(one.right, Diagonal)
    torch.testing.assert_close(one.right.diagonal[0], torch.tensor([2, 0, 3, 0, 1]).double() / 6, rtol=0, atol=1e-16)
    assert error(one.dense(), other.dense()) < ROUNDING


def test_law_8_an_embedding_has_the_hessian_of_squared_errors():
    tokens, table = torch.tensor([[0, 2, 2], [4, 2, 0]]), fill(nn.Embedding(5, 3))
    truth = packed_hessian(table, tokens, noise(2, 3, 3))
    assert error(observed_squares(table, tokens, -1).dense(), truth) < ROUNDING


class _Reused(nn.Module):
    """One layer applied twice, or two layers that share their weight."""

    def __init__(self, tied: bool, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=bias)
        self.again = nn.Linear(3, 3, bias=bias) if tied else self.layer
        if tied:
            self.again.weight = self.layer.weight
            if bias:
                self.again.bias = self.layer.bias

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.layer(x)
        hidden = first.tanh()
        return hidden, first, self.again(hidden)


@both_bias
@pytest.mark.parametrize("tied", [False, True], ids=["reused", "tied"])
def test_law_17_weights_used_twice_are_one_layer_whose_positions_are_the_uses(tied, bias):
    model, x = fill(_Reused(tied, bias)), noise(5, 3)
    found = capture(model, lambda: model(x)[2].sin().sum(1).mean())
    assert len(found) == 1
    hidden, first, last = model(x)
    gradients = torch.autograd.grad(last.sin().sum(1).mean(), (first, last))
    a, g = torch.cat((x, hidden.detach())), torch.cat(gradients)
    if bias:
        a = torch.cat((a, torch.ones(10, 1, dtype=x.dtype)), 1)
    (block,) = found.values()
    torch.testing.assert_close(block.right.dense()[0], a.mT @ a / 10, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(block.left.dense()[0], 5 * g.mT @ g, rtol=ROUNDING, atol=ROUNDING)
    linear = nn.Linear(3, 3, bias=bias).double()  # the same rows through one layer: uses along the second dimension
    rows, out = torch.stack((x, hidden.detach()), 1), torch.stack(gradients, 1)
    listed = capture(linear, lambda: (linear(rows) * out).sum())[""]
    assert error(block.dense(), listed.dense()) < ROUNDING


class _Unrolled(nn.Module):
    """An RNN, LSTM or GRU of one layer, time by time, from two Linear layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, gates = kind, {"RNN": 1, "LSTM": 4, "GRU": 3}[kind]
        self.ih, self.hh = nn.Linear(3, 2 * gates), nn.Linear(2, 2 * gates)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 2)
        outputs, self.calls = [], []
        for t in range(x.shape[1]):
            p, q = self.ih(x[:, t]), self.hh(h)
            self.calls.append({"ih": (x[:, t], p), "hh": (h, q)})
            if self.kind == "RNN":
                h = (p + q).tanh()
            elif self.kind == "LSTM":
                i, f, g, o = (p + q).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (pr, pz, pn), (qr, qz, qn) = p.chunk(3, 1), q.chunk(3, 1)
                r, z = (pr + qr).sigmoid(), (pz + qz).sigmoid()
                h = (1 - z) * (pn + r * qn).tanh() + z * h
            outputs.append(h)
        return torch.stack(outputs, 1)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_law_18_a_recurrent_cell_is_linear_layers_whose_positions_are_times(kind):
    fused, unrolled, x = getattr(nn, kind)(3, 2, batch_first=True), _Unrolled(kind), noise(4, 5, 3)
    fused = fill(fused)
    unrolled.double().load_state_dict(
        {f"{side}.{part}": getattr(fused, f"{part}_{side}_l0") for side in ("ih", "hh") for part in ("weight", "bias")}
    )
    torch.testing.assert_close(fused(x)[0], unrolled(x), rtol=1e-12, atol=1e-12)
    found = capture(fused, lambda: fused(x)[0].sin().sum((1, 2)).mean())
    loss = unrolled(x).sin().sum((1, 2)).mean()
    for name, side in (("", "ih"), ("[1]", "hh")):  # 4 examples, 5 times: 20 rows, 4 terms; gradients by autograd
        inputs, outputs = zip(*(call[side] for call in unrolled.calls), strict=True)
        a, g = torch.cat(inputs).detach(), torch.cat(torch.autograd.grad(loss, outputs, retain_graph=True))
        a = torch.cat((a, torch.ones(20, 1, dtype=a.dtype)), 1)
        truth = torch.kron(4 * g.mT @ g, a.mT @ a / 20)
        assert error(found[name].dense()[0], truth) < ROUNDING
