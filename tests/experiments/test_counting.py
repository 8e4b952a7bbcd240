from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from heatbath.costs.count import model_work, update_work
from heatbath.curvature import Categorical, SampledFisher
from heatbath.experiments.counting import Occasions, split_by_occasions, total_work
from heatbath.optim import KFAC, LevenbergMarquardt, Pass, Policy, QuadraticModel
from heatbath.prediction import pass_work
from heatbath.work import Job, Work, matmul

NETWORKS = {
    "linear": (nn.Linear(6, 3), (20, 6)),
    "mlp": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (20, 6)),
    "conv": (nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (5, 2, 8, 8)),
}


def batch(shape: tuple[int, ...], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape, generator=generator), torch.arange(shape[0]) % 3


@pytest.mark.parametrize("name", NETWORKS)
def test_products_have_as_many_operations_as_torch_counts(name: str, generator: torch.Generator) -> None:
    model, shape = NETWORKS[name]
    inputs, labels = batch(shape, generator)
    work = model_work(model, F.cross_entropy, (inputs, labels))
    twin = copy.deepcopy(model)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(twin(inputs), labels).backward()
    assert sum(k.flops * c for k, c in work.kernels.items() if k.name == "matmul") == counter.get_total_flops()


def test_products_of_a_linear_layer_have_its_shapes(generator: torch.Generator) -> None:
    work = model_work(NETWORKS["linear"][0], F.cross_entropy, batch((20, 6), generator))
    assert {k.shape: c for k, c in work.kernels.items() if k.name == "matmul"} == {(20, 6, 3): 1, (3, 20, 6): 1}


def test_a_grouped_convolution_counts_each_group_by_itself(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Flatten())
    work = model_work(model, F.mse_loss, (torch.randn(5, 4, 8, 8, generator=generator), torch.zeros(5, 216)))
    one_group = 2 * (5 * 6 * 6) * (2 * 9) * 3  # positions, patch, outputs; torch's own counter takes a group for the whole
    assert sum(k.flops * c for k, c in work.kernels.items() if k.name == "matmul") == 2 * (2 * one_group)  # forward, weights


