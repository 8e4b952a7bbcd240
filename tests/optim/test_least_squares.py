"""Law 12: one undamped natural-gradient step on a linear model with squared error is the least-squares solution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import ExactFisher, Gaussian, Reduction
from heatbath.optim import KFAC
from heatbath.solvers import Cholesky, Eigen, Guarded, ThermodynamicInverse, ThermodynamicSolve, UnitVectors
from tests.curvature.truth import exact_passes, fill, optimizer_for, squared_error
from tests.laws import noise
from tests.zoo import EIGHT, IDEAL, LONG, PLAIN, SIXTEEN

SOLVERS = {
    "Cholesky": (Cholesky(), 1e-11),
    "Eigen": (Eigen(), 1e-11),
    "Guarded": (Guarded(Cholesky()), 1e-11),
    "ideal ThermodynamicSolve": (ThermodynamicSolve(IDEAL, LONG), 1e-8),
    "ideal ThermodynamicInverse": (ThermodynamicInverse(IDEAL, UnitVectors(LONG)), 1e-8),
    "ThermodynamicSolve at 16 bits": (ThermodynamicSolve(SIXTEEN, LONG), 3e-3),
    "ThermodynamicInverse at 16 bits": (ThermodynamicInverse(SIXTEEN, UnitVectors(LONG)), 3e-3),
}


def natural_step(model: nn.Module, x: Tensor, y: Tensor, *, solver=None, reduction=Reduction.EXAMPLES, lr: float = 1.0) -> KFAC:
    """One step with the exact Fisher: its passes, then an ordinary gradient that nobody watches."""
    generator = torch.Generator().manual_seed(0)
    optimizer = optimizer_for(model, lr=lr, damping=0.0, solver=solver, reduction=reduction, generator=generator)
    exact_passes(model, x, squared_error, y.numel() // y.shape[-1])
    model.zero_grad()
    optimizer.capture.enabled = False
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    return optimizer


def solution(x: Tensor, y: Tensor, bias: bool) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if bias:
        rows = torch.cat((rows, torch.ones(len(rows), 1, dtype=x.dtype)), 1)
    return torch.linalg.lstsq(rows, y.reshape(-1, y.shape[-1])).solution.mT


def joint(model: nn.Linear) -> Tensor:
    return model.weight if model.bias is None else torch.cat((model.weight, model.bias[:, None]), 1)


@pytest.mark.parametrize("solver,tolerance", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("bias", [True, False], ids=["joint bias", "no bias"])
@pytest.mark.parametrize("start", [0, 1])
def test_law_12_one_step_is_the_least_squares_solution(solver, tolerance, bias, start):
    model, x, y = fill(nn.Linear(4, 3, bias=bias), seed=start), noise(40, 4), noise(40, 3, seed=1)
    natural_step(model, x, y, solver=solver)
    truth = solution(x, y, bias)
    assert (joint(model) - truth).norm() <= tolerance * (truth - joint(fill(nn.Linear(4, 3, bias=bias), seed=start))).norm()


def test_law_12_with_positions():
    model, x, y = fill(nn.Linear(4, 3)), noise(10, 5, 4), noise(10, 5, 3, seed=1)
    natural_step(model, x, y, reduction=Reduction.ROWS)
    torch.testing.assert_close(joint(model), solution(x, y, True), rtol=1e-10, atol=1e-10)


def test_law_12_in_the_words_of_a_user():
    """`observe` between forward and loss, then an ordinary step."""
    model, x, y = fill(nn.Linear(4, 3)), noise(40, 4), noise(40, 3, seed=1)
    policy = replace(PLAIN, fisher=ExactFisher(Gaussian()))
    optimizer = KFAC(model, lr=1.0, damping=0.0, momentum=0.0, policy=policy)
    F.mse_loss(optimizer.observe(model(x)), y).backward()
    optimizer.step()
    torch.testing.assert_close(joint(model), solution(x, y, True), rtol=1e-11, atol=1e-11)


def test_half_a_step_goes_half_the_way():
    model, x, y = fill(nn.Linear(4, 3)), noise(40, 4), noise(40, 3, seed=1)
    start = joint(model).detach().clone()
    natural_step(model, x, y, lr=0.5)
    torch.testing.assert_close(joint(model), 0.5 * (start + solution(x, y, True)), rtol=1e-11, atol=1e-11)


def test_one_convolution_is_solved_in_one_step_too():
    """im2col: the patches' least squares; squared error over all positions is a mean over N·S terms."""
    model, x, y = fill(nn.Conv2d(2, 3, 2)), noise(6, 2, 4, 4), noise(6, 3, 3, 3, seed=1)
    optimizer = optimizer_for(model, lr=1.0, damping=0.0, reduction=Reduction.ROWS)
    for c in range(3):  # √(2/C) e_c at each of the 54 positions, three passes
        (model(x)[:, c].sum() * (2 / 3) ** 0.5 / (54 * 3**0.5)).backward()
    model.zero_grad()
    optimizer.capture.enabled = False
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    patches = F.unfold(x, 2).mT.reshape(54, 8)
    rows = torch.cat((patches, torch.ones(54, 1, dtype=x.dtype)), 1)
    truth = torch.linalg.lstsq(rows, y.flatten(2).mT.reshape(54, 3)).solution.mT
    torch.testing.assert_close(torch.cat((model.weight.flatten(1), model.bias[:, None]), 1), truth, rtol=1e-10, atol=1e-10)


def test_eight_bits_still_go_most_of_the_way():
    """The loss above its minimum falls by a factor of 20 at least: what converters leave, the next step takes."""
    x, y = noise(40, 4), noise(40, 3, seed=1)
    least = fill(nn.Linear(4, 3))
    truth = solution(x, y, True)
    least.weight.data.copy_(truth[:, :-1])
    least.bias.data.copy_(truth[:, -1])
    bottom = F.mse_loss(least(x), y).item()
    for solver in (ThermodynamicSolve(EIGHT, LONG), ThermodynamicInverse(EIGHT, UnitVectors(LONG))):
        model = fill(nn.Linear(4, 3))
        before = F.mse_loss(model(x), y).item()
        natural_step(model, x, y, solver=solver)
        assert F.mse_loss(model(x), y).item() - bottom < (before - bottom) / 20
