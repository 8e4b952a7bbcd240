"""Training goes on, and says so, under what a machine may do: dead cells, accidents, matrices that rounding made indefinite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.experiments.data import digits
from heatbath.machines import Emulator, Fault, FaultInjector, Machine, MachineSpec
from heatbath.machines.oracle import oracle
from heatbath.optim import KFAC
from heatbath.solvers import Cholesky, Guarded, Solver, ThermodynamicInverse, ThermodynamicSolve

STEPS = 40
EIGHT = MachineSpec(name="eight bits", tau=1e-6, settle_taus=50.0, matrix_bits=8, drive_bits=8, read_bits=8)
METHODS = pytest.mark.parametrize("method", [ThermodynamicInverse, ThermodynamicSolve])


def train(solver: Solver[Any]) -> tuple[list[float], dict[str, float | str]]:
    """Losses of a 64-32-10 network on digits, and the optimizer's report; the same start and batches for all."""
    x, y = digits.load().train.tensors
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = KFAC(model, lr=0.1, damping=1e-3, solver=solver, generator=torch.Generator().manual_seed(2))
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(STEPS):
        rows = torch.randint(len(x), (128,), generator=generator)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, optimizer.report()


def fall(losses: list[float]) -> float:
    """By how much the loss fell, last ten batches against the first."""
    return losses[0] - sum(losses[-10:]) / 10


def counted(report: dict[str, float | str], what: str) -> float:
    return sum(float(value) for name, value in report.items() if name.endswith(what))


@pytest.mark.slow
@METHODS
def test_one_percent_of_dead_cells_costs_little_of_the_fall(method: type[Any]) -> None:
    """Nine tenths of the digital fall is what is called "keeps working"; a machine that moves nothing has none of it."""
    digital, _ = train(Cholesky())
    machine = Machine(replace(EIGHT, dead_cells=0.01))
    alive = oracle(machine.program(torch.eye(65))).network.cells.working
    assert alive is not None
    assert not alive.all()  # this specimen has a dead cell within the sizes used
    losses, report = train(method(machine))
    assert fall(losses) > 0.9 * fall(digital)
    assert report["skipped_steps"] == 0
    assert counted(report, "fell_back") == 0  # it is the machine that is tested, not the fallback


@pytest.mark.slow
@METHODS
@pytest.mark.parametrize("fault", [Fault.NONFINITE, Fault.LATE])
def test_accidents_of_every_fiftieth_call_leave_no_trace_but_in_the_report(method: type[Any], fault: Fault) -> None:
    """The machine has no noise, so what is asked again comes back as it would have been: equal losses, bit by bit."""
    healthy, before = train(method(Machine(EIGHT)))
    losses, report = train(method(Machine(FaultInjector(Emulator(EIGHT), fault, every=50))))
    assert losses == healthy
    assert counted(before, "retried") == 0
    assert counted(report, "retried") > 0
    assert counted(report, "fell_back") == 0


@pytest.mark.slow
def test_garbage_is_told_by_its_residual_and_tried_again() -> None:
    healthy, _ = train(ThermodynamicSolve(Machine(EIGHT)))
    solver = Guarded(
        ThermodynamicSolve(Machine(FaultInjector(Emulator(EIGHT), Fault.GARBAGE, every=50))), residual_tolerance=1.0
    )
    losses, report = train(solver)
    assert fall(losses) > 0.9 * fall(healthy)
    assert counted(report, "retried") >= STEPS * 4 // 50  # two stacks of two sides


@pytest.mark.slow
@METHODS
def test_indefinite_rounding_at_every_refresh_is_mended_and_counted(method: type[Any]) -> None:
    digital, _ = train(Cholesky())
    losses, report = train(method(Machine(replace(EIGHT, matrix_bits=4))))
    refreshes = sum(float(v) for k, v in report.items() if k.startswith("prepare.") and k != "prepare.clipped")
    mended = float(report.get("prepare.redamped", 0)) + float(report.get("prepare.fell_back", 0))
    assert mended > 0.5 * refreshes  # one of the two stacks at least, every time
    assert fall(losses) > 0.9 * fall(digital)
    assert report["skipped_steps"] == 0
