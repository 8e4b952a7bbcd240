"""Which inverses are renewed, which stay, and that none is applied that did not arrive; over real training runs on digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.experiments.data import digits
from heatbath.operators import Dense, Kronecker
from heatbath.optim import KFAC, FactoredDamping, KLClip, Policy, Unclipped, renewal
from heatbath.optim.renewal import Renewal
from heatbath.optim.stacks import Stack
from heatbath.solvers import Cholesky, Guarded, NewtonSchulz, ThermodynamicSolve, WarmStarted
from heatbath.solvers.factorwise import Factorwise, Sides
from tests.laws import batches, fresh, network, train
from tests.zoo import IDEAL


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def run(optimizer: KFAC, model: nn.Module, steps: int) -> Iterator[float]:
    """Losses of batches of 128 images."""
    x, y = digits.load().train.tensors
    generator = fresh(1)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows].flatten(1)), y[rows])
        loss.backward()
        optimizer.step()
        yield loss.item()


def inverses(state: Sides) -> list[Tensor]:
    """Of both sides, [L, n, n] in float64."""
    return [side.operator.dense().double() for side in (state.left, state.right)]


def damped(stack: Stack, optimizer: KFAC) -> Kronecker:
    operator = FactoredDamping()(stack.mean, stack.boost * stack.damping(optimizer.param_groups))
    assert isinstance(operator, Kronecker)
    return operator


def residuals(state: Sides, operator: Kronecker) -> Tensor:
    """‖I − XM‖_F/√n of both sides, the larger, [L]."""
    found = []
    for x, side in zip(inverses(state), (operator.left, operator.right), strict=True):
        eye = torch.eye(side.size, dtype=torch.float64)
        found.append((eye - x @ side.dense().double()).flatten(-2).norm(dim=-1) / side.size**0.5)
    return torch.stack(found).amax(0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("damping", [1e-3, 1e-1])
def test_warm_started_inverses_are_choleskys_to_the_tolerance_over_a_training_run(dtype, damping, monkeypatch):
    """Whenever a member is prepared: its inverse is LAPACK's of the same matrix, to the tolerance, or the one it had before."""
    tolerance, worst, kept = 1e-2, 0.0, 0
    prepare, adopt, operators = Factorwise.prepare, Renewal._adopt, []

    def note(self, operator, **options):
        operators.append(operator)
        return prepare(self, operator, **options)

    def spy(self, stack):
        nonlocal worst, kept
        index, old = stack.pending.index, stack.state
        flags = adopt(self, stack)
        index = torch.arange(stack.length) if index is None else index
        missed = torch.zeros(stack.length, dtype=torch.bool) if flags is None else flags
        missed = missed[index]
        for name in ("left", "right"):
            side, x = getattr(operators[-1], name), getattr(stack.state, name).operator.dense().double()[index]
            identity = torch.eye(side.size, dtype=torch.float64)
            residual = (identity - x @ side.dense().double()).flatten(-2).norm(dim=-1) / side.size**0.5
            worst = max(worst, residual[~missed].max().item() if (~missed).any() else 0.0)
            if missed.any():
                assert torch.equal(x[missed], getattr(old, name).operator.dense().double()[index][missed])
        kept += int(missed.sum())
        return flags

    monkeypatch.setattr(Factorwise, "prepare", note)
    monkeypatch.setattr(Renewal, "_adopt", spy)
    model = perceptron()
    solver = WarmStarted(NewtonSchulz(warm_steps=4, tolerance=tolerance, product_dtype=dtype))
    optimizer = KFAC(model, damping=damping, solver=solver, policy=Policy(trust=KLClip()))
    losses = list(run(optimizer, model, 60))
    assert worst <= tolerance * (1 + 1e-3)  # measured in float32 there, in float64 here
    assert optimizer.report().get("prepare.inaccurate", 0) == kept < 0.1 * optimizer.report()["prepare.solved"]
    assert losses[-1] < 0.3 * losses[0]


def test_warm_starts_train_as_cholesky_does():
    """A relative residual of 1e-5 at each refresh leaves the losses where Cholesky has them, to one percent."""
    losses = []
    for solver in (Cholesky(), WarmStarted(NewtonSchulz(warm_steps=6, tolerance=1e-5))):
        model = perceptron().double()
        optimizer = KFAC(model, damping=1e-1, solver=solver)
        x, y = digits.load().train.tensors
        generator, found = fresh(1), []
        for _ in range(40):
            rows = torch.randint(len(x), (128,), generator=generator)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows].flatten(1).double()), y[rows])
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(torch.tensor(found))
        assert optimizer.report().get("prepare.inaccurate", 0) == 0
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=0)


def jumped(**options) -> tuple[KFAC, list[list[Tensor]], list[Kronecker]]:
    """Eight steps at λ = 1, then at λ = 1e-6: inverses and damped factors after each step from the jump on."""
    model = perceptron()
    policy = Policy(factor_every=4, refresh_every=4, patience=0, trust=Unclipped(), **options)
    optimizer = KFAC(model, lr=1e-3, damping=1.0, solver=WarmStarted(), policy=policy)
    for _ in run(optimizer, model, 8):
        pass
    optimizer.param_groups[0]["damping"] = 1e-6
    held, operators = [[x for stack in optimizer.stacks for x in inverses(stack.state)]], []
    for _ in run(optimizer, model, 2):
        held.append([x for stack in optimizer.stacks for x in inverses(stack.state)])
        operators += [damped(stack, optimizer) for stack in optimizer.stacks]
    return optimizer, held, operators


