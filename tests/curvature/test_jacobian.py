"""G = JᵀHJ/D of a whole model against dense Jacobians and Hessians that `torch.func` takes of the loss itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from heatbath.curvature import (
    Bernoulli,
    Categorical,
    EmpiricalFisher,
    ExactFisher,
    Fisher,
    Gaussian,
    InputCapture,
    JacobianRoot,
    Likelihood,
    Passage,
    Poisson,
    SampledFisher,
    sight,
)
from heatbath.operators import Gram
from heatbath.optim import NGD
from heatbath.solvers import Cholesky, ConjugateGradient, Full, SmallSide
from tests.curvature.truth import fill
from tests.laws import fresh, noise

ZERO = torch.tensor(0.0, dtype=torch.float64)


@dataclass(frozen=True)
class Family:
    likelihood: Likelihood
    loss: Callable[[Tensor, Tensor], Tensor]
    targets: Callable[[Tensor], Tensor]
    dtype: torch.dtype = torch.float64


def _classes(z: Tensor) -> Tensor:
    return torch.arange(z.shape[0]) % z.shape[-1]


FAMILIES = {
    "Gaussian": Family(Gaussian(), F.mse_loss, lambda z: noise(*z.shape, seed=9)),
    "Categorical": Family(Categorical(), F.cross_entropy, _classes),
    "Bernoulli": Family(Bernoulli(), F.binary_cross_entropy_with_logits, lambda z: (noise(*z.shape, seed=9) > 0).double()),
    "Poisson": Family(Poisson(), F.poisson_nll_loss, lambda z: torch.ones_like(z)),
}
SOLVERS = [SmallSide(), Full(Cholesky()), ConjugateGradient(80, 1e-14)]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def mlp(seed: int = 0) -> nn.Module:
    return fill(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed)


def root_of(model: nn.Module, batches: list[Tensor], fisher: Fisher, loss=None, output=lambda z: z, **told) -> JacobianRoot:
    """What the optimizers do, by hand."""
    capture, seen = InputCapture(model), []
    for x in batches:
        outputs = output(model(x))
        seen.append(sight(capture.take(), outputs, fisher=fisher, generator=fresh(4), **told))
        if loss is not None:
            (loss(outputs) / len(batches)).backward()
    terms = torch.stack([torch.as_tensor(s.terms, dtype=torch.float64) for s in seen]).sum()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return JacobianRoot(model, parameters, [Passage(s, terms) for s in seen], terms, capture, output)


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """J `[*outputs, n]` by reverse mode, all at once."""
    point = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    with sdpa_kernel(SDPBackend.MATH):  # fused attention warns under vmap
        found = jacrev(lambda p: functional_call(model, p, (x,)))(point)
    shape = model(x).shape
    return torch.cat([found[n].reshape(*shape, -1) for n in point], -1)


def gauss_newton(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """JᵀHJ, H the Hessian of the mean loss at all outputs together, by `torch.func.hessian`."""
    z = model(x).detach()
    curvature = hessian(lambda flat: loss(flat.reshape(z.shape)))(z.flatten())
    j = jacobian(model, x).flatten(0, -2)
    return j.T @ curvature @ j


def close(got: Tensor, want: Tensor, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * want.abs().max().item())


@families
def test_products_and_rows_are_those_of_the_gauss_newton_matrix(family):
    model, x = mlp(), noise(6, 4, seed=1)
    targets = family.targets(model(x))
    truth = gauss_newton(model, x, lambda z: family.loss(z, targets))
    gram = Gram(root_of(model, [x], ExactFisher(family.likelihood)), ZERO)
    v = noise(2, gram.size, seed=3)
    close(gram @ v, v @ truth)
    close(gram @ v[0], truth @ v[0])
    close(gram.dense(), truth)
    close(gram.trace(), truth.trace())
    assert gram.root.shape == (sum(len(rows) for rows in gram.root.rows()), len(truth))


@families
@pytest.mark.parametrize(
    "solver", [SmallSide(), Full(Cholesky()), ConjugateGradient(80, 1e-14)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("examples", [3, 40], ids=["wide", "tall"])
def test_directions_are_those_of_a_dense_solve(family, solver, examples):
    model, x = mlp(), noise(examples, 4, seed=1)
    targets = family.targets(model(x))
    truth = gauss_newton(model, x, lambda z: family.loss(z, targets))
    damped = Gram(root_of(model, [x], ExactFisher(family.likelihood)), ZERO + 0.05)
    b = noise(damped.size, seed=2)
    state, _ = solver.prepare(damped)
    close(
        solver.solve(state, b).value, torch.linalg.solve(truth + 0.05 * torch.eye(len(truth), dtype=truth.dtype), b), rtol=1e-9
    )


def test_several_passes_are_one_pass_over_all_examples():
    model, x = mlp(), noise(7, 4, seed=1)
    fisher = ExactFisher(Categorical())
    whole, parts = (Gram(root_of(model, batches, fisher), ZERO) for batches in ([x], list(x.split(3))))
    close(parts.dense(), whole.dense())
    v = noise(whole.size, seed=3)
    close(parts @ v, whole @ v)


def test_positions_have_rows_of_their_own():
    """A network that mixes positions; a row's cross-entropy does not mix them in H."""

    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.inner(x).mean(1, keepdim=True).sin()

    model, x = fill(Mix()), noise(3, 2, 4, seed=1)
    y = torch.tensor([[0, 1], [2, 0], [1, -100]])
    truth = gauss_newton(model, x, lambda z: F.cross_entropy(z.flatten(0, 1), y.flatten()))
    told = (y, None, None)
    gram = Gram(root_of(model, [x], ExactFisher(Categorical(class_dim=-1)), told=told), ZERO)
    close(gram.dense(), truth)
    v = noise(gram.size, seed=3)
    close(gram @ v, truth @ v)


