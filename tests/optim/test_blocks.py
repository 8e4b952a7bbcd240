"""Factors above a maximum dimension are cut into diagonal blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import ExactFisher, Gaussian, InputOnly
from heatbath.operators import BlockDiagonal, Dense
from heatbath.optim import KFAC, Policy
from heatbath.optim.damping import FactoredDamping
from heatbath.solvers import Cholesky, Eigen, Guarded, ThermodynamicSolve
from tests.curvature.truth import fill
from tests.laws import batches, network, noise, saved_and_loaded, train
from tests.zoo import IDEAL, LONG, PLAIN


def masked(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """The diagonal blocks of a matrix, zeros elsewhere."""
    where = torch.arange(len(matrix)) // size
    return matrix * (where[:, None] == where)


@pytest.mark.parametrize("limit,pieces", [(3, (2, 3)), (4, (1, 2)), (6, (1, 2)), (7, (1, 1)), (1, (4, 7))])
def test_blocks_are_those_of_the_full_factors(limit, pieces):
    """4 outputs, 6 inputs and the bias: the diagonal blocks of B and A, bit for bit up to the order of sums."""
    x, found = noise(9, 6), []
    for size in (None, limit):
        model = fill(nn.Linear(6, 4))
        optimizer = KFAC(model, lr=0.0, damping=1.0, policy=replace(PLAIN, max_dim=size))
        model(x).sin().sum(1).mean().backward()
        optimizer.step()
        found.append(optimizer.stacks[0].mean)
    whole, cut = found
    for full, blocks, count in zip((whole.left, whole.right), (cut.left, cut.right), pieces, strict=True):
        if count == 1:
            assert isinstance(blocks, Dense)
            continue
        assert isinstance(blocks, BlockDiagonal)
        assert blocks.blocks.shape[1] == -(-full.size // limit)
        assert blocks.blocks.shape[-1] <= limit
        truth = masked(full.matrix[0], blocks.blocks.shape[-1])
        torch.testing.assert_close(blocks.dense()[0], truth, rtol=1e-12, atol=1e-14)


def test_the_step_is_that_of_the_block_diagonal_factors():
    """Damped side by side: G ↦ B⁻¹ G A⁻¹ with the dense matrices of the blocks, π from their traces."""
    model, x = fill(nn.Linear(6, 4)), noise(9, 6)
    optimizer = KFAC(model, lr=1.0, damping=0.1, momentum=0.0, policy=replace(PLAIN, max_dim=3))
    before = torch.cat((model.weight, model.bias[:, None]), 1).detach().clone()
    model(x).sin().sum(1).mean().backward()
    gradient = torch.cat((model.weight.grad, model.bias.grad[:, None]), 1)
    optimizer.step()
    mean = optimizer.stacks[0].mean
    damped = FactoredDamping()(mean, torch.full((1,), 0.1, dtype=torch.float64))
    left, right = damped.left.dense()[0], damped.right.dense()[0]
    truth = before - torch.linalg.solve(left, gradient) @ torch.linalg.inv(right)
    found = torch.cat((model.weight, model.bias[:, None]), 1).detach()
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)


def test_blocks_that_hold_everything_change_nothing():
    moved = []
    for limit in (None, 100):
        model = network()
        train(model, KFAC(model, policy=replace(PLAIN, max_dim=limit)), batches(3))
        moved.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*moved, strict=True))


@pytest.mark.parametrize(
    "solver", [None, Guarded(Cholesky()), ThermodynamicSolve(IDEAL, LONG)], ids=["cholesky", "guarded", "machine"]
)
def test_a_blocked_run_resumes_bit_equal_with_any_solver_for_single_matrices(solver):
    policy = Policy(factor_every=2, refresh_every=3, patience=0, max_dim=2)
    data, model = batches(9), network()
    make = lambda m: KFAC(m, policy=policy, solver=solver, generator=torch.Generator().manual_seed(1))  # noqa: E731
    optimizer = make(model)
    train(model, optimizer, data[:4])
    weights, state = saved_and_loaded(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    losses = train(model, optimizer, data[4:])
    other = network(seed=1)
    resumed = make(other)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(other, resumed, data[4:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.isfinite(torch.tensor(losses)))


def test_blocks_work_with_the_exact_and_the_input_only_fisher():
    for fisher in (ExactFisher(Gaussian()), InputOnly()):
        model, x = fill(nn.Linear(6, 4)), noise(9, 6)
        optimizer = KFAC(model, lr=0.0, damping=1.0, policy=replace(PLAIN, max_dim=3, fisher=fisher))
        optimizer.observe(model(x)).sin().sum(1).mean().backward()
        block = factors_of(optimizer)
        a = torch.cat((x, torch.ones(9, 1).double()), 1)
        torch.testing.assert_close(block.right.dense()[0], masked(a.mT @ a / 9, 3), rtol=1e-12, atol=1e-14)


def factors_of(optimizer: KFAC):
    optimizer.step()
    return optimizer.stacks[0].mean


def test_a_large_layer_needs_little_memory():
    """A 300 × 300 layer in blocks of at most 64: five blocks of 61 against 301² numbers, for mean and inverse."""
    sizes = {}
    for limit in (None, 64):
        model = nn.Linear(300, 300)
        optimizer = KFAC(model, momentum=0.0, policy=replace(PLAIN, max_dim=limit))
        F.mse_loss(model(noise(8, 300, dtype=torch.float32)), torch.zeros(8, 300)).backward()
        optimizer.step()
        sizes[limit] = optimizer.coverage().state_bytes
    assert sizes[64] < 0.25 * sizes[None]


def test_a_limit_or_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="max_dim must be at least 1, got 0; None sets no limit"):
        Policy(max_dim=0)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0; None cuts large factors into diagonal blocks"):
        Policy(rank=0)


def test_eigen_takes_whole_factors_whatever_the_limit():
    model = network()
    optimizer = KFAC(model, solver=Eigen(), policy=replace(PLAIN, max_dim=2))
    train(model, optimizer, batches(1))
    assert all(isinstance(side, Dense) for stack in optimizer.stacks for side in (stack.mean.left, stack.mean.right))
