"""Training loops as people write them: other losses through the same model, empty batches, rates of zero, summed losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, ExactFisher, Reduction
from heatbath.optim import KFAC, LevenbergMarquardt, Policy
from heatbath.solvers import Eigen
from heatbath.work import Work, update
from tests.curvature.truth import factors, optimizer_for
from tests.laws import batches, network, noise, parameters_of, train
from tests.zoo import PLAIN

SUMMED = replace(PLAIN, reduction=Reduction.SUM)
EXACT = replace(PLAIN, fisher=ExactFisher(Categorical()))
CORRECTED = {"solver": Eigen(), "policy": replace(PLAIN, corrected=True)}


def assert_same(one: nn.Module, two: nn.Module) -> None:
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


# --- other losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loss_whose_gradients_are_cleared_leaves_no_trace_in_the_curvature(set_to_none):
    """The generator's backward pass goes through the discriminator, too; then come `zero_grad` and the discriminator's own."""
    other, alone = network(), network()
    one, two = optimizer_for(other), optimizer_for(alone)
    x, y = batches(1)[0]
    (-other(noise(5, 4, seed=3)).mean()).backward()
    one.zero_grad(set_to_none)
    for model in (other, alone):
        F.cross_entropy(model(x), y).backward()
    assert one.capture.terms.popitem()[1] == two.capture.terms.popitem()[1] == (8, 8)
    found, truth = factors(one), factors(two)
    for name in truth:
        torch.testing.assert_close(found[name].dense(), truth[name].dense(), rtol=1e-12, atol=1e-16)


def clear_model(model: nn.Module) -> None:
    model.zero_grad()


def clear_by_hand(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = None


def passed(model: nn.Module, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(model(x), y).backward()


def assert_same_factors(one: KFAC, two: KFAC) -> None:
    assert list(one.capture.terms.values()) == list(two.capture.terms.values())
    found, truth = factors(one), factors(two)
    assert found.keys() == truth.keys()
    for name in truth:
        torch.testing.assert_close(found[name].dense(), truth[name].dense(), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("clear", [clear_model, clear_by_hand])
@pytest.mark.parametrize("options", [{}, {"reduction": Reduction.SUM}], ids=["mean", "sum"])
def test_gradients_cleared_by_anybody_leave_no_trace_in_the_curvature(clear, options):
    """`netD.zero_grad()`, as DCGAN and most adversarial loops have it; two micro-batches follow."""
    models = [network(), network()]
    one, two = (KFAC(m, lr=0.0, damping=1.0, momentum=0.0, policy=replace(PLAIN, **options)) for m in models)
    (-models[0](noise(5, 4, seed=3)).mean()).backward()
    clear(models[0])
    for model in models:
        for x, y in batches(2):
            passed(model, x, y)
    assert_same_factors(one, two)


def test_an_adversarial_loop_sees_the_discriminator_alone():
    """The order of the DCGAN tutorial, three steps of it: factors are those of the discriminator's own two passes."""
    models = [network(), network()]
    one, two = map(optimizer_for, models)
    for i, (x, y) in enumerate(batches(3)):
        for model, optimizer in zip(models, (one, two), strict=True):
            model.zero_grad()
            passed(model, x, y)
            passed(model, noise(8, 4, seed=i), y)
            assert len(optimizer.capture.terms) == 2
        assert_same_factors(one, two)
        models[0].zero_grad()
        (-models[0](noise(5, 4, seed=3)).mean()).backward()


def test_gradients_of_another_loss_are_no_curvature_beside_those_of_this_one():
    """A diagnosis by `autograd.grad` before or after the backward pass; it may be of parameters."""
    models = [network(), network()]
    one, two = map(optimizer_for, models)
    x, y = batches(1)[0]
    for model in models:
        for late in (False, True):
            if model is models[0]:
                torch.autograd.grad(model(noise(5, 4, seed=3)).square().mean(), list(model.parameters()))
            if not late:
                passed(model, x, y)
    assert_same_factors(one, two)


def test_a_loop_that_fills_gradients_by_itself_has_curvature():
    models = [network(), network()]
    one, two = map(optimizer_for, models)
    x, y = batches(1)[0]
    passed(models[1], x, y)
    own = list(models[0].parameters())
    for p, g in zip(own, torch.autograd.grad(F.cross_entropy(models[0](x), y), own), strict=True):
        p.grad = g
    assert_same_factors(one, two)


def test_two_optimizers_of_one_model_do_not_see_each_others_pulls():
    model, alone = network(), network()
    one, two = optimizer_for(model), optimizer_for(alone)
    observer = KFAC(model, policy=EXACT)
    for x, y in batches(2):
        F.cross_entropy(observer.observe(model(x)), y).backward()
        passed(alone, x, y)
    assert_same_factors(one, two)


@pytest.mark.parametrize("policy", [PLAIN, SUMMED, EXACT], ids=["mean", "sum", "exact"])
def test_gradients_may_be_cleared_between_forward_and_backward(policy):
    """As Lightning does, and many loops; also with `observe` before it."""
    models = [network(), network()]
    for late, model in enumerate(models):
        optimizer = KFAC(model, lr=0.1, policy=policy)
        for x, y in batches(3):
            if not late:
                optimizer.zero_grad()
            loss = F.cross_entropy(optimizer.observe(model(x)), y, reduction="sum" if policy is SUMMED else "mean")
            if late:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_same(*models)