@families
def test_a_sampled_root_is_the_gauss_newton_matrix_on_average(family):
    """The mean of 1000 draws errs by its own standard error; z of the worst of 38 × 39/2 entries stays below 5."""
    model, x = mlp(), noise(2, 4, seed=1)
    targets = family.targets(model(x))
    truth = gauss_newton(model, x, lambda z: family.loss(z, targets))
    draws = 1000
    root = root_of(model, [x], SampledFisher(family.likelihood, draws))
    rows = torch.cat(list(root.rows())).unflatten(0, (2, draws)) * draws**0.5
    products = [torch.einsum("ki,kj->kij", r, r) for r in rows]
    each = products[0] + products[1]
    error = each.std(0) / draws**0.5
    z = (Gram(root, ZERO).dense() - truth).abs() / (error + 1e-12)
    assert z.max() < 5


def test_a_sampled_root_has_the_same_products_as_rows():
    model, x = mlp(), noise(3, 4, seed=1)
    gram = Gram(root_of(model, [x], SampledFisher(Categorical(), 3)), ZERO)
    v = noise(gram.size, seed=3)
    close(gram @ v, gram.dense() @ v)
    assert gram.root.shape[0] == 9


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_empirical_root_is_made_of_the_gradients_of_each_example(pieces):
    model, x, y = mlp(), noise(4, 4, seed=1), noise(4, 3, seed=2)
    truth = torch.zeros(())
    for i in range(4):
        model.zero_grad()
        F.mse_loss(model(x[i]), y[i]).backward()
        g = torch.cat([p.grad.flatten() for p in model.parameters()])
        truth = truth + torch.outer(g, g) / 4
    targets = iter(y.chunk(pieces))
    root = root_of(model, list(x.chunk(pieces)), EmpiricalFisher(), loss=lambda z: F.mse_loss(z, next(targets)))
    close(Gram(root, ZERO).dense(), truth)
    v = noise(len(truth), seed=3)
    close(Gram(root, ZERO) @ v, truth @ v)


def test_frozen_parameters_and_inputs_by_name_and_shared_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor, *, scale: float, shift: Tensor) -> dict[str, Tensor]:
            return {"logits": self.b(scale * self.a(x).tanh() + shift)}

    model, x, shift = fill(Two()), noise(5, 4, seed=1), noise(3, seed=2)
    model.a.requires_grad_(False)
    features = 2.0 * model.a(x).tanh() + shift
    design = torch.cat((features, torch.ones(5, 1)), 1).detach()
    truth = torch.block_diag(*[design.T @ design] * 2) / 5  # mean over B·C terms of H = 2: 2/(5·2)
    order = [0, 1, 2, 4, 5, 6, 3, 7]  # weight row by row, then bias
    capture = InputCapture(model)
    outputs = model(x, scale=2.0, shift=shift)["logits"]
    seen = sight(capture.take(), outputs, fisher=ExactFisher(Gaussian()))
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    root = JacobianRoot(model, parameters, [Passage(seen, seen.terms)], seen.terms, capture, lambda out: out["logits"])
    close(Gram(root, ZERO).dense(), truth[order][:, order])


