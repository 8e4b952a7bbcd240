"""Newton–Schulz: the residual squares in every step, warm starts pay, and what does not contract starts cold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heatbath.operators import Dense, Diagonal, Kronecker
from heatbath.solvers import Cholesky, NewtonSchulz, Outcome
from heatbath.solvers.inverse import Inverse
from heatbath.solvers.newton_schulz import cold_scale
from heatbath.work import Work, elementwise, matmul
from tests.solvers.truth import NoHostSync, normal, relative, solved, spd, with_spectrum


def inverse_of(solver: NewtonSchulz, matrix: Tensor, previous: Inverse | None = None) -> Inverse:
    with NoHostSync():
        return solver.prepare(Dense(matrix), previous=previous)[0]


def held(state: Inverse) -> Tensor:
    return state.operator.dense()


def test_inverse_is_that_of_lapack() -> None:
    matrix, rhs = spd(3, n=12, condition=100), normal(3, 2, 12)
    state = inverse_of(NewtonSchulz(tolerance=1e-10), matrix)
    assert relative(held(state), torch.linalg.inv(matrix)) < 1e-11
    assert (state.outcome == Outcome.SOLVED.code).all()
    solution = NewtonSchulz().solve(state, rhs)
    assert relative(solution.value, solved(matrix, rhs)) < 1e-11
    assert torch.equal(solution.notes["inverse_residual"], state.residual)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_residual_squares_in_every_step(steps: int) -> None:
    values = torch.logspace(0, -2, 10, dtype=torch.float64)
    matrix = with_spectrum(values)
    first = (1 - cold_scale(matrix) * values).abs()
    want = (first ** (2 ** (steps + 1))).sum().sqrt() / 10**0.5  # ‖R‖_F of a symmetric R, over √n
    torch.testing.assert_close(inverse_of(NewtonSchulz(steps), matrix).residual, want, rtol=1e-8, atol=1e-13)


def test_cold_start_contracts_for_every_definite_matrix() -> None:
    spectra = torch.stack(
        [
            torch.ones(9),
            torch.tensor([1.0] + [1e-6] * 8),
            torch.logspace(0, -8, 9),
            torch.linspace(1, 2, 9),
            torch.rand(9) + 0.01,
        ]
    ).double()
    scaled = cold_scale(with_spectrum(spectra, 5))[:, None] * spectra
    assert (scaled > 0).all()
    assert (scaled < 2).all()
    assert (scaled.amax(-1) <= 2 / 1.05 + 1e-12).all()


def test_trace_bounds_are_exact_for_two_eigenvalues_and_for_one() -> None:
    torch.testing.assert_close(cold_scale(torch.diag(torch.tensor([3.0, 1.0]))), torch.tensor(0.5))  # 2/(λ₁ + λ₂)
    torch.testing.assert_close(cold_scale(4 * torch.eye(6)), torch.tensor(0.25))
    assert cold_scale(torch.tensor([[5.0]])).item() == pytest.approx(0.2)


def test_predicted_number_of_steps_is_enough() -> None:
    matrix = spd(n=20, condition=1000)
    least = 2 / cold_scale(matrix) / 1.05 / torch.linalg.eigvalsh(matrix)[0]  # κ⁺
    steps = int(torch.ceil(torch.log2(least * torch.log(torch.tensor(1e5)) / 1.9)).item())
    assert inverse_of(NewtonSchulz(steps, tolerance=1e-5), matrix).outcome.item() == Outcome.SOLVED.code
    assert inverse_of(NewtonSchulz(steps - 3, tolerance=1e-5), matrix).outcome.item() == Outcome.INACCURATE.code


def test_warm_start_from_a_near_matrix_takes_few_steps() -> None:
    matrix = spd(2, n=16, condition=200)
    near = matrix + 0.2 / 200 * torch.eye(16)
    solver = NewtonSchulz(warm_steps=3, tolerance=1e-5)
    warm = inverse_of(solver, near, inverse_of(solver, matrix))
    assert (warm.outcome == Outcome.SOLVED.code).all()
    rates = 1 - torch.linalg.eigvalsh(near) / (torch.linalg.eigvalsh(near) - 0.2 / 200)
    want = (rates**16).sum(-1).sqrt() / 4  # three squarings
    torch.testing.assert_close(warm.residual, want, rtol=1e-3, atol=1e-11)
    cold = inverse_of(NewtonSchulz(3, tolerance=1e-5), near)
    assert (cold.outcome == Outcome.INACCURATE.code).all()


def test_a_start_of_the_wrong_sign_starts_cold_for_its_member_only() -> None:
    matrix = spd(2, n=8)
    previous = inverse_of(NewtonSchulz(), matrix)
    moved = torch.stack([1.1 * matrix[0], 2 * matrix[1]])
    start = Inverse(Dense(held(previous) * torch.tensor([1.0, -1.0])[:, None, None]), previous.outcome)
    state = inverse_of(NewtonSchulz(steps=9, tolerance=1e-12), moved, start)
    assert relative(held(state)[0], torch.linalg.inv(moved[0])) < 1e-12
    cold = NewtonSchulz(steps=8).prepare(Dense(moved))[0]  # one of nine steps went to finding out
    torch.testing.assert_close(held(state)[1], held(cold)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio,factor", [(0.05, 1.0), (1.4, 1.0), (1.8, 2 / 2.98), (2.2, 2 / 3.42), (30.0, 2 / 34)])
def test_a_start_that_would_run_away_is_shortened(ratio: float, factor: float) -> None:
    """n = 1, where the power iteration is exact: α = 1 up to λ⁺ = 1.5, above it 2/(1.1 λ⁺ + 1)."""
    matrix = spd(n=1)
    previous = Inverse(Dense(ratio / matrix), torch.zeros((), dtype=torch.int8))
    state = inverse_of(NewtonSchulz(2), matrix, previous)
    assert (held(state) * matrix).item() == pytest.approx(1 - (1 - factor * ratio) ** 4, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_warm_starts_contract_whatever_a_batch_brought(rank: int) -> None:
    """Directions that were not there before raise XM in them far above 2; one step leaves 0 ≤ XM ≤ I all the same."""
    matrix = spd(4, n=16, condition=50)
    rows = 3 * normal(4, rank, 16, seed=3)
    moved = 0.9 * matrix + rows.mT @ rows
    state = inverse_of(NewtonSchulz(warm_steps=1), moved, inverse_of(NewtonSchulz(), matrix))
    root = torch.linalg.cholesky(moved)
    products = torch.linalg.eigvalsh(root.mT @ held(state) @ root)
    assert torch.linalg.eigvalsh(root.mT @ torch.linalg.inv(matrix) @ root).amax() > 50
    assert (products > 0).all()
    assert (products <= 1 + 1e-9).all()


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, 0.0])
def test_rubbish_is_no_start(rubbish: float) -> None:
    matrix = spd(2, n=6)
    previous = Inverse(Dense(torch.full_like(matrix, rubbish)), torch.zeros(2, dtype=torch.int8))
    state = inverse_of(NewtonSchulz(tolerance=1e-10), matrix, previous)
    assert relative(held(state), torch.linalg.inv(matrix)) < 1e-10


def test_previous_inverses_of_another_shape_or_kind_are_ignored() -> None:
    matrix = spd(n=6)
    cold, _ = NewtonSchulz().prepare(Dense(matrix))
    for previous in (inverse_of(NewtonSchulz(), spd(n=5)), NewtonSchulz().prepare(Diagonal(torch.ones(6)))[0]):
        assert torch.equal(held(inverse_of(NewtonSchulz(), matrix, previous)), held(cold))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_in_bfloat16_are_polished(dtype: torch.dtype) -> None:
    matrix = spd(2, n=24, condition=10)
    rough = inverse_of(NewtonSchulz(12, product_dtype=torch.bfloat16, polish=0), matrix.to(dtype))
    fine = inverse_of(NewtonSchulz(12, product_dtype=torch.bfloat16, polish=2), matrix.to(dtype))
    assert held(fine).dtype == dtype
    floor = 10 * torch.finfo(torch.bfloat16).eps  # κ times the rounding of a product
    assert relative(held(rough).double() @ matrix, torch.eye(24).expand(2, 24, 24)) < floor
    assert relative(held(fine).double() @ matrix, torch.eye(24).expand(2, 24, 24)) < 1e-5
    assert (fine.outcome == Outcome.SOLVED.code).all()


def test_reported_residual_is_the_one_that_solutions_have() -> None:
    matrix = spd(n=32, condition=1e4)
    state = inverse_of(NewtonSchulz(tolerance=1.0), matrix.float())
    unit = NewtonSchulz().solve(state, torch.eye(32)).value.double()
    residual = (torch.eye(32) - unit @ matrix.float().double()).norm() / 32**0.5
    assert state.residual is not None
    assert residual < 2 * state.residual.item() + 32 * torch.finfo(torch.float32).eps


def test_failures_are_told_apart_member_by_member() -> None:
    matrix = torch.stack(
        [spd(n=4), with_spectrum(torch.tensor([1.0, 0.5, 0.2, -0.3])), spd(n=4) * torch.nan, spd(n=4, condition=1e6)]
    )
    state = inverse_of(NewtonSchulz(8), matrix)
    want = [Outcome.SOLVED, Outcome.INDEFINITE, Outcome.NONFINITE, Outcome.INACCURATE]
    assert state.outcome.tolist() == [o.code for o in want]
    assert NewtonSchulz().outcome(state) is state.outcome


def test_work_is_two_products_a_step() -> None:
    matrix = Dense(spd(3, n=5))
    product, passes = Work.of(matmul(5, 5, 5), 3), Work.of(elementwise(25, 2), 3)
    state, cold = NewtonSchulz(7).prepare(matrix)
    assert cold == product * 14 + passes * 9
    _, warm = NewtonSchulz(7, warm_steps=2).prepare(matrix, previous=state)
    scale = Work.of(matmul(1, 5, 5), 18)  # six products with a vector for each of three members
    assert warm == product * 5 + passes * 4 + scale
    assert NewtonSchulz(7).prepare(matrix, previous=state)[1] == product * 15 + passes * 9 + scale


def test_diagonal_operators_are_inverted_by_division() -> None:
    state, work = NewtonSchulz().prepare(Diagonal(torch.tensor([2.0, 4.0])))
    assert torch.equal(held(state), torch.diag(torch.tensor([0.5, 0.25])))
    assert work.flops == 2


def test_other_structures_are_refused() -> None:
    with pytest.raises(TypeError, match=r"NewtonSchulz takes Dense or Diagonal, got Kronecker; wrap it: Factorwise"):
        NewtonSchulz().prepare(Kronecker(Dense(torch.eye(2)), Dense(torch.eye(2))))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"steps": 0}, "at least one step, got steps=0, warm_steps=None"),
        ({"warm_steps": 0}, "at least one step, got steps=20, warm_steps=0"),
        ({"tolerance": 0.0}, "tolerance > 0 and polish >= 0, got 0.0 and 2"),
        ({"polish": -1}, "tolerance > 0 and polish >= 0, got 0.001 and -1"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NewtonSchulz(**options)


def test_agrees_with_cholesky() -> None:
    matrix = spd(2, n=10, condition=300)
    want = Cholesky().prepare(Dense(matrix))[0]
    assert relative(held(inverse_of(NewtonSchulz(), matrix)), held(want)) < 1e-10
