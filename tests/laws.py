"""What every solver, optimizer and layer must satisfy, as functions of a row of `tests/zoo.py`.

Judges are dense float64 solves, per-example autograd, or another run of the same problem that must agree (metamorphic laws).
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.operators import Dense, Diagonal, Kronecker, Operator, Shifted, from_plain, map_tensors, select, to_plain
from heatbath.optim import KFAC, Policy
from heatbath.solvers import Outcome, ThermodynamicSolve, usable
from tests.zoo import OPERATORS, PLAIN, LayerRow, OptimizerRow, SolverRow, spd


def fresh(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=fresh(seed), dtype=dtype)


# --- solvers ---------------------------------------------------------------------------------------------------------


def _problem(row: SolverRow, *stack: int, batch: tuple[int, ...] = (3,)) -> tuple[Operator, Tensor]:
    operator = OPERATORS[row.operator](*stack)
    return operator, noise(*stack, *batch, *operator.domain, seed=3)


def _truth(operator: Operator, rhs: Tensor) -> Tensor:
    """Dense solutions in float64 through `eigh`."""
    values, vectors = torch.linalg.eigh(operator.dense().double())
    flat = rhs.double().reshape(*operator.stack, -1, operator.size)
    return ((flat @ vectors / values.unsqueeze(-2)) @ vectors.mT).reshape(rhs.shape)


def _relative_error(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


def solver_solves(row: SolverRow, stack: tuple[int, ...], batch: tuple[int, ...]) -> None:
    """The solution is that of a dense float64 solve, within the declared tolerance, and says so."""
    operator, rhs = _problem(row, *stack, batch=batch)
    state, work = row.solver.prepare(operator, generator=fresh(1))
    solution = row.solver.solve(state, rhs, generator=fresh(2))
    assert solution.value.shape == rhs.shape
    assert solution.outcome.shape == stack
    assert solution.outcome.dtype == torch.int8
    assert (solution.outcome == Outcome.SOLVED.code).all()
    assert torch.equal(row.solver.outcome(state), solution.outcome)
    assert _relative_error(solution.value, _truth(operator, rhs)) <= row.tolerance
    assert work.kernels or work.jobs or row.operator == "diagonal"
    assert solution.work.kernels or solution.work.jobs


def solver_in_float32(row: SolverRow) -> None:
    """float32 in, float32 out, and rounding is no worse than κ times the machine epsilon, with a margin of ten."""
    operator, rhs = _problem(row, 2)
    operator = map_tensors(Tensor.float, operator)
    state, _ = row.solver.prepare(operator, generator=fresh(1))
    solution = row.solver.solve(state, rhs.float(), generator=fresh(2))
    assert solution.value.dtype == torch.float32
    condition = torch.linalg.cond(operator.dense()).max().item()
    allowed = row.tolerance + 10 * condition * torch.finfo(torch.float32).eps
    assert _relative_error(solution.value.double(), _truth(operator, rhs)) <= allowed


def solver_treats_a_stack_member_by_member(row: SolverRow) -> None:
    """Members of a stack do not see one another: the stack is a loop."""
    operator, rhs = _problem(row, 3)
    state, work = row.solver.prepare(operator, generator=fresh(1))
    together = row.solver.solve(state, rhs, generator=fresh(2))
    alone_work, alone_solve_work = [], []
    for i in range(3):
        member = map_tensors(lambda t: t[i : i + 1], operator)  # noqa: B023  # used at once
        alone, cost = row.solver.prepare(member, generator=fresh(1))
        solution = row.solver.solve(alone, rhs[i : i + 1], generator=fresh(2))
        alone_work.append(cost)
        alone_solve_work.append(solution.work)
        if not row.noisy:
            assert _relative_error(together.value[i], solution.value[0]) <= 1e-10
    assert work.flops == sum(w.flops for w in alone_work)
    assert work.programmings == sum(w.programmings for w in alone_work)
    assert together.work.analog_seconds == sum(w.analog_seconds for w in alone_solve_work)


def solver_is_linear(row: SolverRow) -> None:
    """A⁻¹(αb + βc) = αA⁻¹b + βA⁻¹c, for solvers without converters."""
    operator, rhs = _problem(row, 2, batch=(2,))
    state, _ = row.solver.prepare(operator, generator=fresh(1))
    b, c = rhs[:, :1], rhs[:, 1:]
    solve = lambda r: row.solver.solve(state, r, generator=fresh(2)).value  # noqa: E731
    assert _relative_error(solve(2.5 * b - 0.5 * c), 2.5 * solve(b) - 0.5 * solve(c)) <= 1e-11


def solver_repeats_with_its_generator(row: SolverRow) -> None:
    """Equal generators give equal bits; another one gives other bits where the solver draws any."""
    operator, rhs = _problem(row, 2)

    def run(seed: int) -> Tensor:
        generator = fresh(seed)
        state, _ = row.solver.prepare(operator, generator=generator)
        return row.solver.solve(state, rhs, generator=generator).value

    assert torch.equal(run(1), run(1))
    if not row.noisy:
        assert torch.equal(run(1), run(2))


def solver_leaves_its_inputs_alone(row: SolverRow) -> None:
    """Neither operator nor right-hand side nor state is written to."""
    operator, rhs = _problem(row, 2)
    copies = map_tensors(torch.clone, operator), rhs.clone()
    state, _ = row.solver.prepare(operator, generator=fresh(1))
    kept = map_tensors(torch.clone, state)
    row.solver.solve(state, rhs, generator=fresh(2))
    _assert_equal_trees((operator, rhs), copies)
    _assert_equal_trees(state, kept)


def solver_state_survives_a_checkpoint(row: SolverRow) -> None:
    """A state that was saved and read back with weights_only gives the same bits."""
    operator, rhs = _problem(row, 2)
    state, _ = row.solver.prepare(operator, generator=fresh(1))
    state = row.solver.solve(state, rhs, generator=fresh(2)).state or state
    restored = from_plain(saved_and_loaded(to_plain(state)))
    before, after = (row.solver.solve(s, rhs, generator=fresh(4)) for s in (state, restored))
    assert torch.equal(before.value, after.value)
    assert before.work == after.work


def solver_state_can_be_mixed_member_by_member(row: SolverRow) -> None:
    """`select` between two states takes whole members: each then answers as the state it came from."""
    operator, rhs = _problem(row, 2)
    other = map_tensors(lambda t: 2 * t, operator)
    first, second = (row.solver.prepare(op, generator=fresh(1))[0] for op in (operator, other))
    mixed = select(torch.tensor([True, False]), first, second)
    answers = [row.solver.solve(s, rhs, generator=fresh(2)).value for s in (mixed, first, second)]
    if not row.noisy:
        torch.testing.assert_close(answers[0], torch.stack((answers[1][0], answers[2][1])), rtol=1e-12, atol=1e-12)
    assert usable(row.solver.outcome(mixed)).all()


def solver_takes_a_previous_state_as_a_start_only(row: SolverRow) -> None:
    """Preparing from another operator's state solves this operator."""
    operator, rhs = _problem(row, 2)
    other = map_tensors(lambda t: 3 * t, operator)
    previous, _ = row.solver.prepare(other, generator=fresh(1))
    previous = row.solver.solve(previous, rhs, generator=fresh(2)).state or previous
    state, _ = row.solver.prepare(operator, previous=previous, generator=fresh(1))
    solution = row.solver.solve(state, rhs, generator=fresh(2))
    assert _relative_error(solution.value, _truth(operator, rhs)) <= row.tolerance


