"""Layers that freeze, thaw, are added, or are never called; parameter groups; L2 beside weight decay."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.optim import KFAC, ExactDamping, Policy
from heatbath.solvers import Eigen
from tests.laws import batches, network, noise, parameters_of, train
from tests.zoo import PLAIN


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def moves(model: nn.Module, optimizer: KFAC, index: int = 0) -> list[bool]:
    before = parameters_of(model)
    train(model, optimizer, batches(index + 1)[index:])
    return [not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True)]


# --- thawing and freezing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_group", [True, False], ids=["new group", "refresh_layout"])
def test_a_layer_that_thaws_later_is_treated_from_then_on(by_group):
    model = mlp()
    model[2].requires_grad_(False)
    optimizer = KFAC(model, lr=0.1, damping=1e-2, policy=PLAIN)
    assert moves(model, optimizer) == [True, True, False, False, True, True]
    assert "frozen" in str(optimizer.coverage())
    model[2].requires_grad_(True)
    assert moves(model, optimizer, 1) == [True, True, False, False, True, True]
    assert "untrained" in str(optimizer.coverage())
    if by_group:
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.05})
    else:
        optimizer.refresh_layout()
    assert all(moves(model, optimizer, 2))
    coverage = optimizer.coverage()
    assert coverage.count("kfac") == sum(p.numel() for p in model.parameters())
    assert "untrained" not in str(coverage)
    group = optimizer.param_groups[1]
    assert group["lr"] == (0.05 if by_group else 0.1)
    assert group["damping"] == 1e-2
    assert (group["fallback_lr"], group["fallback_at_lr"]) == (1e-3, group["lr"])


def test_what_was_learned_about_other_layers_is_kept():
    """Means and ages move with their blocks, also where the stack is another one."""
    model = mlp()
    model[2].requires_grad_(False)
    optimizer = KFAC(model, lr=0.1, policy=Policy(factor_every=1, refresh_every=1, patience=0))
    train(model, optimizer, batches(3))
    first, last = ((s.mean.left.matrix.clone(), list(s.ages)) for s in optimizer.stacks)
    model[2].requires_grad_(True)
    optimizer.refresh_layout()
    by_name = {stack.names[0]: stack for stack in optimizer.stacks}
    for (mean, ages), name in ((first, "0[0]"), (last, "4[0]")):
        stack = by_name[name]
        assert torch.equal(stack.mean.left.matrix, mean)
        assert stack.ages == ages == [3]
    assert by_name["2[0]"].mean is None
    assert by_name["2[0]"].ages == [0]


def test_a_stack_that_gains_a_member_keeps_the_others():
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(3)]).double()
    model[1].requires_grad_(False)
    optimizer = KFAC(model, lr=0.1, policy=Policy(patience=5))
    for _ in range(2):
        optimizer.zero_grad()
        model(noise(5, 3)).square().mean().backward()
        optimizer.step()
    kept = optimizer.stacks[0].mean.right.matrix.clone()
    model[1].requires_grad_(True)
    optimizer.add_param_group({"params": model[1].parameters()})
    optimizer.param_groups[1]["params"], optimizer.param_groups[0]["params"] = [], [*model.parameters()]
    optimizer.refresh_layout()
    (stack,) = optimizer.stacks
    assert stack.ages == [2, 0, 2]
    assert torch.equal(stack.mean.right.matrix[[0, 2]], kept)


def test_a_layer_that_freezes_is_left_alone_without_a_word():
    model = mlp()
    optimizer = KFAC(model, lr=0.1, policy=PLAIN)
    train(model, optimizer, batches(2))
    model[2].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert moves(model, optimizer, 2) == [True, True, False, False, True, True]


def test_half_a_layer_that_freezes_asks_for_a_new_layout():
    model = mlp()
    optimizer = KFAC(model, lr=0.1, policy=PLAIN)
    train(model, optimizer, batches(2))
    model[2].bias.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"2 trains other parameters than when the optimizer was built: call opt\.refresh_layout\(\)"
    ):
        model(noise(2, 4))
    optimizer.refresh_layout()
    assert moves(model, optimizer, 2) == [True, True, True, False, True, True]
    assert {stack.domain for stack in optimizer.stacks} == {(5, 5), (3, 6)}


# --- layers that are not called as modules ---------------------------------------------------------------------------------


class Borrowed(nn.Module):
    """The weight of `first` is used, its module is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x, self.first.weight, self.first.bias).tanh())


def test_a_layer_whose_weight_is_used_without_calling_it_is_trained_by_adamw_and_said():
    model = Borrowed().double()
    optimizer = KFAC(model, lr=0.1, policy=Policy(fallback_lr=1e-3))
    x, y = batches(1)[0]
    with pytest.warns(UserWarning, match="first: gradients came, but through no call of the module; AdamW trains it"):
        train(model, optimizer, [(x, y)])
    before = parameters_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        train(model, optimizer, [(x, y)])
    changed = [(p - q).abs().max().item() for p, q in zip(model.parameters(), before, strict=True)]
    assert changed[0] == pytest.approx(1e-3, rel=0.01)  # AdamW's step, not g/λ
    assert all(c > 0 for c in changed)


