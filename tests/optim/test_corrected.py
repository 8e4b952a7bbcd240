"""EKFAC: law 13, and averages that survive a turn of the basis."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, ExactFisher, Gaussian, Reduction
from heatbath.operators import EigenCorrected, Kronecker
from heatbath.optim import KFAC, Policy
from heatbath.solvers import Cholesky, Eigen
from tests.curvature.test_fisher import full_ggn, mlp
from tests.curvature.truth import fill
from tests.laws import batches, network, noise, saved_and_loaded, train
from tests.zoo import PLAIN

EKFAC = replace(PLAIN, corrected=True)


def learned(model: nn.Module, x: Tensor, fisher, *, passes: int = 2, **options) -> dict[str, tuple[Kronecker, EigenCorrected]]:
    """Mean factors and corrected curvature of each layer; the first pass finds the basis, the second the moments along it."""
    policy = replace(EKFAC, fisher=fisher, **options)
    optimizer = KFAC(model, lr=1e-300, damping=1.0, momentum=0.0, policy=policy, solver=Eigen())
    for _ in range(passes):
        optimizer.zero_grad()
        optimizer.observe(model(x)).mean().backward()
        optimizer.step()
    optimizer.capture.detach()
    return {stack.places[0].site.name: (stack.mean, stack.corrected) for stack in optimizer.stacks}


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical()], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4)], ids=["no positions", "positions"])
def test_law_13_the_trace_is_that_of_the_ggn_block_and_the_distance_no_larger_than_of_kfac(likelihood, shape):
    """Positions averaged at the end, so that shared weights meet in an example."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp(4, 5, 3, activation=nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            y = self.layers(x)
            return y.mean(1) if y.ndim == 3 else y

    model, x = fill(Pooled()), noise(*shape)
    for name, (kfac, ekfac) in learned(model, x, ExactFisher(likelihood)).items():
        truth = full_ggn(model, name, x, likelihood)
        assert ekfac.trace()[0].item() == pytest.approx(truth.trace().item(), rel=1e-10)
        near, far = ((op.dense()[0] - truth).norm() for op in (ekfac, kfac))
        assert near <= far + 1e-12 * truth.norm()
        exact = isinstance(likelihood, Gaussian) and len(shape) == 2 and name.endswith("2")  # law 1
        assert exact or near < 0.99 * far


def test_the_corrected_eigenvalues_are_the_diagonal_of_the_block_in_the_kronecker_eigenbasis():
    model, x = mlp(4, 5, 3, activation=nn.Tanh()), noise(6, 4)
    for name, (kfac, ekfac) in learned(model, x, ExactFisher(Categorical())).items():
        truth = full_ggn(model, name, x, Categorical())
        bases = [torch.linalg.eigh(side.matrix[0])[1] for side in (kfac.left, kfac.right)]
        diagonal = (torch.kron(*bases).mT @ truth @ torch.kron(*bases)).diagonal()
        torch.testing.assert_close(ekfac.values[0].flatten(), diagonal, rtol=1e-8, atol=1e-12)


def test_the_trace_survives_turns_of_the_basis():
    """Batches of one kind, bases found anew each time: the average trace is the average of the batches' traces."""
    model = mlp(4, 5, 3, activation=nn.Tanh())
    policy = replace(EKFAC, fisher=ExactFisher(Categorical()), decay=0.5)
    optimizer = KFAC(model, lr=1e-300, damping=1.0, momentum=0.0, policy=policy, solver=Eigen())
    traces = []
    for seed in range(4):
        x = noise(6, 4, seed=seed)
        optimizer.zero_grad()
        optimizer.observe(model(x)).mean().backward()
        optimizer.step()
        traces.append(full_ggn(model, "2", x, Categorical()).trace())
    weights = torch.tensor([1.0, 2.0, 4.0]).double() / 7  # the first batch found the basis only
    (stack,) = [s for s in optimizer.stacks if s.places[0].site.name == "2"]
    torch.testing.assert_close(stack.corrected.trace()[0], (weights * torch.stack(traces[1:])).sum(), rtol=1e-10, atol=0)


def test_a_turned_basis_sees_the_diagonal_of_what_was_known_along_the_old_one():
    """diag(U'ᵀ [U diag(S) Uᵀ] U'), written out, with S the mean squares of per-example gradients along U."""
    model = fill(nn.Linear(4, 3))
    optimizer = KFAC(model, lr=1e-300, damping=1.0, momentum=0.0, policy=EKFAC, solver=Eigen())
    (stack,) = optimizer.stacks
    target, found = torch.arange(8) % 3, []
    for seed in (1, 2):
        x = noise(8, 4, seed=seed)
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
        found.append(stack.corrected)
    old, new = (torch.kron(op.left[0], op.right[0]) for op in found)
    errors = model(x).detach().softmax(1) - F.one_hot(target, 3)
    gradients = torch.einsum("no,ni->noi", errors, torch.cat((x, torch.ones(8, 1, dtype=x.dtype)), 1)).flatten(1)
    squares = (gradients @ old).square().mean(0)
    truth = (new.mT @ old @ torch.diag(squares) @ old.mT @ new).diagonal()
    torch.testing.assert_close(found[1].values[0].flatten(), truth, rtol=1e-11, atol=1e-14)
    assert (old.mT @ new - torch.eye(15)).norm() > 0.1  # it did turn


