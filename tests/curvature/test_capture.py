"""Capture meets networks as people write them. The judge records (input, output) of each call in the network itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heatbath.curvature import find_sites
from heatbath.layers import default_rules
from tests.curvature.truth import factors, fill, optimizer_for
from tests.laws import noise
from tests.zoo import LAYERS

both_bias = pytest.mark.parametrize("bias", [True, False], ids=["joint bias", "no bias"])
ROUNDING = {"rtol": 1e-12, "atol": 1e-14}


class Recorded(nn.Module):
    """A network that notes what each of its layers was called with and what came out."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2, bias=bias)  # registered in another order than called
        self.first = nn.Linear(3, 4, bias=bias)
        self.calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def call(self, name: str, x: Tensor) -> Tensor:
        y = self.get_submodule(name)(x)
        if y.requires_grad:
            y.retain_grad()
            self.calls.setdefault(name, []).append((x.detach(), y))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.call("last", self.call("first", x).tanh())


class Frozen(Recorded):
    def __init__(self, bias: bool) -> None:
        super().__init__(bias)
        self.first.requires_grad_(False)


class Unused(Recorded):
    def __init__(self, bias: bool) -> None:
        super().__init__(bias)
        self.idle = nn.Linear(5, 5, bias=bias)


class Reused(Recorded):
    def __init__(self, bias: bool) -> None:
        super().__init__(bias)
        self.middle = nn.Linear(4, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.call("first", x).tanh()
        for _ in range(3):
            h = self.call("middle", h).tanh()
        return self.call("last", h)


class NonContiguous(Recorded):
    """The first layer reads a transposed view; positions are its second dimension."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.stack((x, 2 * x, x.sin()), 2).transpose(1, 2)
        assert not wide.is_contiguous()
        return self.call("last", self.call("first", wide).tanh())


class Positions(Recorded):
    """Several leading dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.call("last", self.call("first", x[:, None, None] * noise(2, 3, 1)).tanh())


class InPlace(Recorded):
    """An activation overwrites the layer's output; the layer before it keeps its own gradient by the product rule."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.get_submodule("first")(x)
        kept = y.detach().clone()
        h = torch.nn.functional.leaky_relu_(y, 0.3)
        if h.requires_grad:
            self.calls.setdefault("first", []).append((x.detach(), (kept > 0).double() + 0.3 * (kept <= 0).double(), h))
            h.retain_grad()
        return self.call("last", h * 1.0)


def truth(model: Recorded, examples: int, name: str, bias: bool) -> tuple[Tensor, Tensor]:
    """B = D Σ g gᵀ and A = Σ a aᵀ/T from recorded calls, D the examples of all passes."""
    rows, gradients = [], []
    for call in model.calls[name]:
        x, *rest = call
        gradient = rest[0].grad if len(rest) == 1 else rest[0] * rest[1].grad
        rows.append(x.reshape(-1, x.shape[-1]))
        gradients.append(gradient.reshape(-1, gradient.shape[-1]))
    a, g = torch.cat(rows), torch.cat(gradients)
    if bias:
        a = torch.cat((a, torch.ones(len(a), 1, dtype=a.dtype)), 1)
    return examples * g.mT @ g, a.mT @ a / len(a)


def loss_of(outputs: Tensor) -> Tensor:
    return outputs.flatten(1).sin().sum(1).mean()


def one_pass(model: nn.Module) -> int:
    loss_of(model(noise(5, 3))).backward()
    return 5


def passes_without_gradients_between(model: nn.Module) -> int:
    with torch.no_grad():
        model(noise(7, 3, seed=5))
    outputs = model(noise(5, 3))
    model.eval()
    with torch.inference_mode():
        model(noise(2, 3, seed=6))
    model.train()
    loss_of(outputs).backward()
    return 5


def two_forwards_one_backward(model: nn.Module) -> int:
    (loss_of(model(noise(5, 3))) / 2 + loss_of(model(noise(5, 3, seed=8))) / 2).backward()
    return 10


def two_micro_batches(model: nn.Module) -> int:
    for seed in (1, 2):
        (loss_of(model(noise(4, 3, seed=seed))) / 2).backward()
    return 8


def unequal_micro_batches(model: nn.Module) -> int:
    for size in (2, 6):
        (loss_of(model(noise(size, 3, seed=size))) * size / 8).backward()
    return 8


def a_backward_by_hand(model: nn.Module) -> int:
    outputs = model(noise(5, 3))
    outputs.backward(torch.autograd.grad(loss_of(leaf := outputs.detach().requires_grad_()), leaf)[0])
    return 5


RUNS = [
    one_pass,
    passes_without_gradients_between,
    two_forwards_one_backward,
    two_micro_batches,
    unequal_micro_batches,
    a_backward_by_hand,
]
NETWORKS = [Recorded, Frozen, Unused, Reused, NonContiguous, Positions, InPlace]


@both_bias
@pytest.mark.parametrize("run", RUNS, ids=lambda f: f.__name__.replace("_", " "))
@pytest.mark.parametrize("network", NETWORKS, ids=lambda c: c.__name__)
def test_factors_are_those_of_the_recorded_calls(network, run: Callable[[nn.Module], int], bias):
    model = fill(network(bias))
    plain = copy.deepcopy(model)
    optimizer = optimizer_for(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples = run(model)
    run(plain)
    for (name, watched), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (watched.grad is None) == (other.grad is None), name
        assert other.grad is None or torch.equal(watched.grad, other.grad), name
    found = factors(optimizer)
    for name in model.calls:
        if not any(p.requires_grad for p in model.get_submodule(name).parameters()):
            assert name not in found
            continue
        left, right = truth(model, examples, name, bias)
        torch.testing.assert_close(found[name].left.dense()[0], left, **ROUNDING)
        torch.testing.assert_close(found[name].right.dense()[0], right, **ROUNDING)


def test_an_unused_layer_sees_nothing_and_its_neighbours_in_the_stack_do():
    class TwoOfAKind(Recorded):
        def __init__(self) -> None:
            super().__init__(True)
            self.idle = nn.Linear(3, 4)

    model = fill(TwoOfAKind())
    optimizer = optimizer_for(model)
    examples = one_pass(model)
    found = factors(optimizer)
    assert found["idle"].dense().abs().max() == 0
    torch.testing.assert_close(found["first"].left.dense()[0], truth(model, examples, "first", True)[0], **ROUNDING)
    (stack,) = [s for s in optimizer.stacks if s.length == 2]
    assert dict(zip(stack.names, stack.ages, strict=True)) == {"first[0]": 1, "idle[0]": 0}


class Checkpointed(nn.Module):
    """The same two layers, the first of them recomputed during the backward pass."""

    def __init__(self, inner: Recorded, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = inner, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        first = lambda v: self.inner.first(v).tanh()  # noqa: E731
        return self.inner.last(checkpoint(first, x.requires_grad_(), use_reentrant=self.use_reentrant))


@both_bias
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant, bias):
    plain, model = fill(Recorded(bias)), Checkpointed(fill(Recorded(bias)), use_reentrant)
    expected, found = [], []
    for network, result in ((plain, expected), (model, found)):
        optimizer = optimizer_for(network)
        one_pass(network)
        result.append([p.grad.clone() for p in network.parameters()])
        result.append({n.removeprefix("inner."): f.dense() for n, f in factors(optimizer).items()})
    assert all(torch.equal(a, b) for a, b in zip(expected[0], found[0], strict=True))
    assert expected[1].keys() == found[1].keys()
    for name, block in expected[1].items():
        torch.testing.assert_close(found[1][name], block, **ROUNDING)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_model_that_is_checkpointed_as_a_whole_is_one_pass(use_reentrant):
    plain, model = fill(Recorded(True)), fill(Recorded(True))
    one, other = optimizer_for(plain), optimizer_for(model)
    one_pass(plain)
    loss_of(checkpoint(model, noise(5, 3).requires_grad_(), use_reentrant=use_reentrant)).backward()
    expected, found = factors(one), factors(other)
    for name, block in expected.items():
        torch.testing.assert_close(found[name].dense(), block.dense(), **ROUNDING)


class Overwritten(nn.Module):
    """A layer and an activation, which overwrites the layer's output or does not."""

    def __init__(self, layer: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.layer, self.activation = layer, nn.LeakyReLU(0.3, inplace=in_place)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x))