def solver_counts_work_from_shapes_only(row: SolverRow) -> None:
    """Other numbers of the same shape ask the same of hardware."""
    operator, rhs = _problem(row, 2)
    other = map_tensors(lambda t: 3 * t, operator)
    first, second = (row.solver.prepare(op, generator=fresh(1)) for op in (operator, other))
    assert first[1] == second[1]
    works = [row.solver.solve(s[0], r, generator=fresh(2)).work for s, r in ((first, rhs), (second, 2 * rhs))]
    assert works[0] == works[1]


def _spoilt(row: SolverRow, spoil: Callable[[Tensor], Tensor]) -> tuple[Operator, Tensor]:
    """A stack of three whose middle member has one bad side."""
    operator, rhs = _problem(row, 3)

    def bad(side: Operator) -> Operator:
        if isinstance(side, Dense):
            matrix = side.matrix.clone()
            matrix[1] = spoil(matrix[1])
            return Dense(matrix)
        assert isinstance(side, Diagonal)
        diagonal = side.diagonal.clone()
        diagonal[1] = spoil(diagonal[1])
        return Diagonal(diagonal)

    if isinstance(operator, Shifted):
        inner = operator.operator
        assert isinstance(inner, Kronecker)
        return Shifted(Kronecker(inner.left, bad(inner.right)), 0 * operator.amount), rhs
    if isinstance(operator, Kronecker):
        return Kronecker(operator.left, bad(operator.right)), rhs
    return bad(operator), rhs