def test_before_it_has_seen_data_it_is_kfac():
    model, other = network(), network()
    x, y = batches(1)[0]
    for net, policy in ((model, EKFAC), (other, PLAIN)):
        optimizer = KFAC(net, policy=policy, solver=Eigen())
        train(net, optimizer, [(x, y)])
    assert all(
        torch.allclose(p, q, rtol=1e-12, atol=1e-14) for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_the_step_solves_with_the_corrected_curvature():
    model, x = mlp(4, 3), noise(6, 4)
    optimizer = KFAC(model, lr=1.0, damping=0.1, momentum=0.0, policy=EKFAC, solver=Eigen())
    for _ in range(3):
        before = torch.cat((model[0].weight, model[0].bias[:, None]), 1).detach().clone()
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(6) % 3).backward()
        gradient = torch.cat((model[0].weight.grad, model[0].bias.grad[:, None]), 1)
        optimizer.step()
    (stack,) = optimizer.stacks
    damped = stack.corrected.dense()[0] + 0.1 * torch.eye(15).double()
    truth = before.flatten() - torch.linalg.solve(damped, gradient.flatten())
    after = torch.cat((model[0].weight, model[0].bias[:, None]), 1).flatten()
    torch.testing.assert_close(after.detach(), truth, rtol=1e-10, atol=1e-12)


def test_eigenvalues_follow_between_refreshes():
    """Bases every four steps, moments at each: states are prepared anew without a decomposition."""
    model = network()
    policy = Policy(factor_every=1, refresh_every=4, patience=0, corrected=True)
    optimizer = KFAC(model, policy=policy, solver=Eigen())
    bases, values = [], []
    for x, y in batches(6):
        train(model, optimizer, [(x, y)])
        bases.append(optimizer.stacks[0].corrected.left.clone())
        values.append(optimizer.stacks[0].state.values.clone())
    assert [torch.equal(bases[0], b) for b in bases] == [True] * 4 + [False] * 2
    assert all(not torch.equal(a, b) for a, b in pairwise(values))


@pytest.mark.parametrize("split", [3, 4, 5])
def test_a_saved_run_goes_on_bit_equal(split):
    policy = Policy(factor_every=2, refresh_every=4, patience=0, corrected=True)
    data = batches(10)
    model = network()
    optimizer = KFAC(model, policy=policy, solver=Eigen())
    train(model, optimizer, data[:split])
    weights, state = saved_and_loaded(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    train(model, optimizer, data[split:])
    other = network(seed=1)
    resumed = KFAC(other, policy=policy, solver=Eigen())
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(other, resumed, data[split:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("reduction", [None, Reduction.SUM], ids=str)
def test_micro_batches_are_one_batch(reduction):
    moved = []
    for parts in (1, 2):
        model = mlp(4, 5, 3, activation=nn.Tanh())
        optimizer = KFAC(model, policy=replace(EKFAC, reduction=reduction), solver=Eigen())
        for x, y in batches(3):
            optimizer.zero_grad()
            for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
                if reduction is Reduction.SUM:
                    F.cross_entropy(model(x_part), y_part, reduction="sum").backward()
                else:
                    (F.cross_entropy(model(x_part), y_part) / parts).backward()
            optimizer.step()
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*moved, rtol=1e-9, atol=1e-11)


def test_embeddings_keep_their_kronecker_product():
    model = fill(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)))
    optimizer = KFAC(model, policy=EKFAC, solver=Eigen())
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.tensor([[0, 1], [2, 3]])), torch.tensor([0, 1])).backward()
        optimizer.step()
    kinds = {stack.places[0].site.name: stack.corrected is not None for stack in optimizer.stacks}
    assert kinds == {"0": False, "2": True}


def test_a_batch_that_is_not_finite_leaves_eigenvalues_finite():
    model = network()
    optimizer = KFAC(model, policy=EKFAC, solver=Eigen())
    for index, (x, y) in enumerate(batches(4)):
        train(model, optimizer, [(x * (float("nan") if index == 2 else 1.0), y)])
    assert all(torch.isfinite(stack.corrected.values).all() for stack in optimizer.stacks)


def test_it_needs_an_eigenbasis():
    with pytest.raises(ValueError, match=r"corrected eigenvalues need an eigenbasis: pass solver=Eigen\(\)"):
        KFAC(network(), policy=EKFAC)
    with pytest.raises(ValueError, match="corrected eigenvalues need an eigenbasis"):
        KFAC(network(), policy=EKFAC, solver=Cholesky())
