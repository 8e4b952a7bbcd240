"""Sampled, exact and input-only Fishers through `opt.observe`, against Jacobians of torch.func and against curvlinops."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from heatbath.curvature import (
    Bernoulli,
    Categorical,
    EmpiricalFisher,
    ExactFisher,
    Gaussian,
    InputOnly,
    Likelihood,
    Poisson,
    Reduction,
    SampledFisher,
    Sharing,
)
from heatbath.optim import KFAC
from tests.curvature.truth import error, factors, fill, ggn_block, hessian_block
from tests.laws import fresh, noise
from tests.zoo import LAYERS, PLAIN


def observer(model: nn.Module, fisher, **options) -> KFAC:
    """K-FAC that changes nothing and captures at every step."""
    return KFAC(model, lr=0.0, damping=1.0, momentum=0.0, policy=replace(PLAIN, fisher=fisher, **options), generator=fresh(3))


def observed(model: nn.Module, x: Tensor, fisher, *batches: Tensor, targets: Tensor | None = None, **options) -> dict:
    """Factors of passes over batches, whose loss is any function of the outputs: the Fisher does not depend on it."""
    optimizer = observer(model, fisher, **options)
    for batch in (x, *batches):
        optimizer.observe(model(batch), targets).square().mean().backward()
    found = factors(optimizer)
    optimizer.capture.detach()
    return found


def mlp(*sizes: int, activation: nn.Module | None = None, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias), copy.deepcopy(activation) or nn.Identity()]
    return fill(nn.Sequential(*layers[:-1]))


def full_ggn(model: nn.Module, name: str, x: Tensor, likelihood: Likelihood) -> Tensor:
    """(1/D) Jᵀ H J in a Linear's [W b], with H dense by the likelihood's product on unit vectors."""
    module = model.get_submodule(name)
    joint = module.weight if module.bias is None else torch.cat((module.weight, module.bias[:, None]), 1)

    def of(matrix: Tensor) -> Tensor:
        parts = {f"{name}.weight": matrix[:, : module.in_features]}
        if module.bias is not None:
            parts[f"{name}.bias"] = matrix[:, -1]
        return functional_call(model, parts, (x,))

    outputs = model(x).detach()
    jacobian = jacrev(of)(joint.detach()).reshape(outputs.numel(), -1)
    seen = likelihood.observe(outputs)
    pushed = [seen.as_outputs(seen.hessian(seen.as_rows(column.reshape(outputs.shape)))).flatten() for column in jacobian.mT]
    return jacobian.mT @ torch.stack(pushed, 1) / seen.terms


# --- exact ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["joint bias", "no bias"])
def test_law_1_exact_fisher_of_one_linear_layer_is_the_hessian(bias):
    model, x = fill(nn.Linear(3, 2, bias=bias)), noise(7, 3)
    block = observed(model, x, ExactFisher(Gaussian()))[""]
    torch.testing.assert_close(block.left.dense()[0], (2 / 2) * torch.eye(2).double(), rtol=1e-12, atol=1e-14)
    truth = hessian_block(model, "", lambda m, p: F.mse_loss(functional_call(m, p, (x,)), torch.zeros(7, 2).double()))
    assert error(block.dense()[0], truth) < 1e-13


@pytest.mark.parametrize("bias", [True, False], ids=["joint bias", "no bias"])
def test_law_2_exact_fisher_of_a_deep_linear_network_is_the_ggn_block(bias):
    model, x = mlp(4, 5, 3, 2, bias=bias), noise(6, 4)
    found = observed(model, x, ExactFisher(Gaussian()))
    for name, block in found.items():
        assert error(block.dense()[0], full_ggn(model, name, x, Gaussian())) < 1e-12


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical(), Bernoulli(), Poisson()], ids=lambda x: type(x).__name__)
def test_law_3_exact_fisher_of_one_example_is_the_ggn_block(likelihood):
    """Any likelihood, any activation, up to the Kronecker product that one example has."""
    model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(1, 4)
    for name, block in observed(model, x, ExactFisher(likelihood)).items():
        assert error(block.dense()[0], full_ggn(model, name, x, likelihood)) < 1e-12


def test_law_15_exact_fisher_of_a_piecewise_linear_network_is_the_hessian_block():
    """One example, away from kinks: GGN = Hessian per layer."""
    model, x, target = mlp(4, 5, 3, activation=nn.ReLU()), noise(1, 4), torch.tensor([1])
    found = observed(model, x, ExactFisher(Categorical()))
    for name, block in found.items():
        truth = hessian_block(model, name, lambda m, p: F.cross_entropy(functional_call(m, p, (x,)), target))
        assert error(block.dense()[0], truth) < 1e-11


def test_positions_do_not_mix_in_the_exact_fisher_of_a_network_that_mixes_them():
    """R terms per example through a layer that all of them share: pulling positions back together would add cross terms."""
    mix = noise(3, 3, seed=5)

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("rs,bsc->brc", mix, self.layer(x.mean(1, keepdim=True)).tanh().expand(-1, 3, -1))

    model, x = fill(Mixing()), noise(1, 3, 2)
    apart = observed(model, x, ExactFisher(Categorical(-1)))["layer"]
    together = observed(model, x, ExactFisher(Categorical(-1), together=True))["layer"]
    truth = full_ggn(model, "layer", x, Categorical(-1))
    assert error(apart.dense()[0], truth) < 1e-12
    assert error(together.dense()[0], truth) > 0.1


@pytest.mark.parametrize("together", [False, True])
def test_law_4_expand_is_exact_for_positions_that_stay_apart(together):
    model, x = mlp(4, 3, 2), noise(5, 6, 4)
    for name, block in observed(model, x, ExactFisher(Gaussian(), together)).items():
        assert error(block.dense()[0], full_ggn(model, name, x, Gaussian())) < 1e-12


def test_law_5_reduce_is_exact_for_positions_that_are_averaged():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mean(1)

    model, x = fill(Pooled()), noise(5, 6, 4)
    truth = full_ggn(model, "layer", x, Gaussian())
    reduce = observed(model, x, ExactFisher(Gaussian()), sharing={"layer": Sharing.REDUCE})["layer"]
    expand = observed(model, x, ExactFisher(Gaussian()))["layer"]
    assert error(reduce.dense()[0], truth) < 1e-12
    assert error(expand.dense()[0], truth) > 0.5


@pytest.mark.parametrize("likelihood,columns", [(Gaussian(), "mse"), (Categorical(), "ce")], ids=["mse", "cross-entropy"])
def test_the_exact_fisher_is_that_of_curvlinops(likelihood, columns):
    """KFACLinearOperator, type 2, expand, on a network with a convolution."""
    curvlinops = pytest.importorskip("curvlinops")
    model = fill(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)))
    x = noise(4, 2, 3, 3)
    target = noise(4, 3, seed=2) if columns == "mse" else torch.tensor([0, 2, 1, 1])
    loss = nn.MSELoss() if columns == "mse" else nn.CrossEntropyLoss()
    found = observed(model, x, ExactFisher(likelihood))
    parameters = list(model.parameters())
    theirs = curvlinops.KFACLinearOperator(
        model, loss, parameters, [(x, target)], fisher_type="type-2", separate_weight_and_bias=False
    )
    size = sum(p.numel() for p in parameters)
    dense = theirs @ torch.eye(size, dtype=torch.float64)
    blocks = {"0": (24, 3, 8), "3": (36, 3, 12)}
    start = 0
    for name, (weights, out, inputs) in blocks.items():
        count = weights + out
        block = dense[start : start + count, start : start + count]
        order = torch.cat((torch.arange(weights).reshape(out, inputs), weights + torch.arange(out)[:, None]), 1).flatten()
        assert error(found[name].dense()[0], block[order][:, order]) < 1e-12
        start += count


def test_duplicating_a_batch_changes_no_exact_fisher():
    model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(4, 4)
    once, thrice = observed(model, x, ExactFisher(Categorical())), observed(model, x.repeat(3, 1), ExactFisher(Categorical()))
    assert all(error(thrice[n].dense(), once[n].dense()) < 1e-12 for n in once)


def test_micro_batches_are_one_batch_also_where_they_count_differently():
    """Two passes with three and one labelled rows: D is four."""
    model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(6, 4)
    targets = torch.tensor([0, -100, 2, 1, -100, -100])
    whole = observed(model, x, ExactFisher(Categorical()), targets=targets)
    optimizer = observer(model, ExactFisher(Categorical()))
    for part, wanted in zip(x.split(3), targets.split(3), strict=True):
        optimizer.observe(model(part), wanted).mean().backward()
    parts = factors(optimizer)
    assert all(error(parts[n].dense(), whole[n].dense()) < 1e-12 for n in whole)


@pytest.mark.parametrize("row", [r for n, r in LAYERS.items()], ids=LAYERS.keys())
def test_every_layer_takes_observed_outputs(row):
    """One column of the root is one backward pass: the exact Fisher of a scalar output of one example, any layer."""
    model = fill(row.model())
    x = row.batch(1)
    outputs = lambda: model(x).flatten(1) @ noise(model(x).flatten(1).shape[1], 1, seed=6)  # noqa: E731
    if not outputs().is_floating_point():
        pytest.skip("no real output")
    optimizer = observer(model, ExactFisher(Gaussian(1.0)))
    optimizer.observe(outputs()).mean().backward()
    found = factors(optimizer)
    optimizer.capture.detach()
    plain = observer(model, EmpiricalFisher())
    outputs().mean().backward()
    truth = factors(plain)
    assert found.keys() == truth.keys()
    for name, block in found.items():
        torch.testing.assert_close(block.dense(), truth[name].dense(), rtol=1e-9, atol=1e-12)


# --- sampled -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical(), Bernoulli(), Poisson()], ids=lambda x: type(x).__name__)
def test_law_14_the_sampled_fisher_is_the_exact_one_in_expectation(likelihood):
    """400 captures: each entry of the mean B of the last layer within 5 standard errors, of each A at once."""
    model, x = mlp(3, 2, 2, activation=nn.Tanh()), noise(3, 3)
    optimizer = observer(model, SampledFisher(likelihood))
    draws = []
    for _ in range(400):
        optimizer.observe(model(x)).mean().backward()
        stack = next(s for s in optimizer.stacks if s.places[0].site.name == "2")
        terms = optimizer._seen.terms
        draws.append(stack.sums.collect(None, terms=terms)[0].left.dense()[0])
        optimizer._forget()
    samples = torch.stack(draws)
    truth = observed(model, x, ExactFisher(likelihood))["2"].left.dense()[0]
    z = (samples.mean(0) - truth) / (samples.std(0) / 400**0.5)
    assert z.abs().max() < 5
    assert (samples.std(0) / 400**0.5).max() < 0.2 * truth.abs().max()


def test_more_samples_are_an_average():
    """The variance of B falls as 1/samples: a ratio of 16 lies within its own 5σ of the F distribution's normal limit."""
    model, x = mlp(3, 2), noise(2, 3)
    spread = {}
    for samples in (1, 16):
        optimizer = observer(model, SampledFisher(Gaussian(), samples))
        draws = []
        for _ in range(300):
            optimizer.observe(model(x))
            draws.append(optimizer.stacks[0].sums.collect(None, terms=optimizer._seen.terms)[0].trace().item())
            optimizer._forget()
        spread[samples] = torch.tensor(draws).var().item()
    ratio = spread[1] / spread[16] / 16
    # traces are sums of few χ², variance of a variance 2/n + κ/n with excess κ ≤ 6: σ(log ratio) ≈ √(2·8/300)
    assert abs(torch.tensor(ratio).log().item()) < 5 * (16 / 300) ** 0.5


