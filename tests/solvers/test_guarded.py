from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from heatbath.machines import Machine, Schedule, with_bits
from heatbath.machines.oracle import oracle
from heatbath.operators import Dense, tree
from heatbath.solvers import Cholesky, Guarded, Outcome, Solution, Solver, ThermodynamicSolve
from heatbath.work import Work, cholesky, inverse, matmul
from tests.laws import noise
from tests.zoo import MACHINES, TAU, spd

SOLVED, INDEFINITE, NONFINITE, REDAMPED, FELL_BACK = (
    o.code for o in (Outcome.SOLVED, Outcome.INDEFINITE, Outcome.NONFINITE, Outcome.REDAMPED, Outcome.FELL_BACK)
)


def shallow(*smallest: float, n: int = 4) -> Tensor:
    """Matrices with trace n and the given smallest eigenvalues."""
    basis = torch.linalg.qr(noise(len(smallest), n, n)).Q
    values = torch.stack([torch.tensor([low] + [(n - low) / (n - 1)] * (n - 1), dtype=torch.float64) for low in smallest])
    matrix = basis @ torch.diag_embed(values) @ basis.mT
    return 0.5 * (matrix + matrix.mT)


def test_damping_rises_until_the_matrix_is_definite():
    """δ_k = 0.03 · 4ᵏ · tr(M)/n: the members below need no rise, the first, the second; each is solved at its own."""
    matrix, rhs = shallow(0.1, -0.02, -0.1), noise(3, 2, 4)
    solver = Guarded(Cholesky())
    state, _ = solver.prepare(Dense(matrix))
    solution = solver.solve(state, rhs)
    assert solution.outcome.tolist() == [SOLVED, REDAMPED, REDAMPED]
    rises = torch.tensor([0.0, 0.03, 0.12], dtype=torch.float64)
    truth = torch.linalg.solve(matrix + rises[:, None, None] * torch.eye(4, dtype=torch.float64), rhs.mT).mT
    torch.testing.assert_close(solution.value, truth, rtol=1e-10, atol=1e-10)


def test_what_no_rise_repairs_goes_to_the_fallback():
    """δ ends at 0.03 · 4² = 0.48; an inner solver that refuses all is replaced by a digital one for the matrix as given."""
    matrix, rhs = shallow(0.1, 0.2), noise(2, 3, 4)
    solver = Guarded(Refuses(torch.tensor([False, True])))
    state, _ = solver.prepare(Dense(matrix))
    solution = solver.solve(state, rhs)
    assert solver.outcome(state).tolist() == solution.outcome.tolist() == [SOLVED, FELL_BACK]
    torch.testing.assert_close(solution.value, torch.linalg.solve(matrix, rhs.mT).mT, rtol=1e-12, atol=1e-12)


def test_what_even_the_fallback_cannot_solve_stays_unusable():
    matrix = shallow(0.1, -3.0)
    solver = Guarded(Cholesky())
    state, _ = solver.prepare(Dense(matrix))
    assert solver.solve(state, noise(2, 4)).outcome.tolist() == [SOLVED, INDEFINITE]


def test_without_retries_it_falls_back_at_once():
    state, work = Guarded(Refuses(torch.tensor([True])), retries=0).prepare(Dense(shallow(0.1)))
    assert state.outcome.tolist() == [FELL_BACK]
    assert work == Work.of(cholesky(4), 2) + Work.of(inverse(4), 2)


def test_a_repair_is_paid_for_by_the_members_that_needed_it():
    """One of four members is re-damped twice: half a preparation of the stack of four more."""
    once = Work.of(cholesky(4), 4) + Work.of(inverse(4), 4)
    _, work = Guarded(Cholesky()).prepare(Dense(shallow(0.1, 0.1, 0.1, -0.1)))
    assert work == once * 1.5


def test_a_matrix_that_rounding_made_indefinite_is_repaired():
    """κ = 1000 at 5 bits: the machine holds an indefinite matrix, is re-damped, and what it then solves is M + δI."""
    matrix = spd(n=6, condition=1000.0)
    spec = with_bits(MACHINES["ideal"], matrix=5)
    bare = ThermodynamicSolve(Machine(spec), Schedule(2000 * TAU, 100 * TAU))
    held = bare.prepare(Dense(matrix))[0]
    assert not bool(oracle(held.programmed).definite)
    assert bare.outcome(held) == SOLVED  # nothing on its wires says so
    solver = Guarded(bare)
    state, work = solver.prepare(Dense(matrix))
    assert state.outcome == REDAMPED
    assert work.programmings >= 2
    solution = solver.solve(state, noise(3, 6))
    assert solution.outcome == REDAMPED
    assert torch.isfinite(solution.value).all()
    held = (
        oracle(state.inner.programmed).conductance
        * state.inner.programmed.scale
        / (state.inner.root[:, None] * state.inner.root[None])
    )
    torch.testing.assert_close(solution.value, torch.linalg.solve(held, noise(3, 6).mT).mT, rtol=1e-8, atol=1e-8)


