"""The default step knows no unit of the loss, of a layer's inputs or of the batch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.operators import Dense, Diagonal, EigenCorrected, Kronecker
from heatbath.optim import KFAC, MatchedRMS, Policy, RelativeDamping, preconditioned
from heatbath.solvers import Eigen
from tests.laws import noise, parameters_of


class Network(nn.Module):
    """Layers with curvature and parameters without."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.hidden, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(6))  # AdamW's

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scale * self.hidden(self.norm(self.embed(x))).tanh())


def trajectory(loss, *, repeats: int = 1, steps: int = 15, solver=None) -> list[Tensor]:
    torch.manual_seed(0)
    model = Network().double()
    optimizer = KFAC(model, weight_decay=0.1, solver=solver)
    for index in range(steps):
        x = torch.randint(7, (12,), generator=torch.Generator().manual_seed(index)).repeat(repeats)
        y = noise(12, 3, seed=index).repeat(repeats, 1)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return list(model.parameters())


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [None, Eigen()], ids=["cholesky", "eigen"])
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_a_loss_times_a_constant_takes_the_same_steps(factor, solver):
    plain = trajectory(F.mse_loss, solver=solver)
    assert_same(plain, trajectory(lambda out, y: factor * F.mse_loss(out, y), solver=solver))


def test_a_sum_and_means_over_elements_and_examples_take_the_same_steps():
    plain = trajectory(F.mse_loss)
    assert_same(plain, trajectory(lambda out, y: (out - y).square().sum()))
    assert_same(plain, trajectory(lambda out, y: (out - y).square().sum(1).mean()))


def test_examples_that_come_three_times_take_the_same_steps():
    assert_same(trajectory(F.mse_loss), trajectory(F.mse_loss, repeats=3))
    assert_same(trajectory(F.mse_loss), trajectory(lambda out, y: (out - y).square().sum(), repeats=3))


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_another_unit_of_a_layers_inputs_leaves_its_update(unit):
    """x → cx with W → W/c is the same function. The direction is the same, and its length is that of the parameters."""
    updates = []
    for c in (1.0, unit):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).double()
        with torch.no_grad():
            model[0].weight.div_(c)
        optimizer, before = KFAC(model), model[0].weight.detach().clone()
        F.mse_loss(model(noise(20, 5) * c), noise(20, 3, seed=1)).backward()
        optimizer.step()
        updates.append(model[0].weight.detach() - before)
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-9, atol=1e-12)


def test_updates_are_lr_times_the_preconditioned_momentum_of_matched_rms():
    """Two layers, by hand: dense inverses, Nesterov's look-ahead of the gradients' momentum, RMS of every tensor 0.2 lr."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    twin = copy.deepcopy(model)
    lr, damping, beta, ema, decay = 0.03, 0.2, 0.8, 0.9, 0.1
    policy = Policy(factor_every=1, refresh_every=1, patience=0, decay=ema)
    optimizer = KFAC(model, lr=lr, damping=damping, momentum=beta, weight_decay=decay, policy=policy)
    sums = {i: [torch.zeros(n, n).double() for n in sizes] for i, sizes in ((0, (5, 5)), (2, (3, 6)))}
    momentum = {i: torch.zeros(b.shape[0], a.shape[0]).double() for i, (b, a) in sums.items()}
    for step in range(4):
        x, y = noise(20, 4, seed=step), noise(20, 3, seed=step + 50)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        hidden = twin[0](x)
        inputs, outputs = {0: x, 2: hidden.tanh()}, {0: hidden, 2: twin(x)}
        loss = F.mse_loss(twin[2](inputs[2]), y)
        out = twin[2](hidden.tanh())
        grads = torch.autograd.grad(F.mse_loss(out, y), [hidden, out])
        assert loss.item() == pytest.approx(F.mse_loss(out, y).item()) and outputs[0] is hidden
        for i, g in zip((0, 2), grads, strict=True):
            a = torch.cat((inputs[i], torch.ones(20, 1)), 1).detach()
            gradient, rows = g.mT @ a, 20 * g
            for total, new in zip(sums[i], (rows.mT @ rows / 20, a.mT @ a / 20), strict=True):
                total.mul_(ema).add_((1 - ema) * new)
            b_mean, a_mean = (s / (1 - ema ** (step + 1)) for s in sums[i])
            momentum[i].mul_(beta).add_(gradient)
            sides = [
                torch.linalg.inv(m + math.sqrt(damping) * m.norm() / math.sqrt(len(m)) * torch.eye(len(m)))
                for m in (b_mean, a_mean)
            ]
            v = sides[0] @ (gradient + beta * momentum[i]) @ sides[1]
            with torch.no_grad():
                for p, part in ((twin[i].weight, v[:, :-1]), (twin[i].bias, v[:, -1])):
                    p.mul_(1 - lr * decay).sub_(lr * 0.2 * part / part.square().mean().sqrt())
    assert_same(list(model.parameters()), list(twin.parameters()))


def test_a_zero_gradient_moves_nothing_but_the_momentum():
    model = nn.Linear(3, 2).double()
    optimizer, before = KFAC(model), parameters_of(model)
    (0.0 * model(noise(4, 3))).sum().backward()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_dead_layer_stays_and_the_others_train():
    """Behind a ReLU that never opens gradients are zero, and so is the factor of the outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    optimizer, before = KFAC(model), parameters_of(model)
    for index in range(3):
        optimizer.zero_grad()
        F.mse_loss(model(noise(6, 3, seed=index)), torch.ones(6, 2).double()).backward()
        optimizer.step()
    first, bias, last, shift = (torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert (first, bias, last, shift) == (True, True, True, False)  # the last layer's inputs are zeros
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_relative_damping_of_a_side_of_zeros_is_a_multiple_of_the_identity():
    zero, known = Dense(torch.zeros(1, 3, 3)), Diagonal(torch.tensor([[1.0, 3.0]]))
    damped = RelativeDamping()(Kronecker(zero, known), torch.tensor([0.04]))
    torch.testing.assert_close(damped.left.dense(), 0.2 * torch.eye(3)[None])
    root = math.sqrt((1 + 9) / 2)
    torch.testing.assert_close(damped.right.dense(), torch.diag(torch.tensor([1.0, 3.0]) + 0.2 * root)[None])
    exact = RelativeDamping(exact=True)(Kronecker(Dense(2 * torch.eye(3)[None]), known), torch.tensor([0.5]))
    torch.testing.assert_close(
        exact.dense(), Kronecker(Dense(2 * torch.eye(3)[None]), known).dense() + 0.5 * 2 * root * torch.eye(6)
    )


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 1)])
def test_a_layer_with_a_single_input_or_output_takes_steps_of_the_same_size(shape):
    model = nn.Linear(*shape, bias=False)
    before = parameters_of(model)
    optimizer = KFAC(model, lr=0.1)
    model(torch.ones(4, shape[0])).square().mean().backward()
    optimizer.step()
    assert (model.weight - before[0]).square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_and_leaves_no_trace(value):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    twin = copy.deepcopy(model)
    runs = []
    for net, spoilt in ((model, True), (twin, False)):
        optimizer = KFAC(net, policy=Policy(factor_every=1, refresh_every=1))
        for index in range(4):
            if index == 2:
                if spoilt:
                    for p in net.parameters():
                        p.grad = torch.full_like(p, value)
                    optimizer.capture.forget()
                    with pytest.warns(UserWarning, match="no captured curvature"):
                        optimizer.step()
                continue
            optimizer.zero_grad()
            F.mse_loss(net(noise(6, 3, seed=index)), torch.ones(6, 2).double()).backward()
            optimizer.step()
        runs.append([optimizer.state[p]["momentum_buffer"] for p in net.parameters()])
    assert_same(*runs)
    assert_same(list(model.parameters()), list(twin.parameters()))