def test_sampling_uses_the_optimizers_generator_only():
    model, x = mlp(3, 2), noise(2, 3)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(observed(model, x, SampledFisher(Categorical()))["0"].left.dense())
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*found)


# --- input-only ----------------------------------------------------------------------------------------------------------


def test_input_only_curvature_is_the_identity_times_the_inputs():
    model, x = fill(nn.Linear(3, 2)), noise(7, 3)
    block = observed(model, x, InputOnly())[""]
    a = torch.cat((x, torch.ones(7, 1).double()), 1)
    truth = torch.kron(torch.eye(2).double(), a.mT @ a / 7)
    assert error(block.dense()[0], truth) < 1e-13


def test_input_only_step_is_foof():
    """ΔW = −lr G (A + λI)⁻¹ (Benzing 2022, eq. 4)."""
    model, x = fill(nn.Linear(3, 2)), noise(7, 3)
    before = torch.cat((model.weight, model.bias[:, None]), 1).detach().clone()
    optimizer = KFAC(model, lr=0.5, damping=0.1, momentum=0.0, policy=replace(PLAIN, fisher=InputOnly()))
    model(x).sin().sum(1).mean().backward()
    gradient = torch.cat((model.weight.grad, model.bias.grad[:, None]), 1)
    optimizer.step()
    a = torch.cat((x, torch.ones(7, 1).double()), 1)
    truth = -0.5 * torch.linalg.solve(a.mT @ a / 7 + 0.1 * torch.eye(4).double(), gradient.mT).mT
    found = torch.cat((model.weight, model.bias[:, None]), 1) - before
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-13)


