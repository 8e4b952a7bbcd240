"""Block elimination equals the direct solution, on machines smaller than the matrix."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.operators import Dense, Diagonal, Kronecker
from heatbath.solvers import Blocked, Cholesky, Factorwise, NewtonSchulz, Outcome, Refined, ThermodynamicSolve
from heatbath.solvers.blocked import block_sizes
from heatbath.work import Work, elementwise, matmul
from tests.solvers.truth import NoHostSync, fresh, normal, relative, solved, spd, with_spectrum

TAU = 1e-6
LONG = Schedule(2000 * TAU, 100 * TAU)


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5, 10, 11, 14])
def test_solution_is_the_direct_one_for_every_number_of_cells(cells: int) -> None:
    matrix, rhs = spd(2, n=11, condition=100), normal(2, 3, 11)
    solver = Blocked(Cholesky(), cells)
    with NoHostSync():
        state, _ = solver.prepare(Dense(matrix))
        solution = solver.solve(state, rhs)
    assert relative(solution.value, solved(matrix, rhs)) < 1e-12
    assert len(state.blocks) == -(-11 // cells)
    assert (solution.outcome == Outcome.SOLVED.code).all()
    assert torch.equal(solver.outcome(state), solution.outcome)


def test_one_right_hand_side_without_a_batch_keeps_its_shape() -> None:
    matrix, rhs = spd(n=7), normal(7)
    solver = Blocked(Cholesky(), 3)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], rhs)
    torch.testing.assert_close(solution.value, solved(matrix, rhs[None])[0], rtol=1e-12, atol=1e-12)


def test_an_ideal_machine_of_three_cells_solves_ten_equations() -> None:
    machine = Machine(MachineSpec(name="three", tau=TAU, cells=3))
    matrix, rhs = spd(2, n=10), normal(2, 3, 10)
    solver = Blocked(ThermodynamicSolve(machine, LONG), cells=3)
    state, work = solver.prepare(Dense(matrix))
    solution = solver.solve(state, rhs)
    assert relative(solution.value, solved(matrix, rhs)) < 1e-9
    assert work.programmings == 2 * 4
    drives = lambda w: sum(count * job.drives for job, count in w.jobs.items())  # noqa: E731
    assert drives(work) == 2 * (7 + 4 + 2)  # sizes 3, 3, 2, 2: what is left after each block
    assert drives(solution.work) == 2 * 3 * 4


def test_errors_of_small_rough_machines_are_refined_away() -> None:
    spec = MachineSpec(name="rough", tau=TAU, cells=4, matrix_bits=8, drive_bits=8, read_bits=8, noise_volts_rms=1e-3)
    matrix, rhs = spd(2, n=12), normal(2, 3, 12)
    inner = Blocked(ThermodynamicSolve(Machine(spec), LONG), cells=4)
    solver = Refined(inner, sweeps=10)
    state, _ = solver.prepare(Dense(matrix), generator=fresh(1))
    truth = solved(matrix, rhs)
    assert relative(inner.solve(state.inner, rhs, generator=fresh(2)).value, truth) > 1e-3
    assert relative(solver.solve(state, rhs, generator=fresh(2)).value, truth) < 1e-7


def test_factors_larger_than_the_machine_are_blocked_side_by_side() -> None:
    product = Kronecker(Dense(spd(2, n=3)), Dense(spd(2, n=8, seed=1)))
    rhs = normal(2, 5, 3, 8)
    solver = Factorwise(Blocked(Cholesky(), 3))
    truth = solved(product.dense(), rhs.reshape(2, 5, 24)).reshape(2, 5, 3, 8)
    assert relative(solver.solve(solver.prepare(product)[0], rhs).value, truth) < 1e-12


def test_an_indefinite_matrix_is_noticed_in_a_schur_complement() -> None:
    indefinite = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 1.0]], dtype=torch.float64)
    matrix = torch.stack([spd(n=3), indefinite])  # its leading block is the identity
    solver = Blocked(Cholesky(), 2)
    state, _ = solver.prepare(Dense(matrix))
    want = [Outcome.SOLVED.code, Outcome.INDEFINITE.code]
    assert state.outcome.tolist() == want
    assert solver.solve(state, normal(2, 3)).outcome.tolist() == want


def test_work_is_that_of_blocks_and_of_couplings() -> None:
    matrix, rhs = Dense(spd(2, n=7)), normal(2, 5, 7)
    solver = Blocked(Cholesky(), 3)  # sizes 3, 2, 2
    state, work = solver.prepare(matrix)
    inner = Cholesky()
    want = Work()
    for size, left in ((3, 4), (2, 2), (2, 0)):
        block, more = inner.prepare(Dense(spd(2, n=size)))
        want = want + more
        if left:
            want = want + inner.solve(block, normal(2, left, size)).work
            want = want + (Work.of(matmul(left, size, left)) + Work.of(elementwise(left * left, 3))) * 2
    assert work == want
    products = sum((Work.of(matmul(5, left, size), 4) for size, left in ((3, 4), (2, 2))), Work())
    blocks = sum((inner.solve(inner.prepare(Dense(spd(2, n=m)))[0], normal(2, 5, m)).work for m in (3, 2, 2)), Work())
    assert solver.solve(state, rhs).work == products + blocks


def test_previous_states_and_successors_go_block_by_block() -> None:
    inner = ThermodynamicSolve(Machine(MachineSpec(name="m", tau=TAU)), Schedule(3 * TAU, TAU), warm_start=True)
    matrix, rhs = spd(n=5), normal(2, 5)
    solver = Blocked(inner, 3)
    state, _ = solver.prepare(Dense(matrix))
    after = solver.solve(state, rhs).state
    assert [block.carry.shape for block in after.blocks] == [(2, 3), (2, 2)]
    warmed, _ = solver.prepare(Dense(matrix), previous=after)
    assert all(torch.equal(a.carry, b.carry) for a, b in zip(warmed.blocks, after.blocks, strict=True))
    other, _ = Blocked(inner, 2).prepare(Dense(matrix), previous=after)  # other blocks: nothing to start from
    assert all(block.carry is None for block in other.blocks)
    direct = Blocked(Cholesky(), 3)
    assert direct.solve(direct.prepare(Dense(matrix))[0], rhs).state is None


def test_notes_tell_the_block() -> None:
    matrix = spd(n=4)
    solver = Blocked(NewtonSchulz(), 2)
    solution = solver.solve(solver.prepare(Dense(matrix))[0], normal(1, 4))
    assert set(solution.notes) == {"block0.inverse_residual", "block1.inverse_residual"}


@pytest.mark.parametrize("n,cells", [(1, 1), (7, 7), (7, 3), (12, 4), (9, 2)])
def test_blocks_are_few_and_equal(n: int, cells: int) -> None:
    sizes = block_sizes(n, cells)
    assert sum(sizes) == n
    assert len(sizes) == -(-n // cells)
    assert max(sizes) <= cells
    assert max(sizes) - min(sizes) <= 1


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="Blocked needs cells >= 1, got 0"):
        Blocked(Cholesky(), 0)
    with pytest.raises(TypeError, match=r"Blocked takes Dense operators, got Diagonal; wrap it: Factorwise"):
        Blocked(Cholesky(), 2).prepare(Diagonal(torch.ones(3)))


def test_a_definite_matrix_has_definite_complements() -> None:
    matrix = with_spectrum(torch.logspace(0, -4, 9))
    state, _ = Blocked(Cholesky(), 2).prepare(Dense(matrix))
    for block in state.blocks:
        values = torch.linalg.eigvalsh(block.operator.dense())
        assert (values > 1 - 1e-6).all()  # every complement lies within the spectrum of the matrix
        assert (values < 1e4 * (1 + 1e-6)).all()