BATCHED = {name: (row, row.batch(4)) for name, row in LAYERS.items()}
ALONE = {
    f"one {name}": (row, row.batch(1)[0])
    for name, row in LAYERS.items()
    if any(k in name for k in ("conv", "att", "rnn", "lstm"))
}


@pytest.mark.parametrize("row,x", [*BATCHED.values(), *ALONE.values()], ids=[*BATCHED, *ALONE])
def test_outputs_that_are_overwritten_are_seen_as_they_were(row, x):
    """Also where an output is a view of what autograd knows, which then leaves the graph with every hook on it."""
    found = []
    for in_place in (False, True):
        model = Overwritten(row.model(), in_place)
        optimizer = optimizer_for(model)
        (model(x) * noise(*model(x).shape, seed=3)).sin().sum().backward()
        found.append(factors(optimizer))
        optimizer.capture.detach()
    assert found[0].keys() == found[1].keys() != set()
    for name, block in found[0].items():
        torch.testing.assert_close(found[1][name].dense(), block.dense(), **ROUNDING)
        assert block.dense().abs().max() > 0


def test_no_graph_outlives_the_backward_pass():
    """Activations are free again once the user lets go of them: hooks must not tie a knot."""
    import gc
    import weakref

    model = fill(Recorded(True))
    optimizer = optimizer_for(model)
    gc.disable()
    try:
        outputs = nn.Sequential(model.first, nn.Tanh(), model.last)(noise(5, 3))
        node = weakref.ref(outputs)
        loss_of(outputs).backward()
        del outputs
        assert node() is None
        outputs = nn.Sequential(model.first, nn.Tanh(), model.last)(noise(5, 3))  # never backward
        node = weakref.ref(outputs)
        del outputs
        assert node() is None
    finally:
        gc.enable()
    assert optimizer.stacks


