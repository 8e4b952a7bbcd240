"""K-FAC as a whole: laws of the step, safety, checkpoints."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import FactorSums, Form, Reduction
from heatbath.layers import Block, Rows
from heatbath.machines import Machine, Schedule, load_machine, with_bits
from heatbath.operators import Dense, Kronecker
from heatbath.optim import KFAC, ExactDamping, FactoredDamping, Policy, Unclipped
from heatbath.solvers import (
    Cholesky,
    Eigen,
    Factorwise,
    Guarded,
    Outcome,
    Solver,
    ThermodynamicInverse,
    ThermodynamicSolve,
    UnitVectors,
)

PLAIN = Policy(factor_every=1, refresh_every=1, patience=0, trust=Unclipped())


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batch(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


def machine_solvers() -> list[Solver]:
    ideal = Machine(load_machine("ideal"))
    long = Schedule(burn_in=1.0, duration=1e-3)
    return [ThermodynamicSolve(ideal, schedule=long), ThermodynamicInverse(ideal, UnitVectors(schedule=long))]


@pytest.mark.parametrize("solver", [Cholesky(), *machine_solvers()], ids=["cholesky", "solve", "inverse"])
def test_one_step_with_the_exact_fisher_is_the_least_squares_solution(solver: Solver) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=g, dtype=torch.float64)
    y = torch.randn(40, 2, generator=g, dtype=torch.float64)
    model = nn.Linear(4, 2).double()
    opt = KFAC(model, lr=1.0, damping=0.0, momentum=0.0, solver=solver, policy=PLAIN)
    F.mse_loss(model(x), y).backward()
    # the exact Fisher of MSELoss(mean): rows that are the columns of the Hessian's square root, g gᵀ summing to B = (2/C) I / D
    stack = opt.stacks[0]
    stack.sums.left.copy_(torch.eye(2, dtype=torch.float64)[None] * (2 / 2) / 40)
    opt.step()
    joint = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1)
    truth = torch.linalg.lstsq(joint, y).solution.T
    found = torch.cat([model.weight, model.bias[:, None]], 1)
    assert torch.allclose(found, truth, atol=1e-9)


def test_factors_equal_the_exact_gauss_newton_block_of_one_linear_layer() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(10, 3, generator=g, dtype=torch.float64)
    weight = torch.randn(2, 3, generator=g, dtype=torch.float64)
    hessian = torch.func.hessian(lambda w: F.mse_loss(x @ w.T, torch.zeros(10, 2, dtype=torch.float64)))(weight).reshape(6, 6)
    sums = FactorSums([1], Form(Block(("weight",), 1, (2, 3)), torch.float64, torch.device("cpu")))
    left, _ = sums.hold()
    for c in range(2):  # column c of the square root of the output Hessian (2/C) I, divided by D as backward does
        g_rows = torch.zeros(1, 10, 1, 2, dtype=torch.float64)
        g_rows[..., c] = 1.0 / 10
        left += torch.einsum("pbso,pbsq->poq", g_rows, g_rows)
    sums.add(0, Rows(x[None, :, None, :], torch.zeros(1, 10, 1, 2, dtype=torch.float64)), pass_number=1)
    factors, seen = sums.collect(Reduction.EXAMPLES)
    assert seen == [True]
    assert torch.allclose(factors.dense()[0] * (2 / 2), hessian, atol=1e-12)


def test_empirical_factors_are_exact_for_one_example() -> None:
    model, (x, y) = net(), batch(1)
    opt = KFAC(model, damping=1.0, policy=PLAIN)
    F.cross_entropy(model(x), y).backward()
    factors, _ = opt.stacks[0].sums.collect(Reduction.EXAMPLES)
    grad = torch.cat([model[0].weight.grad, model[0].bias.grad[:, None]], 1).reshape(-1)
    assert torch.allclose(factors.dense()[0], torch.outer(grad, grad), atol=1e-14)


def test_eigen_solves_the_exactly_damped_block() -> None:
    g = torch.Generator().manual_seed(3)
    a, b = (torch.randn(1, n, n, generator=g, dtype=torch.float64) for n in (4, 3))
    block = Kronecker(Dense(b @ b.mT), Dense(a @ a.mT))
    rhs = torch.randn(1, 3, 4, generator=g, dtype=torch.float64)
    damped = ExactDamping()(block, torch.full((1,), 0.3, dtype=torch.float64))
    state, _ = Eigen().prepare(damped)
    truth = torch.linalg.solve(block.dense() + 0.3 * torch.eye(12, dtype=torch.float64), rhs.reshape(1, 12))
    assert torch.allclose(Eigen().solve(state, rhs).value.reshape(1, 12), truth, atol=1e-11)


def test_factored_damping_is_exact_where_one_side_is_a_number() -> None:
    g = torch.Generator().manual_seed(3)
    a = torch.randn(1, 4, 4, generator=g, dtype=torch.float64)
    block = Kronecker(Dense(torch.full((1, 1, 1), 2.5, dtype=torch.float64)), Dense(a @ a.mT))
    amount = torch.full((1,), 0.3, dtype=torch.float64)
    assert torch.allclose(FactoredDamping()(block, amount).dense(), ExactDamping()(block, amount).dense(), atol=1e-12)


def moved(x: torch.Tensor, y: torch.Tensor, parts: int = 1, reduction: Reduction = Reduction.EXAMPLES) -> torch.Tensor:
    """Parameters after one step on a batch, in `parts` micro-batches."""
    model = net()
    policy = Policy(factor_every=1, refresh_every=1, patience=0, trust=Unclipped(), reduction=reduction)
    opt = KFAC(model, lr=0.1, damping=1e-2, policy=policy)
    for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
        if reduction is Reduction.SUM:
            F.cross_entropy(model(xs), ys, reduction="sum").backward()
        else:
            (F.cross_entropy(model(xs), ys) / parts).backward()
    opt.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_damping_means_the_same_at_every_batch_size() -> None:
    x, y = batch()
    assert torch.allclose(moved(x, y), moved(torch.cat([x, x]), torch.cat([y, y])), atol=1e-12)


def test_micro_batches_equal_one_batch() -> None:
    assert torch.allclose(moved(*batch()), moved(*batch(), parts=3), atol=1e-12)


def test_sum_and_mean_reductions_agree() -> None:
    assert torch.allclose(moved(*batch()), moved(*batch(), reduction=Reduction.SUM), atol=1e-12)


SOLVERS = {
    "cholesky": lambda: None,
    "eigen": Eigen,
    "inverse": lambda: ThermodynamicInverse(Machine(with_bits(load_machine("tngd-2024"), matrix=8, drive=8, read=8))),
    "solve": lambda: ThermodynamicSolve(Machine(with_bits(load_machine("tngd-2024"), matrix=8, drive=8, read=8))),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_saved_run_goes_on_bit_equal(name: str) -> None:
    def start() -> tuple[nn.Module, KFAC]:
        model = net()
        return model, KFAC(model, solver=SOLVERS[name](), generator=torch.Generator().manual_seed(5))

    def steps(model: nn.Module, opt: KFAC, n: int) -> None:
        x, y = batch()
        for _ in range(n):
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()

    model, opt = start()
    steps(model, opt, 13)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    steps(model, opt, 12)
    other, again = start()
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    steps(other, again, 12)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_gradient_that_is_no_number_changes_nothing_and_is_counted() -> None:
    model, (x, y) = net(), batch()
    opt = KFAC(model)
    F.cross_entropy(model(x), y).backward()
    opt.step()
    before = [p.clone() for p in model.parameters()]
    opt.zero_grad()
    (F.cross_entropy(model(x), y) * float("nan")).backward()
    opt.step()
    assert opt.report()["skipped_steps"] == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for _ in range(5):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
    assert torch.isfinite(loss)


def test_a_step_without_gradients_warns_and_changes_nothing() -> None:
    model = net()
    opt = KFAC(model)
    before = [p.clone() for p in model.parameters()]
    with pytest.warns(UserWarning, match="found no gradients and changed nothing"):
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert opt.steps == 0


def test_every_parameter_is_trained_and_listed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x * self.scale)

    model = Scaled()
    opt = KFAC(model)
    before = [p.clone() for p in model.parameters()]
    F.cross_entropy(model(torch.randn(6, 3, generator=torch.Generator().manual_seed(0))), torch.zeros(6).long()).backward()
    opt.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert opt.coverage().count("adamw") == 3
    assert opt.coverage().count("kfac") == 8
    assert "kfac 2×4" in str(opt.coverage())


def test_rounding_to_few_bits_is_noticed_redamped_and_counted() -> None:
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(16, 16, generator=g, dtype=torch.float64))
    matrix = Dense((q @ torch.diag(torch.logspace(-4, 0, 16, dtype=torch.float64)) @ q.mT)[None])
    coarse = Machine(with_bits(load_machine("tngd-2024"), matrix=3, drive=8, read=8))
    solver = Guarded(ThermodynamicSolve(coarse))
    state, _ = solver.prepare(matrix)
    assert int(solver.outcome(state)) in (Outcome.REDAMPED.code, Outcome.FELL_BACK.code)
    value = solver.solve(state, torch.ones(1, 16, dtype=torch.float64)).value
    assert torch.isfinite(value).all()


def test_bad_input_is_refused_with_words() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires gradients"):
        KFAC(frozen)
    with pytest.raises(TypeError, match="takes the model itself"):
        KFAC(nn.Linear(2, 2).parameters())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lr must be at least 0"):
        KFAC(net(), lr=-1.0)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\)"):
        KFAC(net(), momentum=1.0)
    with pytest.warns(UserWarning, match="no layer of this model has a curvature rule"):
        KFAC(nn.PReLU())
    with pytest.raises(TypeError, match="Factorwise takes Kronecker operators"):
        Factorwise(Cholesky()).prepare(Dense(torch.eye(2)))
    opt = KFAC(net())
    with pytest.raises(ValueError, match="holds no curvature"):
        opt.load_state_dict(torch.optim.SGD(net().parameters()).state_dict())
    other = KFAC(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    with pytest.raises(ValueError, match="of a model with other layers"):
        opt.load_state_dict(other.state_dict())


def test_a_schedule_moves_the_learning_rate() -> None:
    model, (x, y) = net(), batch()
    opt = KFAC(model, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.0)
    F.cross_entropy(model(x), y).backward()
    opt.step()
    schedule.step()
    before = [p.clone() for p in model.parameters()]
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
