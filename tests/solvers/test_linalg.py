"""`heatbath.linalg` against LAPACK: values, error bounds that hold, warnings before work, bills."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import heatbath as hb
from heatbath.machines import Emulator, Fault, FaultInjector, Machine, MachineSpec
from heatbath.solvers import (
    Blocked,
    Cholesky,
    ConjugateGradient,
    CosineVectors,
    Fluctuations,
    Guarded,
    NewtonSchulz,
    Outcome,
    Refined,
    Solver,
    ThermodynamicSolve,
    UnitVectors,
    linalg,
)
from heatbath.work import Work, matmul
from tests.solvers.truth import fresh, normal, solved, spd

TAU = 1e-6
ROUGH = Machine(MachineSpec(name="rough", tau=TAU, noise_volts_rms=1e-3, matrix_bits=12, drive_bits=12, read_bits=12))


def test_it_is_a_public_name() -> None:
    assert hb.linalg is linalg


@pytest.mark.parametrize("solver", [None, Cholesky(), NewtonSchulz(), ConjugateGradient(), Refined(ThermodynamicSolve(ROUGH))])
def test_solutions_and_inverses_lie_within_their_error_bound(solver: Solver[Any] | None) -> None:
    matrix, rhs = spd(2, n=8, condition=30), normal(2, 3, 8)
    result = linalg.solve(matrix, rhs, solver=solver, generator=fresh(1))
    inverse = linalg.inv(matrix, solver=solver, generator=fresh(2))
    for got, want in ((result, solved(matrix, rhs)), (inverse, torch.linalg.inv(matrix))):
        assert got.value.shape == want.shape
        assert ((got.value - want).flatten(1).norm(dim=1) <= got.error + 1e-13).all()
        assert (got.relative_error < 1e-4).all()
        assert got.solved
        assert got.messages == ["solved"] * 2
        torch.testing.assert_close(got.notes["condition"], torch.full((2,), 30.0, dtype=torch.float64))
    assert torch.equal(inverse.value, inverse.value.mT)


def test_error_bound_is_the_residual_over_the_smallest_eigenvalue() -> None:
    matrix, rhs = spd(2, n=6), normal(2, 3, 6)
    result = linalg.solve(matrix, rhs, machine=ROUGH, generator=fresh(1))
    residual = (rhs - result.value @ matrix).flatten(1).norm(dim=1)
    torch.testing.assert_close(result.error, residual / 0.1, rtol=1e-9, atol=0)
    torch.testing.assert_close(result.notes["residual"], residual / rhs.flatten(1).norm(dim=1))
    inverse = linalg.inv(matrix, machine=ROUGH, generator=fresh(1))
    residual = (torch.eye(6) - inverse.value @ matrix).flatten(1).norm(dim=1)
    torch.testing.assert_close(inverse.error, residual / 0.1, rtol=1e-9, atol=0)
    torch.testing.assert_close(inverse.notes["residual"], residual / 6**0.5)


def test_machines_err_about_as_predicted() -> None:
    matrix, rhs = spd(20, n=8, condition=30), normal(20, 3, 8)
    result = linalg.solve(matrix, rhs, machine=ROUGH, generator=fresh(1))
    error = (result.value - solved(matrix, rhs)).flatten(1).norm(dim=1) / solved(matrix, rhs).flatten(1).norm(dim=1)
    ratio = (error / result.notes["predicted"]).square().mean().sqrt().item()
    assert 0.4 < ratio < 1.5  # the budget knows no eigenvectors


@pytest.mark.filterwarnings("ignore::heatbath.solvers.prediction.InaccuracyWarning")
@pytest.mark.parametrize(
    "readout", [CosineVectors(), UnitVectors(), Fluctuations(reads=400, interval=50 * TAU, burn_in=500 * TAU)]
)
def test_all_read_outs_of_an_inverse_serve(readout: CosineVectors | UnitVectors | Fluctuations) -> None:
    matrix = spd(2, n=4, condition=5)
    result = linalg.inv(matrix, machine=ROUGH, readout=readout, generator=fresh(1))
    assert ((result.value - torch.linalg.inv(matrix)).flatten(1).norm(dim=1) <= result.error).all()
    assert (result.notes["predicted"] < 0.2).all()


@pytest.mark.parametrize("readout", [None, UnitVectors()])
def test_noise_of_an_inverse_is_that_of_its_drives_turned_back(readout: UnitVectors | None) -> None:
    """With rows of noise N(0, m_k² S) turned back by orthonormal C, X = Cᵀ diag(m) Y, the mean of both triangles has the square
    E‖(X + Xᵀ)/2‖² = ½[Σ m² tr S + tr(Cᵀ diag(m)² C S)]."""
    count, n, noise = 400, 6, 1e-3
    matrix = spd(count, n=n, condition=5)
    root = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    matrix = root[..., :, None] * matrix * root[..., None, :]
    machine = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=noise, settle_taus=500.0))
    result = linalg.inv(matrix, machine=machine, readout=readout, generator=fresh(1))
    inverse = torch.linalg.inv(matrix)
    squares = (result.value - inverse).square().sum((-2, -1))
    drives = (readout or CosineVectors()).drives(matrix)
    largest = drives.abs().amax(-1)
    duration = 0.2 * 500  # in units of τ
    covariance = 2 * noise**2 / duration * (inverse @ inverse - inverse @ inverse @ inverse / duration)  # law (e): settled
    turned = (drives.mT * largest.square()) @ drives
    expected = 0.5 * (largest.square().sum() * _trace(covariance) + _trace(turned @ covariance))
    ratio = squares / expected
    assert abs(((ratio.mean() - 1) / (ratio.std() / count**0.5)).item()) < 4
    forecast = (result.notes["predicted"] * inverse.flatten(1).norm(dim=1)).square()
    above = (forecast / expected).sqrt()
    assert (above > 1).all()
    assert (above < 2**0.5).all()


def _trace(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def test_a_guess_is_passed_on() -> None:
    matrix, rhs = spd(n=6), normal(2, 6)
    result = linalg.solve(matrix, rhs, solver=ConjugateGradient(1, 1e-10), guess=solved(matrix, rhs))
    assert result.notes["steps"].item() == 0


def test_a_single_right_hand_side_keeps_its_shape() -> None:
    assert linalg.solve(spd(n=3).float(), torch.ones(3)).value.shape == (3,)


def test_a_small_machine_serves_through_blocks() -> None:
    few = Machine(MachineSpec(name="few", tau=TAU, cells=3))
    matrix, rhs = spd(n=8), normal(8)
    result = linalg.solve(matrix, rhs, solver=Refined(Blocked(ThermodynamicSolve(few), cells=3), sweeps=8))
    assert result.relative_error.item() < 1e-6


def test_failures_are_outcomes_with_messages() -> None:
    late = Machine(FaultInjector(Machine(MachineSpec(name="late", tau=TAU)).device, Fault.LATE, every=1))
    result = linalg.solve(spd(n=3), torch.ones(3, dtype=torch.float64), machine=late)
    assert not result.solved
    assert result.messages == [Outcome.LATE.value]
    watched = linalg.solve(spd(n=3), torch.ones(3, dtype=torch.float64), solver=Guarded(ThermodynamicSolve(late)))
    assert watched.messages == [Outcome.FELL_BACK.value]
    assert watched.solved


def test_a_hopeless_machine_is_warned_of_before_any_work() -> None:
    crude = Machine(MachineSpec(name="crude", tau=TAU, matrix_bits=6))
    calls: list[str] = []

    class Spy(Emulator):
        def program(self, *args: Any, **options: Any) -> Any:
            calls.append("program")
            return super().program(*args, **options)

    spy = Machine(Spy(crude.spec))
    matrix = spd(n=12, condition=1e4)
    with pytest.warns(linalg.InaccuracyWarning) as caught:
        linalg.solve(matrix, normal(12), machine=spy, generator=fresh())
    message = str(caught[0].message)
    assert message.startswith("condition number 1.0e+04: the predicted relative error is")
    assert "machine 'crude': rounding" in message
    assert "pass solver=Refined(ThermodynamicSolve(machine))" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error", linalg.InaccuracyWarning)
        calls.clear()
        with pytest.raises(linalg.InaccuracyWarning):
            linalg.solve(matrix, normal(12), machine=spy)
    assert calls == []


def test_a_condition_number_beyond_the_dtype_is_warned_of() -> None:
    matrix = spd(n=4, condition=3e6).float()
    with pytest.warns(linalg.InaccuracyWarning, match=r"rounding of torch.float32\); raise the damping or use float64"):
        linalg.inv(matrix)
    linalg.inv(matrix.double())


def test_work_is_that_of_the_solver_and_of_the_measured_residual() -> None:
    matrix, rhs = spd(2, n=5), normal(2, 3, 5)
    state, prepared = Cholesky().prepare(hb.Dense(matrix))
    solution = Cholesky().solve(state, rhs)
    assert linalg.solve(matrix, rhs).work == prepared + solution.work + Work.of(matmul(3, 5, 5), 2)
    assert linalg.inv(matrix).work == prepared + Work.of(matmul(5, 5, 5), 2)
    machine = linalg.solve(matrix, rhs, machine=ROUGH, generator=fresh()).work
    assert machine.programmings == 2
    assert machine.analog_seconds == pytest.approx(2 * 3 * 50 * TAU)


COARSE = Machine(MachineSpec(name="coarse", tau=TAU, matrix_bits=3, drive_bits=4, read_bits=4))


@pytest.mark.parametrize("machine", [None, ROUGH])
@pytest.mark.parametrize("rhs", [torch.zeros(3), torch.zeros(0, 3), torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])])
def test_right_hand_sides_of_zeros_and_empty_batches_are_ordinary(machine: Machine | None, rhs: torch.Tensor) -> None:
    result = linalg.solve(torch.eye(3), rhs, machine=machine, generator=fresh(1))
    assert result.solved
    assert result.value.shape == rhs.shape
    torch.testing.assert_close(result.value, rhs, rtol=0, atol=0.01)
    assert (result.error <= 0.1).all()
    assert bool(rhs.any()) or result.error.item() == 0


@pytest.mark.filterwarnings("ignore::heatbath.solvers.prediction.InaccuracyWarning")
@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e-24, 1e-22, 1.0, 1e19, 1e25, 1e37])
def test_stated_errors_hold_at_every_scale_of_float32(size: float) -> None:
    """Squares of 1e-24 are 0 in float32 and those of 1e25 infinite: the bound is measured where neither happens."""
    matrix, rhs = spd(n=6, condition=5).float(), normal(6).float()
    unit = linalg.solve(matrix, rhs, machine=COARSE, generator=fresh(1))
    result = linalg.solve(matrix, rhs * size, machine=COARSE, generator=fresh(1))
    want = solved(matrix.double(), (rhs * size).double().unsqueeze(0)).squeeze(0)
    error = (result.value.double() - want).norm()
    assert error > 0.1 * want.norm()  # as coarse a machine as that
    assert error <= result.error
    torch.testing.assert_close(result.relative_error, unit.relative_error, rtol=1e-3, atol=0)
    torch.testing.assert_close(result.notes["residual"], unit.notes["residual"], rtol=1e-3, atol=0)


def test_errors_of_huge_right_hand_sides_are_stated() -> None:
    matrix, rhs = spd(n=4, condition=5), normal(4) * 1e250
    result = linalg.solve(matrix, rhs, machine=ROUGH, generator=fresh(1))
    assert 1e-6 < result.relative_error.item() < 0.2


@pytest.mark.parametrize("machine", [None, ROUGH])
def test_overflow_is_not_called_solved(machine: Machine | None) -> None:
    solution = linalg.solve(torch.eye(3) * 1e-20, torch.full((3,), 1e30), machine=machine, generator=fresh(1))
    inverse = linalg.inv(torch.eye(3, dtype=torch.float64) * 1e-310, machine=machine, generator=fresh(1))
    for result in (solution, inverse):
        assert not result.solved
        assert result.messages == [Outcome.NONFINITE.value]


@pytest.mark.parametrize("solver", ["cholesky", Cholesky, ROUGH])
def test_what_is_no_solver_is_refused(solver: Any) -> None:
    with pytest.raises(TypeError, match="solver must be a solver"):
        linalg.solve(torch.eye(2), torch.ones(2), solver=solver)
    with pytest.raises(TypeError, match="solver must be a solver"):
        linalg.inv(torch.eye(2), solver=solver)