def test_trap_6_a_first_layer_whose_input_needs_no_gradient_is_seen_without_a_warning():
    """A full-backward hook warns here and brings nothing."""
    model = fill(nn.Linear(3, 2))
    optimizer = optimizer_for(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(model(noise(5, 3))).backward()
    assert factors(optimizer)[""].left.dense().abs().max() > 0


def test_capture_can_be_switched_off_and_detached():
    model = fill(Recorded(True))
    optimizer = optimizer_for(model)
    optimizer.capture.enabled = False
    one_pass(model)
    assert not any(c.rows for s in optimizer.stacks for c in s.sums.counts)
    optimizer.capture.enabled = True
    optimizer.capture.detach()
    one_pass(model)
    assert not any(c.rows for s in optimizer.stacks for c in s.sums.counts)
    assert not model.first._forward_hooks
    assert not model._forward_pre_hooks


# --- which modules are sites -------------------------------------------------------------------------------------------


def names(model: nn.Module, **options) -> list[str]:
    return [site.name for site in find_sites(model, default_rules(), **options)]


def test_sites_are_the_outermost_modules_with_a_rule():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.MultiheadAttention(4, 2), nn.Bilinear(1, 1, 1)))
    assert names(model) == ["0", "2.0"]
    assert names(nn.Linear(2, 2)) == [""]


def test_a_skipped_module_is_no_site():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert names(model, skip=lambda name, module: name == "0") == ["1"]
    assert names(model, skip=lambda name, module: isinstance(module, nn.Linear)) == []


def test_a_parameter_is_treated_once():
    """By the first of modules that are alike; by nobody where their blocks differ (here by a bias each)."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    (site,) = find_sites(model, default_rules())
    assert site.name == "0"
    assert site.twins == (model[1],)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert names(model) == ["2"]


def test_a_frozen_module_is_no_site():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    model[1].bias.requires_grad_(False)
    (site,) = find_sites(model, default_rules())
    assert site.name == "1"
    assert set(site.parameters()) == {"weight"}