def test_a_result_that_is_not_finite_falls_back():
    solver = Guarded(Spoils(torch.tensor([False, True]), torch.nan))
    matrix, rhs = shallow(0.1, 0.2), noise(2, 3, 4)
    state, _ = solver.prepare(Dense(matrix))
    assert state.outcome.tolist() == [SOLVED, SOLVED]
    solution = solver.solve(state, rhs)
    assert solution.outcome.tolist() == [SOLVED, FELL_BACK]
    torch.testing.assert_close(solution.value, torch.linalg.solve(matrix, rhs.mT).mT, rtol=1e-12, atol=1e-12)
    # half a fallback: one member of two, prepared and solved digitally
    prepared = Work.of(cholesky(4)) + Work.of(inverse(4))
    assert solution.work == Work.of(matmul(3, 4, 4), 2) + prepared + Work.of(matmul(3, 4, 4))


@pytest.mark.parametrize("tolerance,outcome", [(0.5, FELL_BACK), (2.0, SOLVED), (None, SOLVED)])
def test_an_inaccurate_result_falls_back(tolerance, outcome):
    """An answer of twice the solution has a relative residual of exactly 1."""
    solver = Guarded(Spoils(torch.tensor([False, True]), 2.0), residual_tolerance=tolerance)
    matrix, rhs = shallow(0.1, 0.2), noise(2, 3, 4)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    assert solution.outcome.tolist() == [SOLVED, outcome]
    if tolerance is None:
        assert solution.residual is None
    else:
        torch.testing.assert_close(solution.residual, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-12, rtol=1e-12)


def test_a_good_stack_is_what_the_inner_solver_says_bit_by_bit():
    matrix, rhs = spd(3, n=4), noise(3, 2, 4)
    inner = Cholesky()
    state, work = Guarded(inner).prepare(Dense(matrix))
    plain, plain_work = inner.prepare(Dense(matrix))
    solution = Guarded(inner).solve(state, rhs)
    assert torch.equal(solution.value, inner.solve(plain, rhs).value)
    assert work == plain_work
    assert solution.work == inner.solve(plain, rhs).work
    assert state.fallback is None


def test_an_end_state_that_is_not_finite_is_not_kept():
    """A warm-started machine goes on from its last good end state."""
    solver = Guarded(Spoils(torch.tensor([False, True]), torch.nan, remembers=True))
    state, _ = solver.prepare(Dense(shallow(0.1, 0.2)))
    kept = solver.solve(state, noise(2, 3, 4)).state
    assert kept.inner.memory.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("options", [{"retries": -1}, {"initial": 0.0}, {"growth": -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="Guarded needs retries >= 0 and positive initial and growth, got"):
        Guarded(Cholesky(), **options)


# --- solvers that fail on command --------------------------------------------------------------------------------------


@tree
@dataclass(frozen=True, eq=False)
class Remembered:
    """A digital state and one number per member that a solve changes."""

    inner: object
    memory: Tensor


@dataclass(frozen=True)
class Refuses(Solver):
    """Cholesky that calls some members indefinite, whatever they are."""

    which: Tensor
    inner: Cholesky = field(default_factory=Cholesky)

    def prepare(self, operator, *, previous=None, generator=None):
        state, work = self.inner.prepare(operator)
        return replace(state, outcome=torch.where(self.which, INDEFINITE, state.outcome).to(torch.int8)), work

    def solve(self, state, rhs, *, guess=None, generator=None):
        return self.inner.solve(state, rhs)

    def outcome(self, state):
        return state.outcome


@dataclass(frozen=True)
class Spoils(Solver):
    """Cholesky whose answers for some members are multiplied by `factor`."""

    which: Tensor
    factor: float
    remembers: bool = False
    inner: Cholesky = field(default_factory=Cholesky)

    def prepare(self, operator, *, previous=None, generator=None):
        state, work = self.inner.prepare(operator)
        return Remembered(state, torch.zeros(len(self.which))), work

    def solve(self, state, rhs, *, guess=None, generator=None):
        solution = self.inner.solve(state.inner, rhs)
        factors = torch.where(self.which, self.factor, 1.0).to(rhs.dtype)
        successor = Remembered(state.inner, state.memory + 1) if self.remembers else None
        value = solution.value * factors.reshape(-1, *(1,) * (rhs.ndim - 1))
        return Solution(value, solution.work, solution.outcome, state=successor)

    def outcome(self, state):
        return state.inner.outcome
