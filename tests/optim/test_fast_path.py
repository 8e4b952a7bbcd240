"""The step as it is computed (aligned rows, strips, few passes) against the step as it is written, for every solver.

The layers are wide enough for aligned rows (from 64 numbers on) and for sums in strips (from 256 on), and their widths are odd
with the bias, as everywhere in practice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.machines import Schedule
from heatbath.optim import KFAC, FactoredDamping, KLClip, Policy
from heatbath.solvers import (
    Cholesky,
    ConjugateGradient,
    Eigen,
    Guarded,
    NewtonSchulz,
    Solver,
    ThermodynamicInverse,
    ThermodynamicSolve,
    UnitVectors,
)
from tests.laws import noise
from tests.optim.reference import Reference
from tests.zoo import IDEAL, TAU

DAMPING = 0.3
LONG = Schedule(burn_in=20_000 * TAU, duration=100 * TAU)  # e^(−λ·t/τ) below 1e-20 at the damped factors' λ_min of 0.003 s
SOLVERS: dict[str, tuple[Solver[Any], float]] = {  # and how far a step may be from the reference's, relatively
    "Cholesky": (Cholesky(), 1e-10),
    "Cholesky, double": (Cholesky(double=True), 1e-10),
    "Eigen": (Eigen(), 1e-10),
    "Guarded(Cholesky)": (Guarded(Cholesky()), 1e-10),
    "NewtonSchulz": (NewtonSchulz(steps=40, tolerance=1e-9), 1e-8),
    "ConjugateGradient": (ConjugateGradient(150, 1e-11), 1e-8),
    "ThermodynamicInverse": (ThermodynamicInverse(IDEAL, UnitVectors(LONG)), 1e-8),
    "ThermodynamicSolve": (ThermodynamicSolve(IDEAL, LONG), 1e-8),
}


@dataclass
class Sides:
    """B⁻¹ V A⁻¹ of a flattened V."""

    left: Tensor
    right: Tensor

    def __matmul__(self, flat: Tensor) -> Tensor:
        return (self.left @ flat.reshape(len(self.left), len(self.right)) @ self.right).flatten()


class SideBySide(Reference):
    """The reference with an inverse for each side, since Kronecker products of wide layers do not fit."""

    def _invert(self) -> None:
        self.last_refresh = self.time
        for i, sums in self.sums.items():
            b, a = (s / (1 - self.decay**self.ages) for s in sums)
            ratio = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
            root = self.damping**0.5
            eye_b, eye_a = torch.eye(len(b), dtype=b.dtype), torch.eye(len(a), dtype=a.dtype)
            self.inverses[i] = Sides(torch.linalg.inv(b + root / ratio * eye_b), torch.linalg.inv(a + root * ratio * eye_a))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(280, 70), nn.Tanh(), nn.Linear(70, 70), nn.Tanh(), nn.Linear(70, 5)).double()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_training_run_equals_the_reference(name):
    """Steps with and without a refresh, momentum, weight decay and the KL clip."""
    solver, tolerance = SOLVERS[name]
    fast, plain = network(), network()
    options: dict[str, Any] = {"lr": 0.1, "damping": DAMPING, "momentum": 0.9, "weight_decay": 0.1}
    policy = Policy(factor_every=1, refresh_every=2, patience=0, damping_rule=FactoredDamping(), trust=KLClip())
    optimizer = KFAC(fast, solver=solver, policy=policy, **options)
    reference = SideBySide(
        [m for m in plain if isinstance(m, nn.Linear)], factor_every=1, refresh_every=2, patience=0, **options
    )
    start = [p.detach().clone() for p in plain.parameters()]
    for index in range(3):
        x, y = noise(40, 280, seed=index), torch.arange(40) % 5
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimizer.step()
        reference.step(x, y)
    for p, q, before in zip(fast.parameters(), plain.parameters(), start, strict=True):
        assert (p - q).norm() / (q - before).norm() < tolerance
    assert optimizer.report()["refreshes"] == 2


def test_half_precision_rows_are_summed_in_single_precision():
    """bf16 rows: products of bf16 numbers are exact in float32, so the factor is that of the rounded rows to 1e-6."""
    model = nn.Linear(300, 70, dtype=torch.bfloat16)
    optimizer = KFAC(model, policy=Policy(factor_every=1))
    x = noise(512, 300).to(torch.bfloat16)
    model(x).float().square().mean().backward()
    optimizer.step()
    (stack,) = optimizer.stacks
    assert stack.mean is not None
    rows = torch.cat((x.double(), torch.ones(512, 1, dtype=torch.float64)), 1)
    truth = rows.mT @ rows / 512
    found = stack.mean.right.dense()[0]
    assert found.dtype == torch.float32
    assert (found - truth).norm() / truth.norm() < 1e-6


@pytest.mark.parametrize("limits", [{}, {"max_dim": 60, "rank": 16}], ids=["whole", "sketches"])
@pytest.mark.parametrize("name", ["Cholesky", "NewtonSchulz", "Guarded(Cholesky)"])
def test_the_application_compiles_whole_and_gives_the_same(name, limits):
    """No graph break in applying a prepared state to gradients."""
    model = network()
    optimizer = KFAC(model, solver=SOLVERS[name][0], policy=Policy(factor_every=1, **limits))
    F.cross_entropy(model(noise(40, 280)), torch.arange(40) % 5).backward()
    optimizer.step()
    stack = optimizer.stacks[0]

    def apply(gradient: Tensor) -> Tensor:
        return optimizer.solver.solve(stack.state, gradient).value

    gradient = noise(1, 70, 281)
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(gradient), apply(gradient), rtol=1e-12, atol=1e-12)
