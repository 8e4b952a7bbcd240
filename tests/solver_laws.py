"""What every solver and machine must satisfy, as functions of a row of `tests/zoo.py`; judged by dense float64 solves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.operators import Dense, Diagonal, Gram, Kronecker, Operator, Shifted, from_plain, map_tensors, select, to_plain
from heatbath.solvers import Outcome, ThermodynamicSolve, usable
from tests.laws import assert_equal_trees, fresh, noise, saved_and_loaded
from tests.zoo import OPERATORS, SolverRow, spd


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
    assert_equal_trees((operator, rhs), copies)
    assert_equal_trees(state, kept)


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
    if isinstance(operator, Gram):
        amount = operator.amount.clone()
        amount[1] = spoil(10 * amount[1])  # beyond the eigenvalues of SᵀS
        return Gram(operator.root, amount), rhs
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
