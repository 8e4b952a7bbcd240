"""Losses that contain input derivatives: rows against `torch.func` and against the gradients that PyTorch itself computes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, jvp, vmap

from heatbath.curvature import ExactFisher, Gaussian, Site
from heatbath.layers import Rows
from heatbath.optim import KFAC
from tests.curvature.test_fisher import mlp, observer
from tests.curvature.truth import error, factors, fill, optimizer_for
from tests.laws import noise
from tests.layers.truth import outer_sums
from tests.zoo import PLAIN

Seen = list[tuple[str, Rows]]


class Collector:
    """Keeps the rows of each site's first block, call by call."""

    def __init__(self, optimizer: KFAC) -> None:
        self.rows: Seen = []
        optimizer.capture.connect(self.sink)

    def sink(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        self.rows.append((site.name, rows[0]))

    def of_examples(self, name: str) -> Tensor:
        """Σ_s g aᵀ of each example over all uses, `[P, B, O, I]`."""
        return sum(outer_sums(rows) for site, rows in self.rows if site == name)


def derivatives(u: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    """Σ over features of the derivative of this order in the same feature, for each example; by `torch.autograd.grad`."""
    x = x.clone().requires_grad_()
    total = torch.zeros(len(x), dtype=x.dtype)
    for i in range(x[0].numel()):
        value = u(x)
        for _ in range(order):
            value = torch.autograd.grad(value.sum(), x, create_graph=True)[0].flatten(1)[:, i]
        total = total + value
    return total


def conv() -> nn.Module:
    layers = (nn.Conv1d(2, 4, 3, padding=1, groups=2), nn.Tanh(), nn.ConvTranspose1d(4, 2, 2, stride=2), nn.Tanh())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 1))


class Tied(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(2, 2), nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.inner(x).tanh()).tanh())


