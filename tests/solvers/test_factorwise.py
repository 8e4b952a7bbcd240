from __future__ import annotations

import pytest
import torch

from heatbath.operators import Dense, Diagonal, Kronecker, Shifted
from heatbath.solvers import Cholesky, Factorwise, Outcome, ThermodynamicInverse, ThermodynamicSolve, usable
from heatbath.solvers.factorwise import worse
from tests.laws import noise
from tests.zoo import IDEAL, LONG, spd


def solve(solver, operator, rhs):
    state, work = solver.prepare(operator)
    return solver.solve(state, rhs), work


def test_two_small_solves_are_the_large_one():
    b, a, g = spd(n=3), spd(n=4, seed=1), noise(3, 4)
    solution, _ = solve(Factorwise(Cholesky()), Kronecker(Dense(b), Dense(a)), g)
    truth = torch.linalg.solve(torch.kron(b, a), g.flatten()).reshape(3, 4)
    torch.testing.assert_close(solution.value, truth, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(solution.value, torch.linalg.inv(b) @ g @ torch.linalg.inv(a), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("inner", [ThermodynamicSolve(IDEAL, LONG), ThermodynamicInverse(IDEAL)], ids=["solve", "inverse"])
def test_sides_that_need_no_machine_get_none(inner):
    """1 × 1 and diagonal sides are divided by digitally."""
    rhs = noise(2, 1, 4)
    for right in (Diagonal(torch.full((2, 4), 2.0, dtype=torch.float64)),):
        solution, work = solve(Factorwise(inner), Kronecker(Dense(spd(2, n=1)), right), rhs)
        assert not work.jobs
        assert not solution.work.jobs
        torch.testing.assert_close(solution.value, rhs / 2, rtol=1e-14, atol=1e-14)
    _, work = solve(Factorwise(inner), Kronecker(Dense(spd(2, n=1)), Dense(spd(2, n=4))), rhs)
    assert work.programmings == 2
    assert {job.cells for job in work.jobs} == {4}


def test_each_side_is_driven_by_the_rows_of_the_other():
    """Method 2: a refresh programs A and B, a step drives A with O rows and B with I columns."""
    operator = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=4)))
    solution, work = solve(Factorwise(ThermodynamicSolve(IDEAL, LONG)), operator, noise(2, 3, 4))
    assert work.programmings == 4
    assert {(job.cells, job.drives): count for job, count in solution.work.jobs.items()} == {(4, 3): 2, (3, 4): 2}


def test_notes_say_which_side_they_are_of():
    solution, _ = solve(Factorwise(ThermodynamicSolve(IDEAL, LONG)), Kronecker(Dense(spd(n=3)), Dense(spd(n=4))), noise(3, 4))
    assert {"left.read_clipped", "right.drive_clipped"} <= solution.notes.keys()


def test_a_side_that_is_warm_hands_on_a_state():
    solver = Factorwise(ThermodynamicSolve(IDEAL, LONG, warm_start=True))
    state, _ = solver.prepare(Kronecker(Dense(spd(n=3)), Dense(spd(n=1))))
    solution = solver.solve(state, noise(3, 1))
    assert solution.state.left.carry.shape == (1, 3)
    assert solution.state.right is state.right
    assert solve(Factorwise(Cholesky()), Kronecker(Dense(spd(n=3)), Dense(spd(n=2))), noise(3, 2))[0].state is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_bad_side_spoils_the_member(side):
    good, bad = spd(2, n=3), spd(2, n=3)
    bad[1] *= -1
    sides = {"left": good, "right": good, side: bad}
    solution, _ = solve(Factorwise(Cholesky()), Kronecker(Dense(sides["left"]), Dense(sides["right"])), noise(2, 3, 3))
    assert solution.outcome.tolist() == [Outcome.SOLVED.code, Outcome.INDEFINITE.code]


@pytest.mark.parametrize("a", Outcome)
@pytest.mark.parametrize("b", Outcome)
def test_worse_is_unusable_before_repaired_before_solved(a, b):
    rank = lambda o: 0 if o is Outcome.SOLVED else 1 if o.usable else 2  # noqa: E731
    code = worse(torch.tensor([a.code], dtype=torch.int8), torch.tensor([b.code], dtype=torch.int8))
    assert code.dtype == torch.int8
    assert rank(list(Outcome)[int(code)]) == max(rank(a), rank(b))
    assert int(code) in (a.code, b.code)
    assert bool(usable(code)) == (a.usable and b.usable)


def test_what_is_no_product_is_refused():
    with pytest.raises(TypeError, match="Factorwise takes Kronecker operators, got Dense; use its inner solver"):
        Factorwise(Cholesky()).prepare(Dense(torch.eye(2)))


def test_an_exactly_damped_product_is_refused_with_the_solver_that_takes_it():
    damped = Kronecker(Dense(torch.eye(2)), Dense(torch.eye(2))).shift(0.1)
    assert isinstance(damped, Shifted)
    with pytest.raises(TypeError, match=r"an exactly damped product has no inverse side by side; use Eigen\(\), or factored"):
        Factorwise(Cholesky()).prepare(damped)
