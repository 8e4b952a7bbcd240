"""K-FAC as a whole: laws of the step, safety, checkpoints."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.machines import Machine, load_machine, with_bits
from heatbath.operators import Dense
from heatbath.optim import KFAC, Policy, Unclipped
from heatbath.solvers import (
    Cholesky,
    Eigen,
    Factorwise,
    Guarded,
    Outcome,
    ThermodynamicInverse,
    ThermodynamicSolve,
)

PLAIN = Policy(factor_every=1, refresh_every=1, patience=0, trust=Unclipped())


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batch(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


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
