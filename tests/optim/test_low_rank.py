"""K-FAC with large factors as sketches of low rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import ExactFisher, Gaussian, InputOnly
from heatbath.operators import BlockDiagonal, Dense, Kronecker, Sketched, random_basis
from heatbath.optim import KFAC, Policy, anisotropy, preconditioned
from heatbath.optim.damping import FactoredDamping, InputDamping
from heatbath.solvers import (
    Cholesky,
    Factorwise,
    Guarded,
    NewtonSchulz,
    ThermodynamicInverse,
    ThermodynamicSolve,
    UnitVectors,
)
from tests.curvature.truth import fill
from tests.laws import batches, fresh, network, noise, saved_and_loaded, train
from tests.zoo import IDEAL, LONG, PLAIN, spd

WIDE = replace(PLAIN, max_dim=20, rank=12)  # of a layer 40 → 30: both sides are sketches


def steps_of(policy: Policy, *, rows: int = 10, steps: int = 1, parts: int = 1, solver=None, **options) -> nn.Linear:
    """A layer 40 → 30 after some steps on `rows` rows each, in so many micro-batches."""
    model = fill(nn.Linear(40, 30))
    optimizer = KFAC(model, lr=0.5, damping=0.05, policy=policy, solver=solver, generator=fresh(4), **options)
    for step in range(steps):
        optimizer.zero_grad()
        for part in noise(rows, 40, seed=step).chunk(parts):
            (model(part).sin().sum(1).mean() / parts).backward()
        optimizer.step()
    return model


def assert_alike(a: nn.Linear, b: nn.Linear, tolerance: float) -> None:
    torch.testing.assert_close(a.weight, b.weight, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.bias, b.bias, rtol=tolerance, atol=tolerance)


def test_a_step_on_fewer_rows_than_the_rank_is_that_of_the_whole_factors():
    assert_alike(steps_of(WIDE), steps_of(replace(WIDE, max_dim=None)), 1e-8)


def test_averages_of_as_many_rows_as_the_rank_are_whole_too():
    assert_alike(steps_of(WIDE, rows=4, steps=3), steps_of(replace(WIDE, max_dim=None), rows=4, steps=3), 1e-8)


def test_more_rows_than_the_rank_are_not_and_a_larger_rank_is_nearer():
    whole = steps_of(replace(WIDE, max_dim=None), rows=100)
    far, near = ((steps_of(replace(WIDE, rank=r), rows=100).weight - whole.weight).norm() for r in (2, 14))
    assert 1e-6 < near < far


def test_the_sketch_is_of_the_factors_in_full():
    """Averages over three steps of micro-batches: Y = AΩ and tr A, by linearity, of A as the whole form has it."""
    found = []
    for policy in (WIDE, replace(WIDE, max_dim=None)):
        model = fill(nn.Linear(40, 30))
        optimizer = KFAC(model, lr=0.0, damping=0.1, policy=policy)
        for step in range(3):
            for part in noise(20, 40, seed=step).chunk(2):
                (model(part).sin().sum(1).mean() / 2).backward()
            optimizer.step()
        found.append(optimizer.stacks[0].mean)
    for sketched, whole in ((found[0].left, found[1].left), (found[0].right, found[1].right)):
        assert isinstance(sketched, Sketched)
        omega = random_basis(whole.size, 12, torch.float64, torch.device("cpu"))
        torch.testing.assert_close(sketched.sketch, whole.matrix @ omega, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(sketched.mass, whole.trace(), rtol=1e-10, atol=0)


def test_micro_batches_are_one_batch():
    assert_alike(steps_of(WIDE, rows=20, parts=4), steps_of(WIDE, rows=20), 1e-9)


DIGITAL = [Cholesky(), NewtonSchulz(), Guarded(Cholesky())]
IDEALS = [ThermodynamicInverse(IDEAL, UnitVectors(LONG)), ThermodynamicSolve(IDEAL, LONG)]


@pytest.mark.parametrize("solver", [*DIGITAL, *map(Guarded, IDEALS)], ids=lambda s: type(getattr(s, "inner", s)).__name__)
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_every_solver_solves_with_the_dense_matrices(solver, side):
    sketch = {key: _sketched(2, n, seed) for key, n, seed in (("left", 30, 1), ("right", 41, 2))}
    dense = {"left": Dense(spd(2, n=30)), "right": Dense(spd(2, n=41))}
    parts = {key: sketch[key] if side in (key, "both") else dense[key] for key in dense}
    operator = FactoredDamping()(Kronecker(parts["left"], parts["right"]), torch.full((2,), 0.1, dtype=torch.float64))
    solver = Factorwise(solver)
    state, work = solver.prepare(operator, generator=fresh())
    assert (solver.outcome(state) == 0).all()
    assert work.flops > 0
    for batch in ((), (3,)):
        rhs = noise(2, *batch, 30, 41)
        solution = solver.solve(state, rhs, generator=fresh())
        flat = rhs.reshape(2, -1, 30, 41)
        left, right = operator.left.dense().unsqueeze(1), operator.right.dense().unsqueeze(1)
        truth = torch.linalg.solve(left, flat) @ torch.linalg.inv(right)
        torch.testing.assert_close(solution.value, truth.reshape(rhs.shape), rtol=1e-6, atol=1e-6)
        assert solution.work.flops > 0


def _sketched(stack: int, n: int, seed: int) -> Sketched:
    matrix = spd(stack, n=n, seed=seed)
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return Sketched(matrix @ random_basis(n, 12, torch.float64, torch.device("cpu")), trace, torch.zeros_like(trace))


def test_a_machine_needs_as_many_cells_as_the_rank():
    """A machine of 12 cells serves a layer of 30 × 41, and steps as Cholesky does."""
    machine = type(IDEAL)(replace(IDEAL.spec, cells=12))
    solver = ThermodynamicInverse(machine, UnitVectors(LONG))
    assert_alike(steps_of(WIDE, rows=50, steps=3, solver=solver), steps_of(WIDE, rows=50, steps=3), 1e-6)


def test_errors_of_a_machine_are_not_magnified():
    """S⁻¹ wrong by 1 % moves the inverse of the whole by at most 1 % along every direction, however small the damping.

    By Woodbury, (I − B(BᵀB + λI)⁻¹Bᵀ)/λ for BBᵀ + λI, 1 % of the same kind moves it by 1 % of ‖B‖²/λ.
    """
    operator = _sketched(1, 41, 2).shift(1e-6)
    state, _ = Factorwise(Cholesky()).prepare(Kronecker(Dense(torch.ones(1, 1, 1).double()), operator))
    exact = state.right.inverse(state.right.inner).operator
    wrong = replace(exact, core=1.01 * exact.core)
    values = torch.linalg.eigvalsh(torch.linalg.solve(exact.dense(), wrong.dense()))
    assert values.min() > 0.99 and values.max() < 1.011

    root, damping = torch.randn(20, 3, generator=fresh(5), dtype=torch.float64), 1e-6
    identity, inner = torch.eye(20, dtype=torch.float64), torch.linalg.inv(root.mT @ root + damping * torch.eye(3))
    by_woodbury = (identity - root @ (1.01 * inner) @ root.mT) / damping
    values = torch.linalg.eigvals((root @ root.mT + damping * identity) @ by_woodbury).real
    least = 1 - 0.01 * float(torch.linalg.matrix_norm(root, 2)) ** 2 / damping
    assert float(values.min()) == pytest.approx(least, rel=1e-3)


RUNS = {
    "plain": (None, {}),
    "staggered": (None, {"stagger": True}),
    "machine": (ThermodynamicSolve(IDEAL, LONG), {}),
}


@pytest.mark.parametrize("solver,options", RUNS.values(), ids=RUNS.keys())
def test_a_run_resumes_bit_equal_in_mid_interval(solver, options):
    policy = Policy(factor_every=2, refresh_every=3, patience=0, max_dim=2, rank=1, **options)
    data, model = batches(9), network()

    def make(of: nn.Module) -> KFAC:
        return KFAC(of, policy=policy, solver=solver, generator=fresh(1))

    optimizer = make(model)
    train(model, optimizer, data[:4])
    weights, state = saved_and_loaded(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    train(model, optimizer, data[4:])
    other = network(seed=1)
    resumed = make(other)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(other, resumed, data[4:])
    assert any(isinstance(stack.mean.right, Sketched) for stack in optimizer.stacks)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_batch_that_is_not_finite_leaves_the_sketch_alone():
    model = fill(nn.Linear(40, 30))
    optimizer = KFAC(model, policy=WIDE)
    for step in range(3):
        optimizer.zero_grad()
        (model(noise(10, 40, seed=step)).sin().sum(1).mean() * (float("nan") if step == 1 else 1.0)).backward()
        optimizer.step()
    mean = optimizer.stacks[0].mean
    assert torch.isfinite(mean.left.sketch).all() and torch.isfinite(mean.right.sketch).all()
    assert torch.isfinite(model.weight).all()


def test_exact_and_input_only_fishers_and_other_layers_take_sketches():
    model = nn.Sequential(nn.Conv1d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(64, 30), nn.Linear(30, 3)).double()
    for fisher in (ExactFisher(Gaussian()), InputOnly()):
        optimizer = KFAC(model, policy=replace(PLAIN, max_dim=10, rank=4, fisher=fisher))
        optimizer.observe(model(noise(6, 8, 10))).sin().sum(1).mean().backward()
        optimizer.step()
        forms = [type(side) for stack in optimizer.stacks for side in (stack.mean.left, stack.mean.right)]
        assert Sketched in forms
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_grouped_convolution_has_a_sketch_for_each_group():
    """As whole factors, where each group sees fewer rows than the rank."""
    moved = []
    for limit in (None, 8):
        model = fill(nn.Conv1d(12, 4, 3, groups=2))
        optimizer = KFAC(model, damping=0.1, policy=replace(PLAIN, max_dim=limit, rank=8))
        model(noise(2, 12, 5)).sin().sum((1, 2)).mean().backward()
        optimizer.step()
        moved.append(model.weight.detach())
    assert isinstance(optimizer.stacks[0].mean.right, Sketched)
    torch.testing.assert_close(*moved, rtol=1e-8, atol=1e-10)


def test_a_vocabulary_takes_a_sketch_and_an_embedding_a_diagonal():
    """Gradients at 500 outputs in bf16: the sketch of the output side, and no 500 × 500 matrix."""
    model = nn.Sequential(nn.Embedding(500, 8), nn.Linear(8, 500, bias=False)).bfloat16()
    optimizer = KFAC(model, policy=replace(PLAIN, max_dim=64, rank=16))
    F.cross_entropy(model(torch.arange(20)), torch.arange(20)).backward()
    optimizer.step()
    head = next(stack for stack in optimizer.stacks if stack.names == ["1[0]"])
    assert isinstance(head.mean.left, Sketched)
    assert head.mean.left.sketch.dtype == torch.float32
    assert optimizer.coverage().state_bytes < 4 * 500 * 500
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_defaults_hold_up_to_2048_in_full():
    model = nn.ModuleList([nn.Linear(2047, 1), nn.Linear(2048, 1), nn.Linear(1, 2049, bias=False)])
    table = KFAC(model).coverage()
    cut = ["kfac 1×2049 (inputs: rank 256)", "kfac 2049×1 (outputs: rank 256)"]
    assert [row.treatment for row in table.rows] == ["kfac 1×2048", *cut]


def test_coverage_says_which_sides_are_cut():
    model = nn.Linear(40, 30)
    assert KFAC(model, policy=replace(PLAIN, max_dim=20, rank=12)).coverage().rows[0].treatment == (
        "kfac 30×41 (outputs: rank 12, inputs: rank 12)"
    )
    assert KFAC(model, policy=replace(PLAIN, max_dim=30, rank=None)).coverage().rows[0].treatment == (
        "kfac 30×41 (inputs: 2 blocks of 21)"
    )


def test_a_rank_of_half_the_size_or_more_leaves_blocks():
    optimizer = KFAC(nn.Linear(40, 30), policy=replace(PLAIN, max_dim=20, rank=20))
    F.mse_loss(optimizer.model(torch.randn(3, 40)), torch.zeros(3, 30)).backward()
    optimizer.step()
    mean = optimizer.stacks[0].mean
    assert isinstance(mean.left, BlockDiagonal) and isinstance(mean.right, Sketched)


def test_the_cost_of_a_refresh_counts_sketches():
    (stack,) = KFAC(nn.Linear(40, 30), policy=WIDE).stacks
    assert stack.cost == 6 * 30 * 12**2 + 12**3 + 6 * 41 * 12**2 + 12**3


def test_another_rank_counts_from_the_next_layout_on():
    """What was averaged in another form is dropped, the rest kept."""
    model = fill(nn.Linear(40, 30))
    optimizer = KFAC(model, policy=WIDE)
    for policy in (WIDE, replace(WIDE, rank=6), replace(WIDE, max_dim=20, rank=None), replace(WIDE, max_dim=None)):
        optimizer._policy = policy
        optimizer.refresh_layout()
        optimizer.zero_grad()
        model(noise(10, 40)).sin().sum(1).mean().backward()
        optimizer.step()
        assert optimizer.stacks[0].ages == [1]
    assert isinstance(optimizer.stacks[0].mean.right, Dense)


def test_in_front_of_another_optimizer():
    model = fill(nn.Linear(40, 30))
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    preconditioned(sgd, model, damping=0.05, policy=WIDE)
    model(noise(10, 40)).sin().sum(1).mean().backward()
    sgd.step()
    assert_alike(model, steps_of(WIDE, momentum=0.0), 1e-9)


def test_sides_of_one_are_folded_into_a_sketch():
    for damping in (FactoredDamping(), InputDamping()):
        operator = damping(Kronecker(Dense(spd(2, n=1)), _sketched(2, 41, 2)), torch.full((2,), 0.1, dtype=torch.float64))
        scale = spd(2, n=1)
        truth = scale * _sketched(2, 41, 2).dense() + 0.1 * torch.eye(41).double()
        torch.testing.assert_close(operator.right.dense(), truth)


def test_the_condition_of_a_sketch_is_that_of_its_dense_matrix():
    optimizer = KFAC(fill(nn.Linear(40, 1)), damping=0.1, policy=WIDE)
    optimizer.model(noise(50, 40)).sin().sum(1).mean().backward()
    optimizer.step()
    (stack,) = optimizer.stacks
    damped = optimizer.damping(stack.mean, torch.full((1,), 0.1, dtype=torch.float64))
    found = anisotropy(optimizer, generator=fresh())
    assert found.condition == pytest.approx(float(torch.linalg.cond(damped.right.dense()[0])), rel=1e-6)
