"""Which backward passes count, and how many terms the loss has, for models as people write them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heatbath.curvature import Categorical, ExactFisher, Gaussian, Reduction, Sharing
from heatbath.optim import KFAC, Policy
from heatbath.work import Work, matmul
from tests.curvature.test_fisher import mlp, observer
from tests.curvature.truth import error, factors, fill, optimizer_for
from tests.laws import noise
from tests.zoo import PLAIN


def rows(optimizer: KFAC) -> int:
    return sum(c.rows for stack in optimizer.stacks for c in stack.sums.counts)


# --- which passes count ----------------------------------------------------------------------------------------------------


def test_derivatives_inside_a_loss_do_not_count():
    """A physics-informed loss differentiates its outputs twice in its inputs; only its own backward pass trains.

    It brings five uses: z of the first layer (u itself plays no part); of the first pass, products with both weights; of the
    second, ż of the first layer and one more product with its weight.
    """
    model, x = mlp(2, 5, 1, activation=nn.Tanh()), noise(6, 2).requires_grad_()
    optimizer = optimizer_for(model)
    u = model(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    assert rows(optimizer) == 0
    assert optimizer.capture.terms == {}
    (second[:, 0] - first[:, 1]).square().mean().backward()
    assert rows(optimizer) == 5 * 6
    assert list(optimizer.capture.terms.values()) == [(6, 6)]


def test_such_a_loss_trains():
    """u'' = −u with u(0) = 0, u(1) = sin 1, to be found on a line."""
    model = mlp(1, 12, 1, activation=nn.Tanh())
    optimizer = KFAC(model, lr=0.05, damping=1e-2)
    losses = []
    for _ in range(60):
        x = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None].requires_grad_()
        optimizer.zero_grad()
        u = model(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        edges = u[0].square().sum() + (u[-1] - torch.tensor(1.0).sin()).square().sum()
        loss = (second + u).square().mean() + edges
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_gradient_asked_for_by_autograd_grad_counts_if_it_is_of_the_parameters():
    model, x = mlp(4, 3), noise(5, 4).requires_grad_()
    optimizer = optimizer_for(model)
    torch.autograd.grad(model(x).square().mean(), x)
    assert rows(optimizer) == 0
    torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    assert rows(optimizer) == 5


def test_a_double_backward_of_the_loss_itself_counts():
    model, x = mlp(4, 3), noise(5, 4)
    optimizer = optimizer_for(model)
    with pytest.warns(UserWarning, match="create_graph=True will create a reference cycle"):
        model(x).square().mean().backward(create_graph=True)
    assert rows(optimizer) == 5
    for p in model.parameters():
        p.grad = None  # a graph hangs on it


@pytest.mark.parametrize("together", [False, True])
def test_observed_outputs_of_a_checkpointed_model(together):
    """Non-reentrant checkpointing recomputes for each pull; `.grad` and factors are as without."""

    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    found = []
    for wrap in (lambda m: m, Checkpointed):
        model = wrap(mlp(4, 5, 3, activation=nn.Tanh()))
        optimizer = observer(model, ExactFisher(Categorical(), together))
        F.cross_entropy(optimizer.observe(model(noise(6, 4))), torch.arange(6) % 3).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        found.append((grads, [block.dense() for block in factors(optimizer).values()]))
    for a, b in zip(found[0][0] + found[0][1], found[1][0] + found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Middle(nn.Module):
    """Three layers, the middle one checkpointed or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        h = self.middle(h) if self.reentrant is None else checkpoint(self.middle, h, use_reentrant=self.reentrant)
        return self.last(h.tanh())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_seen_once_in_the_ordinary_backward_pass(reentrant):
    """A reentrant checkpoint runs a backward pass within the backward pass."""
    found = []
    for kind in (None, reentrant):
        model = fill(Middle(kind))
        optimizer = optimizer_for(model)
        F.cross_entropy(model(noise(6, 4)), torch.arange(6) % 3).backward()
        assert rows(optimizer) == 3 * 6
        assert list(optimizer.capture.terms.values()) == [(6, 6)]
        found.append(factors(optimizer))
    for name, block in found[0].items():
        torch.testing.assert_close(block.dense(), found[1][name].dense(), rtol=1e-12, atol=1e-14)