def test_batched_products_count_once_each(generator: torch.Generator) -> None:
    class Batched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(7, 4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.bmm(x, self.weight)

    inputs = torch.randn(7, 5, 4, generator=generator)
    work = model_work(Batched(), F.mse_loss, (inputs, torch.zeros(7, 5, 3)))
    assert {k.shape: c for k, c in work.kernels.items() if k.name == "matmul"} == {(5, 4, 3): 7, (4, 5, 3): 7}


def test_attention_counts_two_products_forward_and_five_backward(generator: torch.Generator) -> None:
    """Flash attention keeps no scores: backward makes them again, then the four gradients of two products (Dao et al. 2022)."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(self.scale * x, x, x)

    inputs = torch.randn(2, 3, 16, 8, generator=generator)
    work = model_work(Attention(), F.mse_loss, (inputs, torch.zeros(2, 3, 16, 8)))
    product = 2 * (2 * 3) * 16 * 16 * 8  # batch and heads, queries, keys, features
    assert sum(k.flops * c for k, c in work.kernels.items() if k.name == "matmul") == 7 * product


def test_counting_changes_neither_model_nor_gradients_nor_random_state(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model_work(model, F.cross_entropy, batch((20, 6), generator))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_update_passes_over_every_parameter_once() -> None:
    model = nn.Linear(6, 3)
    (kernel,) = update_work(torch.optim.AdamW(model.parameters())).kernels
    assert (kernel.name, kernel.shape) == ("elementwise", (21,))
    assert kernel.bytes == 21 * 4 * 7  # parameter, gradient and two averages read; parameter and two averages written


def test_total_work_adds_the_optimizers_own_count_or_its_update_rule(generator: torch.Generator) -> None:
    model = nn.Linear(6, 3)
    step = model_work(model, F.cross_entropy, batch((20, 6), generator))
    plain = torch.optim.SGD(model.parameters())
    assert total_work(plain, model_step=step, steps=4) == step * 4 + update_work(plain) * 4
    curved = KFAC(model)
    inputs, labels = batch((20, 6), generator)
    F.cross_entropy(model(inputs), labels).backward()
    curved.step()
    assert total_work(curved, model_step=step, steps=1) == step + curved.work
    assert total_work(curved, model_step=step, steps=0) == Work()


QUADRATIC = Policy(
    factor_every=1,
    quadratic=QuadraticModel(Categorical()),
    fisher=SampledFisher(Categorical()),
    adapt=LevenbergMarquardt(every=2),
)


def products(work: Work) -> dict[tuple[int, ...], float]:
    return {kernel.shape: count for kernel, count in work.kernels.items() if kernel.name == "matmul"}


def test_passes_of_the_quadratic_policy_have_the_products_of_their_formulas(generator: torch.Generator) -> None:
    """20 examples through W₁ [8, 6] and W₂ [3, 8]: J d = (a₁ D₂ᵀ) + (x D₁ᵀ ⊙ φ′) W₂ᵀ is forward mode by hand."""
    model, shape = NETWORKS["mlp"]
    passes = pass_work(copy.deepcopy(model), KFAC(model, policy=QUADRATIC), F.cross_entropy, batch(shape, generator))
    back, weights = {(20, 3, 8): 1}, {(3, 20, 8): 1, (8, 20, 6): 1}
    assert products(passes[Pass.EVALUATE]) == {(20, 6, 8): 1, (20, 8, 3): 1}
    assert products(passes[Pass.PULL]) == back  # to the outputs of both layers, no weight gradients
    assert products(passes[Pass.LINEARIZE]) == back | weights
    assert products(passes[Pass.PUSH]) == {(20, 8, 3): 2, (20, 6, 8): 1}


def test_a_policy_that_observes_nothing_asks_for_no_further_pass(generator: torch.Generator) -> None:
    model = nn.Linear(6, 3)
    for optimizer in (KFAC(model), torch.optim.SGD(model.parameters())):
        assert pass_work(nn.Linear(6, 3), optimizer, F.cross_entropy, batch((20, 6), generator)) == {}


def test_total_work_has_every_pass_the_optimizer_made(generator: torch.Generator) -> None:
    model, (inputs, labels) = nn.Linear(6, 3), batch((20, 6), generator)
    step = model_work(model, F.cross_entropy, (inputs, labels))
    optimizer = KFAC(model, lr=1.0, policy=QUADRATIC, generator=generator)
    passes = pass_work(nn.Linear(6, 3), optimizer, F.cross_entropy, (inputs, labels))
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(optimizer.observe(model(inputs)), labels).backward()
        optimizer.step(evaluate=lambda: F.cross_entropy(model(inputs), labels))
    # each step: one sample, one linearization, two directions; every other step: the loss before and after
    counted = {Pass.PULL: 4, Pass.LINEARIZE: 4, Pass.PUSH: 8, Pass.EVALUATE: 4}
    assert optimizer.passes == counted
    expected = sum((passes[kind] * count for kind, count in counted.items()), step * 4 + optimizer.work)
    assert total_work(optimizer, model_step=step, steps=4, passes=passes) == expected


def test_work_of_an_optimizer_whose_update_is_not_known_is_not_counted() -> None:
    model = nn.Linear(6, 3)
    unknown = torch.optim.Adagrad(model.parameters())
    assert update_work(unknown) is None
    assert total_work(unknown, model_step=Work(), steps=3) is None


def test_occasions_tell_a_stack_now_and_then_from_a_problem_in_every_step() -> None:
    often, seldom = matmul(2, 3, 4), Job("machine", 5, drives=5)
    occasions, total = Occasions(), Work()
    for step in range(6):
        total = total + Work.of(often, 2) + (Work.of(seldom, 4) if step % 3 == 0 else Work())
        occasions.see(total)
    assert occasions.steps == Work({often: 6}, {seldom: 2})
    parts = split_by_occasions(total, occasions.steps)
    assert parts == [(Work({often: 12}), 6), (Work({}, {seldom: 8}), 2)]
    resumed = Occasions()
    resumed.load(occasions.steps, total)
    resumed.see(total + Work.of(often))
    assert resumed.steps == Work({often: 7}, {seldom: 2})