def test_normalization_layers_keep_their_exact_block_without_gradient_factors():
    model, x = fill(nn.LayerNorm(3)), noise(4, 3)
    loss = lambda: model(x).sin().sum(1).mean()  # noqa: E731
    blocks = []
    for fisher in (InputOnly(), EmpiricalFisher()):
        optimizer = observer(model, fisher)
        loss().backward()
        blocks.append(factors(optimizer)[""].dense())
        optimizer.capture.detach()
    assert torch.equal(*blocks)


# --- the line itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fisher",
    [ExactFisher(Categorical()), SampledFisher(Categorical()), EmpiricalFisher(), InputOnly()],
    ids=lambda f: type(f).__name__,
)
def test_observe_returns_its_outputs_and_touches_no_gradient(fisher):
    model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(6, 4)
    optimizer = observer(model, fisher)
    outputs = model(x)
    assert optimizer.observe(outputs) is outputs
    assert fisher.observes == (len(list(fisher.vectors(Categorical().observe(outputs), None))) > 0)
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(outputs, torch.zeros(6, dtype=torch.long)).backward()
    plain = copy.deepcopy(model)
    plain.zero_grad()
    F.cross_entropy(plain(x), torch.zeros(6, dtype=torch.long)).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_the_ordinary_backward_pass_is_not_recorded_where_outputs_are_observed():
    model, x = mlp(4, 3), noise(6, 4)
    losses = (lambda y: y.square().mean(), lambda y: 1e6 * y.exp().sum())
    found = []
    for loss in losses:
        optimizer = observer(model, ExactFisher(Gaussian()))
        loss(optimizer.observe(model(x))).backward()
        found.append(factors(optimizer)["0"].dense())
        optimizer.capture.detach()
    assert torch.equal(*found)