class Overwritten(nn.Module):
    """A layer over positions, whose output is a view of another tensor and is overwritten in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh_().flatten(1))


MODELS = {
    "positions, overwritten": (Overwritten, (4, 3, 2)),
    "mlp": (lambda: mlp(2, 5, 4, 1, activation=nn.Tanh()), (6, 2)),
    "no bias": (lambda: nn.Sequential(nn.Linear(2, 4, bias=False), nn.Tanh(), nn.Linear(4, 1, bias=False)), (6, 2)),
    "convolutions": (conv, (3, 2, 3)),
    "tied": (Tied, (6, 2)),
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_rows_of_all_uses_sum_to_the_gradient_of_each_example(kind, order):
    make, shape = MODELS[kind]
    model, x = fill(make()), noise(*shape, seed=3)
    collector = Collector(optimizer := optimizer_for(model))
    losses = (derivatives(model, x, order) - 0.3).square() + 0.1 * model(x)[:, 0].square()
    own = [torch.autograd.grad(loss / len(x), list(model.parameters()), retain_graph=True) for loss in losses]
    collector.rows.clear()
    losses.mean().backward()
    names = {id(p): i for i, p in enumerate(model.parameters())}
    for site in optimizer.sites:
        where = {name: names[id(p)] for name, p in site.parameters().items()}
        truth = [site.rule.pack(site.module, {n: grads[i] for n, i in where.items()})[0] for grads in own]
        torch.testing.assert_close(collector.of_examples(site.name), torch.stack(truth, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_positions_may_come_before_examples(order):
    """The factors of a sequence-first batch are those of its batch-first twin."""
    found, x = [], noise(5, 3, 2, seed=3)
    for turned in (False, True):
        model = fill(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)))
        optimizer = KFAC(model, damping=1.0, policy=replace(PLAIN, batch_dim=int(turned)))
        inputs = (x.transpose(0, 1) if turned else x).clone().requires_grad_()
        value = model(inputs)
        for _ in range(order):
            value = torch.autograd.grad(value.sum(), inputs, create_graph=True)[0][..., 0]
        (value.square().sum() / len(x)).backward()
        found.append(factors(optimizer))
    for name, each in found[0].items():
        torch.testing.assert_close(found[1][name].left.dense(), each.left.dense(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found[1][name].right.dense(), each.right.dense(), rtol=1e-12, atol=1e-14)


def test_the_gradients_themselves_are_those_of_a_model_that_nobody_watches():
    model, x = mlp(2, 5, 1, activation=nn.Tanh()), noise(6, 2)
    found = []
    for watched in (False, True):
        optimizer = optimizer_for(model) if watched else None
        model.zero_grad()
        derivatives(model, x, 2).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert optimizer is None or optimizer.capture.derived
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_second_derivatives_bring_the_rows_of_forward_mode():
    """ȧ at the second of three layers is the tangent of its input, by `torch.func.jvp`; it meets no bias."""
    model, x = mlp(2, 5, 4, 1, activation=nn.Tanh()), noise(6, 2)
    optimizer = optimizer_for(model)  # hooks live as long as it
    collector = Collector(optimizer)
    derivatives(model, x, 2).square().mean().backward()
    unit = torch.eye(2, dtype=x.dtype)
    tangents = [jvp(model[:2], (x,), (unit[i].expand_as(x),))[1].detach() for i in range(2)]
    inputs = [rows.inputs[0, :, 0] for name, rows in collector.rows if name == "2"]
    for tangent in tangents:
        row = torch.cat((tangent, torch.zeros(6, 1, dtype=x.dtype)), 1)
        assert any(torch.allclose(a, row, rtol=1e-12) for a in inputs)


def test_forward_mode_brings_its_tangents_as_rows():
    """z̄ and the gradient at ż, against a network that computes values and tangents side by side."""
    model, x, v = mlp(2, 5, 1, activation=nn.Tanh()), noise(6, 2), noise(6, 2, seed=1)
    collector = Collector(optimizer := optimizer_for(model))
    with forward_mode.dual_level():
        change = forward_mode.unpack_dual(model(forward_mode.make_dual(x, v))).tangent
        change.square().mean().backward()
    assert [rows.inputs.shape[1] for name, rows in collector.rows if name == "2"] == [6]  # u itself plays no part
    for site in optimizer.sites:
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in site.parameters().items()}
        (truth,) = site.rule.pack(site.module, grads)
        torch.testing.assert_close(collector.of_examples(site.name).sum(1), truth, rtol=1e-10, atol=1e-13)


def test_a_gradient_penalty_trains_every_layer_by_curvature():
    """|∇u| = 1, as in Wasserstein critics: u itself plays no part in the penalty."""
    model, x = mlp(2, 8, 8, 1, activation=nn.Tanh()), noise(32, 2)
    optimizer = KFAC(model, lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
        loss = (slope.norm(dim=1) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.layout.absent == set()


def physics_factors(x: Tensor, scale: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
    model = mlp(2, 5, 1, activation=nn.Tanh())
    optimizer = optimizer_for(model)
    (scale * (derivatives(model, x, 2) - 0.3).square().mean()).backward()
    return {name: (block.left.dense(), block.right.dense()) for name, block in factors(optimizer).items()}


def test_the_scale_of_the_loss_stays_on_the_output_side():
    plain, scaled = physics_factors(noise(6, 2)), physics_factors(noise(6, 2), 7.0)
    for name, (left, right) in plain.items():
        torch.testing.assert_close(scaled[name][0], 49 * left, rtol=1e-10, atol=0)
        torch.testing.assert_close(scaled[name][1], right, rtol=1e-10, atol=1e-13)


def test_duplicated_examples_change_nothing():
    x = noise(6, 2)
    once, twice = physics_factors(x), physics_factors(torch.cat((x, x)))
    for name, sides in once.items():
        for a, b in zip(sides, twice[name], strict=True):
            assert error(b, a) < 1e-12


def test_observed_residuals_pull_through_all_uses():
    """ExactFisher of a squared residual: rows of each pull sum to its row of the Jacobian, by `torch.func`."""
    model, x = mlp(2, 4, 1, activation=nn.Tanh()), noise(5, 2)
    optimizer = observer(model, ExactFisher(Gaussian()))
    collector = Collector(optimizer)
    residual = derivatives(model, x, 2)[:, None]
    optimizer.observe(residual)

    def laplacian(parameters: dict[str, Tensor]) -> Tensor:
        u = lambda point: functional_call(model, parameters, (point,))[0]  # noqa: E731
        return vmap(hessian(u))(x).diagonal(dim1=1, dim2=2).sum(1)

    jacobian = jacrev(laplacian)({name: p.detach() for name, p in model.named_parameters()})
    root = 2**0.5  # of the Hessian of r²
    for site in optimizer.sites:
        parts = {name: jacobian[f"{site.name}.{name}"] for name in site.parameters()}
        truth = torch.stack([site.rule.pack(site.module, {n: j[i] for n, j in parts.items()})[0] for i in range(5)], 1)
        got = collector.of_examples(site.name)
        torch.testing.assert_close(got, root * truth, rtol=1e-9, atol=1e-11)


def test_a_derivative_that_stops_at_an_output_is_not_followed_further():
    """Two passes in one loss, the first only as far as the output of a layer whose input the second goes on to."""
    model, x = mlp(2, 5, 1, activation=nn.Tanh()), noise(6, 2).requires_grad_()
    collector = Collector(optimizer := optimizer_for(model))
    z = model[0](x)
    u = model[2](z.tanh())
    (short,) = torch.autograd.grad(u.sum(), z, create_graph=True)
    (far,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (short.square().mean() + far.sin().mean() + u.square().mean()).backward()
    for site in optimizer.sites:
        (truth,) = site.rule.pack(site.module, {name: p.grad for name, p in site.parameters().items()})
        torch.testing.assert_close(collector.of_examples(site.name).sum(1), truth, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("frozen,uses", [("weight", 1), ("bias", 4)])
def test_a_bias_has_no_part_in_derivatives(frozen, uses):
    """Of a layer whose weight is frozen only the forward call counts, one row for each example."""
    model, x = mlp(2, 5, 4, 1, activation=nn.Tanh()), noise(6, 2).requires_grad_()
    model[2].get_parameter(frozen).requires_grad_(False)
    collector = Collector(optimizer := optimizer_for(model))
    (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    second.square().mean().backward()
    site = next(site for site in optimizer.sites if site.name == "2")
    assert len([name for name, _ in collector.rows if name == "2"]) == uses
    (truth,) = site.rule.pack(site.module, {name: p.grad for name, p in site.parameters().items()})
    torch.testing.assert_close(collector.of_examples("2").sum(1), truth, rtol=1e-10, atol=1e-13)


class Witness(torch.autograd.Function):
    """Passes on and keeps an object for as long as its node lives."""

    @staticmethod
    def forward(ctx, x, owner):
        ctx.kept = owner.pop()
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Object:
    """Something weakly referable."""


@pytest.mark.parametrize("at", ["x", "z"])
def test_graphs_are_freed_after_the_step(at):
    model = mlp(2, 5, 1, activation=nn.Tanh())
    optimizer = optimizer_for(model)
    kept = Object()
    alive, holder = weakref.ref(kept), [kept]
    del kept
    x = noise(4, 2).requires_grad_()
    z = model[0](Witness.apply(x, holder))
    u = model[2](z.tanh())
    (first,) = torch.autograd.grad(u.sum(), {"x": x, "z": z}[at], create_graph=True)
    (first.square().mean() + F.mse_loss(u, u.detach() + 1)).backward()
    optimizer.step()
    optimizer.zero_grad()
    del x, z, u, first
    gc.collect()
    assert alive() is None