def solver_reports_an_indefinite_member(row: SolverRow) -> None:
    """A matrix that is not positive definite is an outcome, not an exception; the other members are solved."""
    operator, rhs = _spoilt(row, lambda t: -t)
    state, _ = row.solver.prepare(operator, generator=fresh(1))
    solution = row.solver.solve(state, rhs, generator=fresh(2))
    good = torch.tensor([True, False, True])
    _others_are_solved(row, operator, rhs, solution.value)
    if row.watched:
        assert usable(solution.outcome)[good].all()
        assert (solution.outcome[good] == Outcome.SOLVED.code).all()
        assert solution.outcome[1] != Outcome.SOLVED.code
    else:
        assert torch.equal(usable(row.solver.outcome(state)), good)
        assert torch.equal(usable(solution.outcome), good)
        assert solution.outcome[1] == Outcome.INDEFINITE.code


def solver_reports_a_member_that_is_not_finite(row: SolverRow) -> None:
    """A NaN in one matrix spoils that member only, and is said."""
    operator, rhs = _spoilt(row, lambda t: t * torch.nan)
    state, _ = row.solver.prepare(operator, generator=fresh(1))
    solution = row.solver.solve(state, rhs, generator=fresh(2))
    assert not usable(solution.outcome)[1]
    assert usable(solution.outcome)[[0, 2]].all()
    _others_are_solved(row, operator, rhs, solution.value)


def _others_are_solved(row: SolverRow, operator: Operator, rhs: Tensor, value: Tensor) -> None:
    others = map_tensors(lambda t: t[[0, 2]], operator)
    assert _relative_error(value[[0, 2]], _truth(others, rhs[[0, 2]])) <= row.tolerance


def machine_solves(spec: MachineSpec) -> None:
    """A small, well-conditioned system is solved to the bits the machine states, with its time in the work."""
    n, schedule = 3, Schedule(burn_in=200 * spec.time_constant, duration=200 * spec.time_constant)
    operator = Dense(spd(2, n=n, condition=2.0))
    rhs = noise(2, 40, n, seed=3)
    solver = ThermodynamicSolve(Machine(spec), schedule)
    state, work = solver.prepare(operator, generator=fresh(1))
    solution = solver.solve(state, rhs, generator=fresh(2))
    assert (solution.outcome == Outcome.SOLVED.code).all()
    step = max((2.0 ** (1 - bits) for bits in (spec.matrix_bits, spec.drive_bits, spec.read_bits) if bits), default=0.0)
    thermal = (2 * spec.noise / 200 * n) ** 0.5  # law (e): rel² = (2/βT) tr Â⁻²/‖Â⁻¹b̂‖², all modes near 1
    assert _relative_error(solution.value, _truth(operator, rhs)) <= 1e-9 + 4 * n * step + 5 * thermal
    assert work.programmings == 2
    assert solution.work.analog_seconds == pytest.approx(2 * 40 * schedule.seconds)