def test_in_front_of_another_optimizer_the_matched_direction_takes_the_gradients_place():
    model = nn.Linear(3, 2).double()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    preconditioned(sgd, model, damping=0.1, policy=Policy(trust=MatchedRMS(rms=0.3)))
    F.mse_loss(model(noise(6, 3)), torch.ones(6, 2).double()).backward()
    sgd.step()
    for p in model.parameters():
        assert p.grad.square().mean().sqrt().item() == pytest.approx(0.3)


def test_a_root_mean_square_must_be_positive():
    with pytest.raises(ValueError, match="rms must be positive, got 0"):
        MatchedRMS(rms=0.0)


def test_relative_damping_grows_with_the_share_of_a_few_directions():
    """Equal traces, hence equal mean eigenvalues: a spike asks for √n times the damping of a flat spectrum."""
    flat, spike = Dense(torch.eye(4)[None]), Dense(torch.diag(torch.tensor([4.0, 0.0, 0.0, 0.0]))[None])
    one = Diagonal(torch.ones(1, 2))
    shifts = [
        RelativeDamping()(Kronecker(side, one), torch.tensor([0.25])).left.dense() - side.dense() for side in (flat, spike)
    ]
    torch.testing.assert_close(shifts[0], 0.5 * torch.eye(4)[None])
    torch.testing.assert_close(shifts[1], 2.0 * 0.5 * torch.eye(4)[None])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_relative_damping_of_tiny_and_huge_curvature_neither_underflows_nor_overflows(scale):
    side = torch.diag(torch.tensor([3.0, 4.0]))[None]
    damped = RelativeDamping()(Kronecker(Dense(scale * side), Diagonal(torch.ones(1, 2))), torch.tensor([1.0])).left.dense()
    torch.testing.assert_close(damped / scale, side + math.sqrt(12.5) * torch.eye(2)[None])


def test_relative_damping_of_corrected_eigenvalues_is_that_of_their_own_spectrum():
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    eye = torch.eye(2)[None]
    damped = RelativeDamping(exact=True)(EigenCorrected(eye, eye, values), torch.tensor([0.1]))
    torch.testing.assert_close(damped.dense(), torch.diag(values.flatten() + 0.1 * math.sqrt(30 / 4))[None])


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-40])
def test_a_direction_too_small_to_be_scaled_moves_nothing(size):
    """Its norm is subnormal, so that 0.2/rms overflows: found by `benchmarks/fuzz.py networks --seed 3`."""
    p = torch.zeros(1)
    (value,) = MatchedRMS()({p: torch.full((1,), size)}, torch.tensor(True)).values()
    assert torch.equal(value, torch.zeros(1))