class Scored(nn.Module):
    """A model that returns its loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.inner(x), y, reduction="sum")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_examples_of_a_model_that_returns_its_loss_are_counted_at_every_step(compiled):
    """Also on steps that capture no factors, and with gradients cleared between forward and backward."""
    policy = replace(SUMMED, factor_every=2, refresh_every=2)
    scored, plain = Scored(), network()
    one, two = KFAC(scored, lr=0.1, policy=policy), KFAC(plain, lr=0.1, policy=policy)
    forward = torch.compile(scored, backend="aot_eager") if compiled else scored
    for x, y in batches(4):
        loss = forward(x, y)
        one.zero_grad()
        loss.backward()
        one.step()
        two.zero_grad()
        F.cross_entropy(plain(x), y, reduction="sum").backward()
        two.step()
    assert_same(scored.inner, plain)


def test_examples_that_cannot_be_counted_are_said():
    """A summed loss of parts of the model: nobody knows what to divide gradients by."""
    model = network()
    optimizer = KFAC(model, policy=SUMMED)
    model[0](noise(5, 4)).square().sum().backward()
    with pytest.warns(UserWarning, match="the examples of a summed loss could not be counted"):
        optimizer.step()


# --- nothing to see -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, CORRECTED], ids=["plain", "corrected"])
def test_an_empty_micro_batch_counts_for_nothing(options):
    models = [network(), network()]
    for with_empty, model in enumerate(models):
        optimizer = KFAC(model, lr=0.1, **{"policy": PLAIN, **options})
        for x, y in batches(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if with_empty:
                model(x[:0]).sum().backward()
            optimizer.step()
    assert_same(*models)


def test_an_empty_batch_alone_is_survived():
    model = network()
    optimizer = KFAC(model, policy=PLAIN)
    train(model, optimizer, batches(2))
    ages = [list(stack.ages) for stack in optimizer.stacks]
    optimizer.zero_grad()
    model(noise(0, 4)).sum().backward()
    with pytest.warns(UserWarning, match="no captured curvature"):
        optimizer.step()
    assert [stack.ages for stack in optimizer.stacks] == ages
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_steps_at_a_rate_of_zero_leave_no_counts_behind():
    """Warm restarts pass through zero; the next summed loss is divided by its own examples only."""
    model = network()
    optimizer = KFAC(model, policy=replace(SUMMED, factor_every=10, refresh_every=10))
    for index, (x, y) in enumerate(batches(4)):
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if index in (1, 2) else 0.1
        F.cross_entropy(model(x), y, reduction="sum").backward()
        assert sum(examples for examples, _ in optimizer.capture.terms.values()) == 8
        optimizer.step()


# --- summed losses ------------------------------------------------------------------------------------------------------------


def test_l2_means_the_same_under_a_summed_loss():
    """The penalty belongs to the mean over examples, as damping and learning rate do."""
    models = [network(), network()]
    for model, policy in zip(models, (PLAIN, SUMMED), strict=True):
        optimizer = KFAC(model, lr=0.1, policy=replace(policy, l2=0.5))
        for x, y in batches(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y, reduction="sum" if policy is SUMMED else "mean").backward()
            optimizer.step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)  # AdamW's eps is not scaled along


def test_damping_adapts_alike_under_a_summed_loss():
    """ρ compares two reductions of the mean loss; the model is made to promise too much, so that ρ < ¼ and λ rises."""
    found = []
    for policy in (PLAIN, SUMMED):
        model = network()
        optimizer = KFAC(model, lr=40.0, momentum=0.0, policy=replace(policy, adapt=LevenbergMarquardt(every=1)))
        for x, y in batches(3):
            optimizer.zero_grad()

            def loss():
                return F.cross_entropy(model(x), y, reduction="sum" if policy is SUMMED else "mean")  # noqa: B023

            loss().backward()
            optimizer.step(evaluate=loss)
        found.append(float(optimizer.param_groups[0]["damping"]))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


# --- what it did --------------------------------------------------------------------------------------------------------------


def test_refreshes_are_counted_and_not_stacks():
    model = network()
    optimizer = KFAC(model, policy=Policy(factor_every=1, refresh_every=2, patience=0))
    assert len(optimizer.stacks) == 2
    train(model, optimizer, batches(5))
    assert optimizer.report()["refreshes"] == 3  # steps 0, 2 and 4


def test_work_counts_the_updates_of_every_parameter():
    """5 operations on 5 numbers for K-FAC's heavy ball, 16 on 7 for AdamW, as `experiments.counting` has it."""
    model = network()
    optimizer = KFAC(model, policy=replace(PLAIN, factor_every=10, refresh_every=10))
    train(model, optimizer, batches(1))
    before = optimizer.work
    train(model, optimizer, batches(2)[1:])
    once = {k: c - before.kernels.get(k, 0) for k, c in optimizer.work.kernels.items()}
    by_curvature = sum(p.numel() for layer in (model[0], model[3]) for p in layer.parameters())
    expected = Work.of(update(by_curvature, operations=5, touched=5)) + Work.of(update(5, operations=16, touched=7))
    assert {k: c for k, c in once.items() if c and k.name == "elementwise"} == expected.kernels


def test_clearing_gradients_moves_nothing():
    model = network()
    optimizer = KFAC(model)
    train(model, optimizer, batches(2))
    before = parameters_of(model)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