# --- optimizers ------------------------------------------------------------------------------------------------------


def network(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two linear layers of different shapes, a bare scale for the fallback, tanh between."""
    generator = fresh(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Scale(5), nn.Linear(5, 3)).to(dtype)
    for parameter in model.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


class Scale(nn.Module):
    """A layer without a rule: a bare parameter."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def batches(count: int, examples: int = 8, *, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Inputs `[B, 4]` and classes `[B]`."""
    return [
        (noise(examples, 4, seed=10 + i, dtype=dtype), torch.randint(3, (examples,), generator=fresh(50 + i)))
        for i in range(count)
    ]


def train(model: nn.Module, optimizer: KFAC, data: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """An ordinary loop."""
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parameters_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def saved_and_loaded(plain: Any) -> Any:
    """Through a file, weights only."""
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _assert_equal_trees(a: Any, b: Any) -> None:
    pairs: list[bool] = []
    map_tensors(lambda x, y: pairs.append(torch.equal(x.nan_to_num(), y.nan_to_num())) or x, a, b)
    assert all(pairs)


def optimizer_repeats(row: OptimizerRow) -> None:
    """Equal starts and equal generators give equal bits."""
    runs = []
    for _ in range(2):
        model = network()
        train(model, row.make(model, lr=0.1), batches(4))
        runs.append(parameters_of(model))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def optimizer_resumes_in_mid_interval(row: OptimizerRow, split: int) -> None:
    """Saved after `split` steps, loaded into a new optimizer: every later parameter is bit-equal, counters too."""
    policy = Policy(factor_every=2, refresh_every=3, patience=0)
    data = batches(split + 6)
    model = network()
    optimizer = row.make(model, lr=0.1, policy=policy)
    train(model, optimizer, data[:split])
    weights, state = saved_and_loaded(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    train(model, optimizer, data[split:])
    other = network(seed=1)
    resumed = row.make(other, lr=0.7, policy=policy)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(other, resumed, data[split:])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert resumed.report() == optimizer.report()
    assert resumed.work == optimizer.work
    assert resumed.steps == split + 6


def optimizer_takes_micro_batches(row: OptimizerRow, parts: int) -> None:
    """k micro-batches whose losses are divided by k are one batch, over several steps."""
    whole, split = network(), network()
    one, many = row.make(whole, lr=0.1, policy=PLAIN), row.make(split, lr=0.1, policy=PLAIN)
    for x, y in batches(3):
        train(whole, one, [(x, y)])
        many.zero_grad()
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(split(x_part), y_part) / parts).backward()
        many.step()
    _assert_close_models(whole, split)


def optimizer_ignores_duplicates(row: OptimizerRow) -> None:
    """Every example three times over is the same problem: damping means the same at every batch size."""
    once, thrice = network(), network()
    train(once, row.make(once, lr=0.1), batches(4))
    train(thrice, row.make(thrice, lr=0.1), [(x.repeat(3, 1), y.repeat(3)) for x, y in batches(4)])
    _assert_close_models(once, thrice)


def optimizer_commutes_with_permutations(row: OptimizerRow) -> None:
    """Renaming hidden units before training is renaming them after it."""
    order = torch.randperm(5, generator=fresh(9))
    plain, renamed = network(), network()
    _permute(renamed, order)
    for model in (plain, renamed):
        train(model, row.make(model, lr=0.1), batches(4))
    _permute(plain, order)
    _assert_close_models(plain, renamed)


def _permute(model: nn.Sequential, order: Tensor) -> None:
    first, _, scale, last = model
    with torch.no_grad():
        for parameter in (first.weight, first.bias, scale.scale):
            parameter.copy_(parameter[order].clone())
        last.weight.copy_(last.weight[:, order].clone())


def _assert_close_models(a: nn.Module, b: nn.Module, tolerance: float = 1e-8) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def optimizer_skips_a_step_that_is_not_finite(row: OptimizerRow, bad: float) -> None:
    """Nothing moves, nothing is poisoned, it is counted, and training goes on."""
    model = network()
    optimizer = row.make(model, lr=0.1, weight_decay=0.1)
    data = batches(6)
    train(model, optimizer, data[:3])
    before, velocity = parameters_of(model), [s.momentum.clone() for s in optimizer.stacks if s.momentum is not None]
    x, y = data[3]
    optimizer.zero_grad()
    (F.cross_entropy(model(x), y) * bad).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, s.momentum) for a, s in zip(velocity, optimizer.stacks, strict=True))
    assert optimizer.report()["skipped_steps"] == 1
    losses = train(model, optimizer, data[4:])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(loss == loss for loss in losses)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for stack in optimizer.stacks:
        assert all(torch.isfinite(t).all() for t in _tensors(stack.mean))
        assert stack.momentum is not None
        assert torch.isfinite(stack.momentum).all()


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) or t, value)
    return found