def test_batch_norm_is_refused_where_examples_need_rows_and_exact_in_products():
    model, x, y = fill(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))), noise(6, 4), noise(6, 2, seed=1)
    root = root_of(model, [x], ExactFisher(Gaussian()))
    with pytest.raises(ValueError, match="1 is a BatchNorm1d in training mode, which mixes the examples of a batch"):
        list(root.rows())
    before = {n: b.clone() for n, b in model.named_buffers()}
    v = noise(root.shape[1], seed=3)
    product = root.bend(v)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    copy = {n: b.clone() for n, b in model.named_buffers()}
    point = {n: p.detach() for n, p in model.named_parameters()}
    found = jacrev(lambda p: functional_call(model, {**p, **{n: b.clone() for n, b in copy.items()}}, (x,)))(point)
    j = torch.cat([found[n].reshape(12, -1) for n in point], -1)
    close(product, j.T @ (j @ v) * 2 / y.numel())
    list(root_of(model.eval(), [x], ExactFisher(Gaussian())).rows())


class Recurrent(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner = kind(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0][:, -1]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM], ids=lambda kind: kind.__name__)
def test_recurrent_layers_are_refused_where_examples_need_rows_and_exact_in_products(kind):
    model, x, y = fill(Recurrent(kind)), noise(4, 5, 3), noise(4, 2, seed=1)
    root = root_of(model, [x], ExactFisher(Gaussian()))
    with pytest.raises(ValueError, match=f"inner is a {kind.__name__}, which torch.func cannot take apart by example: use"):
        list(root.rows())
    parameters, v = list(model.parameters()), noise(root.shape[1], seed=3)
    rows = []
    for z in model(x).flatten():
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(z, parameters, retain_graph=True)]))
    j = torch.stack(rows)
    close(root.bend(v), j.T @ (j @ v) * 2 / y.numel())


def test_inputs_are_kept_of_calls_that_gradients_are_wanted_of():
    model, x = mlp(), noise(2, 4)
    capture = InputCapture(model)
    with torch.no_grad():
        model(x)
    assert capture.take() is None
    model(x)
    assert capture.take() == ((x,), {})
    capture.detach()
    model(x)
    assert capture.take() is None


def test_an_empirical_root_needs_outputs_with_their_graph():
    with pytest.raises(TypeError, match="observe takes the tensor the loss is computed from, with its graph, got Tensor"):
        sight(((), {}), torch.ones(2, 3), fisher=EmpiricalFisher())


def _attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Flatten(2), layer, nn.Flatten(), nn.Linear(16, 3))


COMMON = {
    "conv": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
    "layer norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)),
    "transformer": _attention,
}


@pytest.mark.parametrize("make", COMMON.values(), ids=COMMON.keys())
def test_common_layers_have_products_and_rows(make):
    model, x = fill(make()), noise(3, 1, 4, 4, seed=1)
    y = torch.tensor([0, 1, 2])
    truth = gauss_newton(model, x, lambda z: F.cross_entropy(z, y))
    gram = Gram(root_of(model, [x], ExactFisher(Categorical())), ZERO)
    close(gram.dense(), truth)
    v = noise(gram.size, seed=3)
    close(gram @ v, truth @ v)


@pytest.mark.parametrize("kind", [nn.PReLU, nn.RReLU])
def test_activations_that_vmap_cannot_take_apart_are_named(kind):
    model = nn.Sequential(nn.Linear(3, 4), kind(), nn.Linear(4, 2)).eval()
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()), lr=0.1, damping=0.1)
    optimizer.observe(model(torch.ones(5, 3))).square().mean().backward()
    with pytest.raises(ValueError, match=f"1 is a {kind.__name__}, which torch.func cannot take apart by example: use"):
        optimizer.step()
