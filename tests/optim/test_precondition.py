"""K-FAC in front of other optimizers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import Categorical, ExactFisher, Reduction
from heatbath.optim import KFAC, KLClip, LevenbergMarquardt, NormClip, Policy, QuadraticModel, Unclipped, preconditioned
from heatbath.solvers import Eigen
from heatbath.work import Work, update
from tests.curvature.truth import fill
from tests.laws import batches, network, noise, parameters_of, saved_and_loaded
from tests.zoo import PLAIN

POLICY = Policy(factor_every=2, refresh_every=3, patience=0)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, data, observe=lambda x: x, reduction: str = "mean") -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(observe(model(x)), y, reduction=reduction).backward()
        optimizer.step()


def without_fallback(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for p in model.parameters():
        p.data.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("trust", [KLClip(), NormClip(0.1), Unclipped()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize(
    "options", [{}, {"fisher": ExactFisher(Categorical())}, {"reduction": Reduction.SUM}], ids=["mean", "exact", "sum"]
)
def test_in_front_of_sgd_it_is_kfac(momentum, trust, options):
    """SGD's buffer is K-FAC's: m ← momentum·m + νF⁻¹g from the second step on, and the first step is the same too."""
    policy = replace(POLICY, trust=trust, **options)
    one, two = without_fallback(), without_fallback()
    kfac = KFAC(one, lr=0.1, momentum=momentum, damping=0.1, policy=policy)
    sgd = torch.optim.SGD(two.parameters(), lr=0.1, momentum=momentum)
    handle = preconditioned(sgd, two, damping=0.1, policy=policy)
    reduction = "sum" if "reduction" in options else "mean"
    learn(one, kfac, batches(6), kfac.observe, reduction)
    learn(two, sgd, batches(6), handle.observe, reduction)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)
    assert handle.report() == kfac.report()
    numbers = sum(p.numel() for p in one.parameters())
    assert handle.work + Work.of(update(numbers, operations=5, touched=5), 6) == kfac.work  # the update is SGD's own there


def test_parameters_without_curvature_keep_their_gradient():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = preconditioned(sgd, model, policy=PLAIN)
    ((x, y),) = batches(1)
    F.cross_entropy(model(x), y).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    before = parameters_of(model)
    sgd.step()
    same = [torch.equal(g, p.grad) for g, p in zip(plain, model.parameters(), strict=True)]
    assert same == [False, False, True, False, False]
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * p.grad, rtol=1e-14, atol=0)
    assert handle.coverage().count("adamw") == 5


def test_without_gradients_or_before_any_curvature_nothing_is_exchanged():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    preconditioned(sgd, model, policy=PLAIN)
    before = parameters_of(model)
    with pytest.warns(UserWarning, match=r"step\(\) found no gradients and changed nothing"):
        sgd.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for p in model.parameters():
        p.grad = torch.ones_like(p)  # by hand: no curvature was captured, and there is none from before
    with pytest.warns(UserWarning, match="found gradients but no captured curvature"):
        sgd.step()
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert all(torch.equal(p, q - 0.1) for p, q in zip(model.parameters(), before, strict=True))


def test_schedules_of_the_optimizer_reach_the_trust_rule():
    """Clipping depends on lr: at a hundredth of it nothing is clipped any more."""
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=10.0)
    handle = preconditioned(sgd, model)
    schedule = torch.optim.lr_scheduler.StepLR(sgd, 1, gamma=1e-5)
    for x, y in batches(2):
        learn(model, sgd, [(x, y)])
        schedule.step()
    assert handle.report()["clipped_share"] == 0.5


@pytest.mark.parametrize("positional", [True, False])
def test_a_closure_is_called_once_and_preconditioned_after(positional):
    one, two = network(), network()
    for model, closed in ((one, False), (two, True)):
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        preconditioned(sgd, model, policy=PLAIN)
        calls = []
        for x, y in batches(3):

            def closure():
                sgd.zero_grad()  # noqa: B023
                loss = F.cross_entropy(model(x), y)  # noqa: B023
                loss.backward()
                calls.append(loss)  # noqa: B023
                return loss

            if closed:
                assert (sgd.step(closure) if positional else sgd.step(closure=closure)) is calls[-1]
            else:
                closure()
                sgd.step()
        assert len(calls) == 3
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.AdamW(p, lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)],
    ids=["foreach", "fused"],
)
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_scaler_has_no_effect(make, by_hand):
    """Also on optimizers that unscale inside their own kernel."""
    models = []
    for scaled in (False, True):
        model = network()
        adam = make(model.parameters())
        preconditioned(adam, model, policy=replace(POLICY, trust=Unclipped()))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2, enabled=scaled)
        for x, y in batches(5):
            adam.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            if by_hand:
                scaler.unscale_(adam)
            scaler.step(adam)
            scaler.update()
        models.append(model)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_handed_on_as_it_is():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = preconditioned(sgd, model)
    ((x, y),) = batches(1)
    (F.cross_entropy(model(x), y) * float("nan")).backward()
    sgd.step()
    assert all(torch.isnan(p.grad).all() for p in model.parameters())
    assert handle.report()["skipped_steps"] == 1


def test_detached_it_leaves_no_trace():
    one, two = network(), network()
    sgd, plain = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (one, two))
    preconditioned(sgd, one).detach()
    learn(one, sgd, batches(3))
    learn(two, plain, batches(3))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_saved_run_goes_on_bit_equal():
    data = batches(10)
    model, other = network(), network(seed=1)
    sgds = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, other)]
    handles = [preconditioned(s, m, policy=POLICY, solver=Eigen()) for s, m in zip(sgds, (model, other), strict=True)]
    learn(model, sgds[0], data[:4])
    saved = saved_and_loaded([model.state_dict(), sgds[0].state_dict(), handles[0].state_dict()])
    learn(model, sgds[0], data[4:])
    for target, state in zip((other, sgds[1], handles[1]), saved, strict=True):
        target.load_state_dict(state)
    learn(other, sgds[1], data[4:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_only_the_optimizers_own_parameters_are_touched_and_new_groups_are_followed():
    model = without_fallback()
    sgd = torch.optim.SGD(model[0].parameters(), lr=0.1)
    handle = preconditioned(sgd, model, policy=PLAIN)
    assert [site.name for site in handle.natural.sites] == ["0"]
    learn(model, sgd, batches(1))
    sgd.add_param_group({"params": model[2].parameters(), "lr": 0.05})
    learn(model, sgd, batches(1))  # a plain gradient for the new group, whose calls were not watched
    assert [site.name for site in handle.natural.sites] == ["0", "2"]
    ((x, y),) = batches(1)
    sgd.zero_grad()
    F.cross_entropy(model(x), y).backward()
    plain = copy.deepcopy(model[2].weight.grad)
    sgd.step()
    assert not torch.equal(plain, model[2].weight.grad)


def test_policies_that_choose_the_step_are_refused():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for policy in (Policy(quadratic=QuadraticModel(Categorical())), Policy(adapt=LevenbergMarquardt())):
        with pytest.raises(ValueError, match="the quadratic model and adaptive damping choose the step themselves"):
            preconditioned(sgd, model, policy=policy)
    with pytest.raises(ValueError, match=r"damping must be at least 0, got -1\.0"):
        preconditioned(sgd, model, damping=-1.0)


# --- parameters in several optimizers -------------------------------------------------------------


def test_a_weight_whose_bias_is_elsewhere_has_its_own_block():
    """Against a dense solve with A = E[a aᵀ] without the homogeneous coordinate."""
    model, x, y = fill(nn.Linear(4, 3)), noise(20, 4), noise(20, 3, seed=1)
    sgd = torch.optim.SGD([model.weight], lr=0.1)
    policy = replace(PLAIN, trust=Unclipped(), decay=0.0)
    handle = preconditioned(sgd, model, damping=0.05, solver=Eigen(), policy=policy)
    output = model(x)
    F.mse_loss(output, y).backward()
    plain, bias = model.weight.grad.clone(), model.bias.grad.clone()
    sgd.step()
    g = 2 / 3 * (output.detach() - y)
    block = torch.kron(g.T @ g / 20, x.T @ x / 20) + 0.05 * torch.eye(12, dtype=x.dtype)
    truth = torch.linalg.solve(block, plain.flatten()).view(3, 4)
    torch.testing.assert_close(model.weight.grad, truth, rtol=1e-9, atol=1e-12)
    assert torch.equal(model.bias.grad, bias)
    assert handle.coverage().count("kfac") == 12


LAYERS = {
    "conv": (lambda: nn.Conv2d(2, 3, 3), (5, 2, 6, 6)),
    "grouped conv": (lambda: nn.Conv1d(4, 6, 3, groups=2), (5, 4, 7)),
    "transposed conv": (lambda: nn.ConvTranspose1d(4, 6, 3), (5, 4, 7)),
    "layer norm": (lambda: nn.LayerNorm(5), (6, 5)),
    "gru": (lambda: nn.GRU(3, 4, batch_first=True), (5, 4, 3)),
    "attention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), (5, 3, 4)),
}


@pytest.mark.parametrize("biases", [False, True], ids=["weights", "biases"])
@pytest.mark.parametrize("make,shape", LAYERS.values(), ids=LAYERS.keys())
def test_what_another_optimizer_trains_counts_as_frozen(make, shape, biases):
    """As in a model where those parameters do not require gradients, but for rounding: kernels differ."""
    x, grads = noise(*shape), []

    def loss(model):
        out = model(x, x, x)[0] if isinstance(model, nn.MultiheadAttention) else model(x)
        out = out[0] if isinstance(out, tuple) else out
        return out.sin().mul(noise(*out.shape, seed=1)).sum() / len(x)

    for frozen in (True, False):
        model = fill(make())
        own = [p for name, p in model.named_parameters() if ("bias" in name) is biases]
        for p in model.parameters():
            p.requires_grad_(not frozen or any(p is q for q in own))
        sgd = torch.optim.SGD(own, lr=0.1)
        handle = preconditioned(sgd, model, policy=PLAIN)
        assert handle.coverage().count("kfac") == sum(p.numel() for p in own)
        for _ in range(2):
            model.zero_grad()
            loss(model).backward()
            plain = [p.grad.clone() for p in own]
            sgd.step()
            assert not any(torch.equal(p.grad, g) for p, g in zip(own, plain, strict=True))
        grads.append([p.grad for p in own])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-11, atol=1e-13)


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 2]


def vectors_of(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 1]


def test_weights_by_muon_and_biases_by_adam():
    """The curvature is at work, and goes on after a checkpoint."""
    model, other = without_fallback(), without_fallback()
    muon, plain = (torch.optim.Muon(matrices_of(net), lr=0.02) for net in (model, other))
    adam = torch.optim.AdamW(vectors_of(model), lr=0.02)
    handle = preconditioned(muon, model, policy=POLICY)
    for x, y in batches(5):
        for net, optimizers in ((model, (muon, adam)), (other, (plain,))):
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert not torch.equal(model[0].weight, other[0].weight)
    assert (handle.report()["refreshes"], handle.report()["skipped_steps"]) == (2, 0)
    again, state = without_fallback(), saved_and_loaded(handle.state_dict())
    loaded = preconditioned(torch.optim.Muon(matrices_of(again), lr=0.02), again, policy=POLICY)
    loaded.load_state_dict(state)
    for new, old in zip(loaded.natural.stacks, handle.natural.stacks, strict=True):
        assert torch.equal(new.mean.right.matrix, old.mean.right.matrix)


def test_a_group_that_brings_the_biases_later_joins_them_to_their_weights():
    model = without_fallback()
    sgd = torch.optim.SGD(matrices_of(model), lr=0.02)
    handle = preconditioned(sgd, model, policy=PLAIN)
    learn(model, sgd, batches(2))
    sgd.add_param_group({"params": vectors_of(model)})
    learn(model, sgd, batches(3))
    assert handle.coverage().count("kfac") == sum(p.numel() for p in model.parameters())


def test_an_optimizer_with_nothing_to_precondition_is_refused():
    model, other = network(), network()
    for params in (other.parameters(), [model[2].scale]):
        with pytest.raises(ValueError, match="no parameter of a layer with a curvature rule, so nothing could be pre"):
            preconditioned(torch.optim.SGD(params, lr=0.1), model)
    assert not model[0]._forward_hooks
    assert not model._forward_pre_hooks


def test_lbfgs_is_refused():
    model = network()
    with pytest.raises(ValueError, match="LBFGS calls its closure many times in a step"):
        preconditioned(torch.optim.LBFGS(model.parameters()), model)
