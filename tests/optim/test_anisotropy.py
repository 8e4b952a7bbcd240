"""How far a preconditioner is from a learning rate: against dense matrices, and in the limits."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.machines import Machine, MachineSpec
from heatbath.operators import Kronecker
from heatbath.optim import KFAC, Policy, anisotropy
from heatbath.solvers import Eigen, Solver, ThermodynamicInverse, ThermodynamicSolve
from tests.laws import batches, network
from tests.zoo import PLAIN

PROBES = 200


def stepped(damping: float, solver: Solver | None = None, policy: Policy = PLAIN) -> KFAC:
    """After one step, its gradients still there."""
    model = network()
    optimizer = KFAC(model, lr=0.1, damping=damping, solver=solver, policy=policy, generator=torch.Generator().manual_seed(1))
    x, y = batches(1)[0]
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    return optimizer


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks(optimizer: KFAC) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Damped factors B and A, and the dense (B ⊗ A)⁻¹, of each block."""
    found = []
    for stack in optimizer.stacks:
        assert stack.mean is not None
        damped = optimizer.damping(stack.mean, torch.full((stack.length,), optimizer.param_groups[0]["damping"]).double())
        for b, a in zip(damped.left.dense(), damped.right.dense(), strict=True):  # type: ignore[attr-defined]
            found.append((b, a, torch.linalg.inv(torch.kron(b, a))))
    return found


def test_spread_condition_and_cosine_are_those_of_the_dense_matrices() -> None:
    optimizer = stepped(damping=1e-2)
    dense = blocks(optimizer)
    whole = torch.block_diag(*(p for _, _, p in dense))
    n, mean = len(whole), whole.trace() / len(whole)
    exact = (whole - mean * torch.eye(n)).norm() / (mean * n**0.5)
    within = sum(float((p - p.trace() / len(p) * torch.eye(len(p))).norm() ** 2) for _, _, p in dense)
    within /= sum(float(p.trace() ** 2 / len(p)) for _, _, p in dense)
    found = anisotropy(optimizer, probes=PROBES, generator=seeded())
    assert found is not None
    square = whole @ whole
    of_trace = (2 * (square.trace() - whole.diagonal().square().sum()) / PROBES) ** 0.5 / whole.trace()
    of_norm = (2 * (square.square().sum() - square.diagonal().square().sum()) / PROBES) ** 0.5 / square.trace()
    tolerance = float(4.5 * (of_norm + 2 * of_trace))  # relative, of 1 + spread²
    assert tolerance < 0.5
    assert 1 + found.spread**2 == pytest.approx(float(1 + exact**2), rel=tolerance)
    assert 1 + found.layer_spread**2 == pytest.approx(1 + within, rel=2 * tolerance)  # a part of the numbers of the former
    conditions = sorted(float(torch.linalg.cond(m)) for b, a, _ in dense for m in (b, a))
    assert found.condition == pytest.approx(conditions[-1], rel=1e-6)
    assert conditions[0] < found.median_condition < found.condition
    layers = [m for m in optimizer.model.modules() if isinstance(m, nn.Linear)]
    grads = {len(p): p for _, _, p in dense}
    product = natural = plain = 0.0
    for layer in layers:
        g = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1).flatten()  # type: ignore[index, list-item]
        v = grads[len(g)] @ g
        product, natural, plain = product + float(v @ g), natural + float(v @ v), plain + float(g @ g)
    assert found.cosine == pytest.approx(product / (natural * plain) ** 0.5, rel=1e-6)


def test_with_huge_damping_nothing_but_a_learning_rate_is_left() -> None:
    found = anisotropy(stepped(damping=1e8), generator=seeded())
    assert found is not None
    assert found.condition == pytest.approx(1, abs=1e-3)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.spread < 1e-3
    assert found.layer_spread < 1e-3


def test_noise_alone_makes_no_spread() -> None:
    """A noisy multiple of the identity: answers err by ε, their products by √2·ε + ε² over √(numbers drawn)."""
    noise, probes = 1.0, 800
    loud = MachineSpec(name="loud", tau=1e-6, noise_volts_rms=noise)
    optimizer = stepped(damping=1e8, solver=ThermodynamicSolve(Machine(loud, tolerance=0.0)))
    stack = optimizer.stacks[0]
    z = torch.ones_like(stack.empty())
    answers = [optimizer.solver.solve(stack.state, z, generator=seeded(i)).value for i in range(40)]
    error = float(torch.stack(answers).var(0).mean() ** 0.5 / torch.stack(answers).mean())
    found = anisotropy(optimizer, probes=probes, generator=seeded())
    assert found is not None
    smallest = min(s.domain[0] * s.domain[1] for s in optimizer.stacks)
    tolerance = 4.5 * (2**0.5 * error + error**2 + 2 * error) * (probes * smallest) ** -0.5
    assert error > 0.5
    assert found.spread**2 < tolerance < 0.5 * error**2


def saved(optimizer: KFAC) -> bytes:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return file.getvalue()


@pytest.mark.parametrize("kind", [ThermodynamicInverse, ThermodynamicSolve])
def test_looking_changes_nothing(kind: type[ThermodynamicInverse | ThermodynamicSolve]) -> None:
    rough = MachineSpec(name="rough", tau=1e-6, matrix_bits=8, noise_volts_rms=1e-3)
    optimizer = stepped(1e-2, kind(Machine(rough)))
    before, work, report = saved(optimizer), optimizer.work, optimizer.report()
    assert anisotropy(optimizer, generator=seeded()) is not None
    assert saved(optimizer) == before
    assert (optimizer.work, optimizer.report()) == (work, report)


def test_before_the_first_step_there_is_nothing_to_see() -> None:
    assert anisotropy(KFAC(network(), policy=PLAIN)) is None


def test_without_gradients_there_is_no_cosine() -> None:
    optimizer = stepped(1e-2)
    optimizer.zero_grad()
    found = anisotropy(optimizer, generator=seeded())
    assert found is not None
    assert found.cosine is None


def test_no_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        anisotropy(KFAC(network(), policy=PLAIN), probes=0)


@pytest.mark.parametrize(
    ("solver", "policy"),
    [(Eigen(), PLAIN), (Eigen(), replace(PLAIN, corrected=True)), (None, replace(PLAIN, max_dim=2))],
)
def test_condition_numbers_of_other_curvatures_are_those_of_their_dense_matrices(solver: Solver | None, policy: Policy) -> None:
    """Exact damping and corrected eigenvalues have no sides; blocks are counted as the matrix they are part of."""
    optimizer = stepped(1e-2, solver, policy)
    found = anisotropy(optimizer, generator=seeded())
    assert found is not None
    expected = []
    for stack in optimizer.stacks:
        damped = optimizer.damping(stack.corrected or stack.mean, torch.full((stack.length,), 1e-2).double())
        parts = (damped.left, damped.right) if isinstance(damped, Kronecker) else (damped,)
        expected += [float(torch.linalg.cond(m)) for part in parts for m in part.dense()]
    assert found.condition == pytest.approx(max(expected), rel=1e-6)