def test_observing_through_reentrant_checkpoints_is_refused():
    model = fill(Middle(True))
    optimizer = observer(model, ExactFisher(Categorical()))
    with pytest.raises(
        ValueError, match=r"observe cannot pull vectors back through reentrant checkpoints.*use_reentrant=False"
    ):
        optimizer.observe(model(noise(6, 4)))


def test_nothing_is_pulled_back_through_outputs_without_a_graph():
    model = mlp(4, 3)
    optimizer = observer(model, ExactFisher(Categorical()))
    assert optimizer.observe(noise(5, 3)).shape == (5, 3)
    assert rows(optimizer) == 0


# --- terms of the loss -------------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """One layer, outputs in a container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 3), kind

    def forward(self, x: Tensor, target: Tensor | None = None):
        logits = self.layer(x)
        loss = None if target is None else F.cross_entropy(logits, target)
        return {"tuple": (logits, x), "dict": {"loss": loss, "logits": logits}, "nested": [(), {"deep": logits}], "loss": loss}[
            self.kind
        ]


@pytest.mark.parametrize("kind", ["tuple", "dict", "nested", "loss"])
def test_containers_and_losses_inside_a_model_are_seen_through(kind):
    """A bare loss stands for the inputs' batch."""
    x, target = noise(6, 4), torch.arange(6) % 3
    model = fill(Wrapped(kind))
    optimizer = optimizer_for(model)
    out = model(x, target=target)
    pick = {"tuple": lambda: out[0], "dict": lambda: out["logits"], "nested": lambda: out[1]["deep"]}
    loss = out if kind == "loss" else out["loss"] if kind == "dict" else F.cross_entropy(pick[kind](), target)
    loss.backward()
    assert list(optimizer.capture.terms.values()) == [(6, 6)]
    plain = mlp(4, 3)
    other = optimizer_for(plain)
    F.cross_entropy(plain(x), target).backward()
    assert error(factors(optimizer)["layer"].dense(), factors(other)["0"].dense()) < 1e-13


@pytest.mark.parametrize(
    "shape,terms", [((6, 3), (6, 6)), ((2, 5, 3), (2, 0)), ((2, 3, 3), (2, 6)), ((2, 3, 4, 4), (2, 0)), ((7,), (7, 7))]
)
def test_examples_and_positions_of_an_output(shape, terms):
    """0 positions where nothing tells them from features: the layer has one feature, which the outputs lack."""

    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[..., None])[..., 0]

    model = fill(Shaped())
    optimizer = optimizer_for(model)
    model(noise(*shape)).mean().backward()
    assert list(optimizer.capture.terms.values()) == [terms]


def test_tokens_are_counted_by_the_loss_also_in_layers_that_see_fewer_rows():
    """A mean over all tokens; one layer sees a summary of each sequence only: D is the number of tokens for it, too."""

    class Summarized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.summary = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.tokens(x) + self.summary(x.mean(1))[:, None]

    model, x = fill(Summarized()), noise(4, 5, 4)
    optimizer = optimizer_for(model, reduction=Reduction.ROWS)
    model(x).sin().sum(-1).mean().backward()
    gamma = model(x).detach().cos().sum(1)  # of the sum over a sequence, at the summary
    left = factors(optimizer)["summary"].left.dense()[0]
    torch.testing.assert_close(left, gamma.mT @ gamma / 20, rtol=1e-12, atol=1e-14)


def test_inputs_are_multiplied_once_however_many_vectors_are_pulled_back():
    model, x = fill(nn.Linear(3, 2)), noise(7, 3)
    optimizer = KFAC(model, policy=replace(PLAIN, fisher=ExactFisher(Gaussian())))
    optimizer.observe(model(x))
    assert optimizer.work == Work.of(matmul(4, 7, 4)) + Work.of(matmul(2, 7, 2), 2)


def test_a_submodule_called_alone_counts_its_own_rows():
    """The model's own forward is never called, as with encoders used apart."""
    model, x = mlp(4, 3, 2), noise(6, 4)
    optimizer = optimizer_for(model)
    model[0](x).square().sum(1).mean().backward()
    assert optimizer.capture.terms == {}
    gradient = 2 * model[0](x).detach()
    left = factors(optimizer)["0"].left.dense()[0]
    torch.testing.assert_close(left, gradient.mT @ gradient / 6, rtol=1e-12, atol=1e-14)