def test_observe_is_free_where_no_factors_are_due():
    model, x = mlp(4, 3), noise(6, 4)
    policy = replace(PLAIN, fisher=ExactFisher(Gaussian()), factor_every=3, refresh_every=3)
    optimizer = KFAC(model, policy=policy)
    pulls = []
    for _ in range(7):
        optimizer.zero_grad()
        calls = []
        outputs = model(x)
        handle = outputs.grad_fn.register_hook(lambda *_: calls.append(1))  # noqa: B023
        optimizer.observe(outputs)
        pulls.append(len(calls))
        handle.remove()
        outputs.square().mean().backward()
        optimizer.step()
    assert pulls == [3, 0, 0, 3, 0, 0, 3]


def test_observe_does_nothing_without_gradients():
    model, x = mlp(4, 3), noise(6, 4)
    optimizer = observer(model, ExactFisher(Gaussian()))
    with torch.no_grad():
        optimizer.observe(model(x))
    assert optimizer._seen.terms is None


def test_a_step_whose_outputs_were_not_observed_says_what_to_do():
    model, x = mlp(4, 3), noise(6, 4)
    optimizer = KFAC(model, policy=replace(PLAIN, fisher=SampledFisher(Gaussian())))
    model(x).square().mean().backward()
    with pytest.warns(UserWarning, match=r"was opt\.observe\(outputs\) called"):
        optimizer.step()


def test_no_samples_are_no_fisher():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        SampledFisher(Gaussian(), 0)


@pytest.mark.parametrize("reduction", [None, Reduction.EXAMPLES, Reduction.ROWS], ids=str)
def test_a_sum_with_observed_outputs_steps_as_the_mean_does(reduction):
    """Law: sum and mean reductions agree."""
    steps = []
    for kind in (Reduction.SUM, reduction):
        model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(6, 4)
        policy = replace(PLAIN, fisher=ExactFisher(Categorical()), reduction=kind)
        optimizer = KFAC(model, lr=0.1, damping=0.1, policy=policy)
        outputs = optimizer.observe(model(x))
        target = torch.tensor([0, 1, 2, 0, 1, 1])
        F.cross_entropy(outputs, target, reduction="sum" if kind is Reduction.SUM else "mean").backward()
        optimizer.step()
        steps.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*steps, rtol=1e-11, atol=1e-13)


def test_the_truth_used_elsewhere_agrees():
    """`ggn_block` of tests/curvature/truth.py and `full_ggn` here are two derivations."""
    model, x = mlp(4, 3, 2), noise(5, 4)
    columns = lambda z: [c[:, 0] for c in Categorical().columns(z[:, None])]  # noqa: E731
    assert error(ggn_block(model, "2", x, columns)[0], full_ggn(model, "2", x, Categorical())) < 1e-12