def test_after_a_jump_of_damping_the_old_inverse_serves_one_step_then_cholesky_takes_over():
    optimizer, (before, first, second), _ = jumped()
    assert all(torch.equal(a, b) for a, b in zip(before, first, strict=True))
    assert optimizer.report()["prepare.inaccurate"] == len(optimizer.stacks)
    assert all((stack.boost == 1).all() for stack in optimizer.stacks)  # not the damping's fault
    for stack in optimizer.stacks:
        operator = damped(stack, optimizer)
        solver = Cholesky()
        for x, side in zip(inverses(stack.state), (operator.left, operator.right), strict=True):
            assert torch.equal(x, solver.prepare(side)[0].operator.dense().double())
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_fails_from_scratch_as_well_gets_more_damping():
    model = network()
    optimizer = KFAC(model, lr=0.1, solver=WarmStarted(), policy=Policy(1, 1, 0))
    train(model, optimizer, batches(2))
    stack = optimizer.stacks[0]
    assert isinstance(stack.mean.right, Dense)
    stack.mean.right.matrix.neg_()
    renew = Renewal(optimizer.solver, optimizer.damping, optimizer.policy, None, optimizer._tally)
    before = stack.boost.clone(), inverses(stack.state)
    renew.visit(stack, 1e-3, due=True, seen=True)
    assert torch.equal(stack.boost, before[0])
    assert stack.failed is not None
    assert stack.failed.members() == [0]
    renew.visit(stack, 1e-3, due=False, seen=False)
    assert torch.equal(stack.boost, 10 * before[0])
    assert stack.failed is None
    assert all(torch.equal(a, b) for a, b in zip(before[1], inverses(stack.state), strict=True))


# --- refresh_above --------------------------------------------------------------------------------------------------------


def test_an_inverse_that_fits_is_kept_and_one_that_does_not_is_renewed_a_step_later():
    """Two equal layers in one stack; from step 4 on one of them gets inputs three times as large."""
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]).double()
    policy = Policy(2, 2, 0, decay=0.0, trust=Unclipped(), refresh_above=0.5)
    optimizer = KFAC(model, lr=1e-9, damping=0.1, policy=policy, generator=fresh(0))
    x = torch.randn(8, 3, generator=fresh(1), dtype=torch.float64)
    held = []
    for step in range(8):
        optimizer.zero_grad()
        (model[0](x).sum(1).mean() + model[1](3 * x if step >= 4 else x).sum(1).mean()).backward()
        optimizer.step()
        held.append([side.clone() for side in inverses(optimizer.stacks[0].state)])
    (stack,) = optimizer.stacks
    for side in range(2):
        assert all(torch.equal(held[0][side], h[side]) for h in held[:5])  # probed at 2 and 4
        assert torch.equal(held[7][side][0], held[0][side][0])  # the first layer fitted at every probe
    assert not torch.equal(held[5][1][1], held[4][1][1])
    assert residuals(stack.state, damped(stack, optimizer)).max() < 1e-6
    report = optimizer.report()
    assert report["refreshes"] == 2  # the first one and that of one member
    assert report["prepare.solved"] == 3
    assert report["kept_inverses"] == 2 + 1 + 2  # probes of steps 2, 4 and 6


def test_every_inverse_that_is_kept_fits_over_a_training_run(monkeypatch):
    """Judged in full at each probe. A misfit of c is taken for one below c/4 if χ²₈ < 8/16, with a chance below 2e-4."""
    limit, seen = 0.3, []
    probe = renewal.misfit

    def spy(state, operator, generator):
        found = probe(state, operator, generator)
        seen.extend(zip(found.tolist(), residuals(state, operator).tolist(), strict=True))
        return found

    monkeypatch.setattr(renewal, "misfit", spy)
    model = perceptron()
    optimizer = KFAC(model, damping=1e-2, policy=Policy(2, 2, 0, refresh_above=limit), generator=fresh(0))
    losses = list(run(optimizer, model, 40))
    assert losses[-1] < losses[0]
    kept = [true for found, true in seen if found <= limit]
    assert len(kept) == optimizer.report()["kept_inverses"] > 10
    assert len(seen) - len(kept) == optimizer.report()["prepare.solved"] - 3 > 10  # three at the first step
    assert max(kept) < 4 * limit


def test_a_guarded_solver_may_keep_its_inverses_too():
    model = perceptron()
    policy = Policy(2, 2, 0, refresh_above=0.5)
    optimizer = KFAC(model, damping=1e-1, solver=Guarded(Cholesky()), policy=policy, generator=fresh(0))
    losses = list(run(optimizer, model, 30))
    assert losses[-1] < losses[0]
    assert optimizer.report()["kept_inverses"] > 0


def test_a_machine_that_is_driven_has_no_inverse_to_keep():
    model = network()
    optimizer = KFAC(model, solver=ThermodynamicSolve(IDEAL), policy=Policy(1, 1, 0, refresh_above=0.5))
    with pytest.raises(TypeError, match="a Held holds no explicit inverse whose fit could be tested"):
        train(model, optimizer, batches(2))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"refresh_above": 0.0}, "refresh_above must be positive, got 0.0; None refreshes whatever is due"),
        ({"refresh_above": 0.1, "corrected": True}, "corrected eigenvalues live in an eigenbasis, no inverse"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Policy(**options)