class _Steps(nn.Module):
    """Like a LightningModule: its own forward is never called, and one part is used twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.last(self.inner(self.inner(x).tanh()).tanh()), y)


def test_without_a_forward_of_the_model_micro_batches_are_one_batch():
    x, y = noise(8, 4), torch.arange(8) % 3
    found = []
    for parts in (1, 4):
        model = fill(_Steps())
        optimizer = optimizer_for(model)
        for _ in range(2):
            for micro in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (model.loss(*micro) / parts).backward()
            held = {name: each.left.dense() for name, each in factors(optimizer).items()}  # this steps
        found.append(held)
    for name, left in found[0].items():
        torch.testing.assert_close(found[1][name], left, rtol=1e-12, atol=1e-14)


def test_a_submodule_called_alone_twice_is_used_twice():
    """Uses are positions: two calls on six examples are six terms, and twelve rows of inputs."""
    model, x = mlp(4, 4, 2), noise(6, 4)
    optimizer = optimizer_for(model)
    model[0](model[0](x)).square().sum(1).mean().backward()
    first = model[0](x).detach().requires_grad_()
    second = model[0](first)
    (back,) = torch.autograd.grad(second.square().sum(), first)
    gamma = torch.cat((2 * second.detach(), back))
    found = factors(optimizer)["0"]
    torch.testing.assert_close(found.left.dense()[0], gamma.mT @ gamma / 6, rtol=1e-12, atol=1e-14)
    a = torch.cat((torch.cat((x, first.detach())), torch.ones(12, 1).double()), 1)
    torch.testing.assert_close(found.right.dense()[0], a.mT @ a / 12, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction,terms", [(Reduction.EXAMPLES, 6), (Reduction.ROWS, 30)])
def test_a_submodule_called_alone_counts_the_positions_that_it_reduces(reduction, terms):
    model, x = mlp(4, 3, 2), noise(6, 5, 4)
    optimizer = optimizer_for(model, reduction=reduction, sharing={"0": Sharing.REDUCE})
    (model[0](x).square().sum() / terms).backward()
    gamma = 2 * model[0](x).detach().sum(1)
    left = factors(optimizer)["0"].left.dense()[0]
    torch.testing.assert_close(left, gamma.mT @ gamma / terms, rtol=1e-12, atol=1e-14)


def test_sharing_is_checked_at_the_door():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    with pytest.raises(
        ValueError, match=r"sharing names 'last', which is no module of this model: use names as in model\.named_modules"
    ):
        KFAC(model, policy=replace(PLAIN, sharing={"last": Sharing.REDUCE}))
    with pytest.raises(ValueError, match=r"0: reduce cannot average one-hot inputs; use Sharing\.EXPAND for embeddings"):
        KFAC(model, policy=replace(PLAIN, sharing={"0": Sharing.REDUCE}))
    KFAC(model, policy=Policy(sharing={"0": Sharing.EXPAND, "1": Sharing.REDUCE}))
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.ReLU())
    for name, kind in (("0", "Sequential"), ("1", "ReLU")):
        with pytest.raises(ValueError, match=f"sharing names '{name}', a {kind} without curvature of its own: name the layers"):
            KFAC(nested, policy=replace(PLAIN, sharing={name: Sharing.REDUCE}))


def test_sharing_of_a_tied_layer_may_be_named_by_either_of_its_names():
    def tied() -> nn.Sequential:
        model = fill(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
        model[2].weight, model[2].bias = model[0].weight, model[0].bias
        return model

    found = []
    for sharing in ({}, {"0": Sharing.REDUCE}, {"2": Sharing.REDUCE}, {"0": Sharing.REDUCE, "2": Sharing.REDUCE}):
        model = tied()
        optimizer = optimizer_for(model, sharing=sharing)
        model(noise(3, 5, 4)).mean(1).square().sum(1).mean().backward()
        found.append(factors(optimizer)["0"].dense())
    assert error(found[0], found[1]) > 0.1
    assert all(torch.equal(found[1], other) for other in found[2:])
    with pytest.raises(ValueError, match="2 is tied to a layer for which sharing says EXPAND: choose one for both"):
        KFAC(tied(), policy=replace(PLAIN, sharing={"0": Sharing.EXPAND, "2": Sharing.REDUCE}))