def test_before_the_first_factors_every_layer_is_adamws():
    """Gradients written by hand: nothing was captured, nothing is divided by the damping alone."""
    model = mlp()
    optimizer = KFAC(model, lr=0.1, policy=Policy(fallback_lr=1e-3))
    before = parameters_of(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="no captured curvature"):
        optimizer.step()
    for p, q in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(q - p, torch.full_like(p, 1e-3), rtol=1e-2, atol=0)


# --- groups, exclusion, decay ----------------------------------------------------------------------------------------------


def test_each_group_has_its_own_rate_and_damping():
    """One layer a group: each moves as in an optimizer of its own with those options."""
    options = [{"lr": 0.1, "damping": 1.0}, {"lr": 0.3, "damping": 0.01}]
    found = mlp()
    groups = [
        {"params": found[0].parameters(), **options[0]},
        {"params": [*found[2].parameters(), *found[4].parameters()], **options[1]},
    ]
    optimizer = KFAC(found, groups, momentum=0.0, policy=PLAIN)
    train(found, optimizer, batches(1))
    alone = []
    for choice in options:
        model = mlp()
        train(model, KFAC(model, momentum=0.0, policy=PLAIN, **choice), batches(1))
        alone.append(parameters_of(model))
    for index, p in enumerate(found.parameters()):
        torch.testing.assert_close(p.detach(), alone[int(index > 1)][index], rtol=1e-12, atol=1e-14)


def test_a_bias_without_decay_beside_a_weight_with_it():
    model = mlp()
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    optimizer = KFAC(model, [{"params": weights, "weight_decay": 0.5}, {"params": biases}], lr=0.1, momentum=0.0, policy=PLAIN)
    plain = mlp()
    before = parameters_of(plain)
    train(plain, KFAC(plain, lr=0.1, momentum=0.0, policy=PLAIN), batches(1))
    train(model, optimizer, batches(1))
    for (name, p), q, old in zip(model.named_parameters(), plain.parameters(), before, strict=True):
        decayed = 0.05 * old if name.endswith("weight") else 0 * old
        torch.testing.assert_close(p.detach(), q.detach() - decayed, rtol=1e-12, atol=1e-14)


def test_a_predicate_leaves_modules_to_adamw():
    model = mlp()
    policy = replace(PLAIN, skip=lambda name, module: module.out_features == 3 if isinstance(module, nn.Linear) else False)
    optimizer = KFAC(model, policy=policy)
    assert [site.name for site in optimizer.sites] == ["0", "2"]
    assert optimizer.coverage().count("adamw") == 18
    assert all(moves(model, optimizer))


def test_l2_is_the_penalty_in_the_loss_with_its_curvature():
    """Exactly damped: the step on loss + ½ l2 ‖θ‖² with curvature F + l2·I; weight decay is not preconditioned."""
    l2, found = 0.3, mlp()
    optimizer = KFAC(found, lr=0.1, damping=0.2, momentum=0.0, solver=Eigen(), policy=replace(PLAIN, l2=l2))
    assert isinstance(optimizer.damping, ExactDamping)
    before = parameters_of(found)
    train(found, optimizer, batches(1))
    for stack in optimizer.stacks:
        name = stack.places[0].site.name
        layer = found.get_submodule(name)
        index = {"0": 0, "2": 2, "4": 4}[name]
        old = torch.cat((before[index], before[index + 1][:, None]), 1)
        gradient = torch.cat((layer.weight.grad, layer.bias.grad[:, None]), 1) + l2 * old
        block = stack.mean.dense()[0] + (0.2 + l2) * torch.eye(old.numel()).double()
        truth = old.flatten() - 0.1 * torch.linalg.solve(block, gradient.flatten())
        new = torch.cat((layer.weight, layer.bias[:, None]), 1).flatten().detach()
        torch.testing.assert_close(new, truth, rtol=1e-10, atol=1e-12)


def test_l2_reaches_adamws_parameters_too():
    model = network()
    plain = network()
    for net, l2 in ((model, 0.5), (plain, 0.0)):
        optimizer = KFAC(net, policy=Policy(l2=l2))
        x, y = batches(1)[0]
        loss = F.cross_entropy(net(x), y)
        if not l2:
            loss = loss + 0.25 * net[2].scale.square().sum()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(model[2].scale, plain[2].scale, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "name,value", [("lr", -1.0), ("damping", -1.0), ("l2", -1.0), ("weight_decay", -1.0), ("fallback_lr", -1.0)]
)
def test_a_new_group_is_checked_at_the_door(name, value):
    model = mlp()
    model[2].requires_grad_(False)
    optimizer = KFAC(model)
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1.0"):
        optimizer.add_param_group({"params": model[2].parameters(), name: value})
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1.0"):
        optimizer.add_param_group({"params": model[2].parameters(), "momentum": 1.0})


def test_schedules_cycle_momentum_and_not_betas():
    model = mlp()
    optimizer = KFAC(model, lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=10, base_momentum=0.5, max_momentum=0.8)
    train(model, optimizer, batches(1))
    schedule.step()
    assert optimizer.param_groups[0]["momentum"] != 0.95
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