def optimizer_learns(row: OptimizerRow) -> None:
    """Forty full-batch steps on sixteen points with the defaults; the loss never rises above its start."""
    ((x, y),) = batches(1, examples=16)
    model = network()
    losses = train(model, row.make(model), [(x, y)] * 40)
    assert losses[-1] < 0.7 * losses[0]
    assert max(losses) <= losses[0] + 1e-12


# --- layers ----------------------------------------------------------------------------------------------------------


def example_losses(model: nn.Module, x: Tensor) -> Tensor:
    """One number per example `[B]`: any smooth function of its outputs."""
    outputs = model(x).flatten(1)
    return (outputs * noise(outputs.shape[1], seed=4)).sin().sum(1)


def layer_step(model: nn.Module, x: Tensor, parts: int = 1, **options: Any) -> list[Tensor]:
    """The update of every parameter by one step of plain K-FAC."""
    optimizer = KFAC(model, **{"lr": 1.0, "damping": 0.1, "momentum": 0.0, "policy": PLAIN, **options})
    before = parameters_of(model)
    for part in x.chunk(parts):
        (example_losses(model, part).mean() / parts).backward()
    optimizer.step()
    optimizer.capture.detach()
    return [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]


def assert_close_updates(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    for got, want in zip(a, b, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def layer_is_wholly_trained(row: LayerRow) -> None:
    """Every parameter is under curvature, and one step moves all of them by what is finite."""
    model = row.model()
    assert KFAC(model).coverage().count("adamw") == 0
    updates = layer_step(model, row.batch(6))
    assert all(torch.isfinite(u).all() and u.abs().max() > 0 for u in updates)


def layer_ignores_duplicates(row: LayerRow) -> None:
    """Every example three times over changes nothing."""
    x = row.batch(4)
    once, thrice = (layer_step(row.model(), batch) for batch in (x, torch.cat((x, x, x))))
    assert_close_updates(once, thrice)


def layer_takes_micro_batches(row: LayerRow) -> None:
    """Two micro-batches are one batch."""
    x = row.batch(6)
    assert_close_updates(layer_step(row.model(), x), layer_step(row.model(), x, parts=2))


def layer_capture_leaves_gradients_alone(row: LayerRow) -> None:
    """`.grad` and buffers are bit-equal with and without capture, and nobody else's hooks are needed."""
    x = row.batch(5)
    plain, watched = row.model(), row.model()
    optimizer = KFAC(watched)
    for model in (plain, watched):
        example_losses(model, x).mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), watched.buffers(), strict=True))
    assert all(c.rows > 0 for stack in optimizer.stacks for c in stack.sums.counts)


def layer_survives_a_copy(row: LayerRow) -> None:
    """A deep copy of the model, without its hooks, computes the same."""
    model = row.model()
    KFAC(model)
    x = row.batch(2)
    assert torch.equal(model(x), copy.deepcopy(model)(x))
