"""The error budget, one cause at a time, against emulated machines."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heatbath.machines import Fault, FaultInjector, Machine, MachineSpec, Schedule, load_machine
from heatbath.operators import Dense
from heatbath.solvers import Fluctuations, Guarded, Outcome, ThermodynamicInverse, ThermodynamicSolve, linalg
from heatbath.solvers.base import usable
from heatbath.solvers.prediction import InaccuracyWarning, Prediction, entry_error, predict, predict_covariance, warn_if_useless
from tests.solvers.truth import fresh, normal, relative, solved, spd

TAU = 1e-6
LONG = Schedule(2000 * TAU, 100 * TAU)


MATRICES, ROWS, N = 200, 4, 6
Case = tuple[Tensor, Tensor, Tensor, Tensor]


def solves(spec: MachineSpec, schedule: Schedule = LONG, condition: float = 10.0) -> Case:
    """Matrices of unit diagonal, right-hand sides, errors of a machine's solutions, true solutions."""
    matrix = spd(MATRICES, n=N, condition=condition)
    root = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    matrix = root[..., :, None] * matrix * root[..., None, :]
    rhs = normal(MATRICES, ROWS, N)
    solver = ThermodynamicSolve(Machine(spec), schedule, equilibrate=False)
    value = solver.solve(solver.prepare(Dense(matrix), generator=fresh(1))[0], rhs, generator=fresh(2)).value
    truth = solved(matrix, rhs)
    return matrix, rhs, value - truth, truth


def predicted(spec: MachineSpec, matrix: Tensor, rhs: Tensor, schedule: Schedule = LONG) -> Prediction:
    drive = (rhs.norm(dim=-1) / rhs.abs().amax(-1)).median().item()
    return predict(Machine(spec), torch.linalg.eigvalsh(matrix), schedule, drive)


def z_score(error: Tensor, variance: Tensor) -> float:
    """Of the mean of ‖error‖²/variance, expected to be 1, over matrices, which are independent; rows of one are not."""
    ratio = (error.square().sum(-1) / variance).mean(-1)
    return ((ratio.mean() - 1) / (ratio.std() / math.sqrt(MATRICES))).item()


def within_its_factor(part: Tensor, error: Tensor, truth: Tensor) -> bool:
    """Whether the budget is right within the factor of 2 that it states, give or take four standard errors."""
    squares = (error.square().sum(-1) / truth.square().sum(-1)).mean(-1)
    slack = 4 * (squares.std() / squares.mean()).item() / math.sqrt(MATRICES)
    return 0.25 * (1 - slack) < (squares.mean() / part.square().mean()).item() < 4 * (1 + slack)


def squared_inverse(matrix: Tensor) -> Tensor:
    inverse = torch.linalg.inv(matrix)
    return inverse @ inverse


def entry_errors(matrix: Tensor, truth: Tensor, deviation: float, *, diagonal: bool) -> Tensor:
    """E ‖A⁻¹ E x‖² `[matrices, rows]` for a symmetric E of independent entries; without a diagonal, which 1 is held exactly."""
    square = squared_inverse(matrix)
    trace = square.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None]
    size, form = truth.square().sum(-1), ((truth @ square) * truth).sum(-1)
    own = (truth.square() * square.diagonal(dim1=-2, dim2=-1)[:, None, :]).sum(-1)
    return deviation**2 * (size * trace + form - (1 if diagonal else 2) * own)


def test_rounding_of_entries() -> None:
    spec = MachineSpec(name="m", tau=TAU, matrix_bits=12)
    matrix, rhs, error, truth = solves(spec)
    assert abs(z_score(error, entry_errors(matrix, truth, 1 / (2**11 - 1) / math.sqrt(12), diagonal=False))) < 4
    parts = predicted(spec, matrix, rhs)
    assert within_its_factor(parts.rounding, error, truth)
    torch.testing.assert_close(parts.total, parts.rounding, rtol=1e-6, atol=0)


def test_write_noise_and_stochastic_rounding_add_to_it() -> None:
    noisy = MachineSpec(name="m", tau=TAU, write_noise=1e-3)
    matrix, rhs, error, truth = solves(noisy)
    assert abs(z_score(error, entry_errors(matrix, truth, 1e-3, diagonal=True))) < 4
    assert within_its_factor(predicted(noisy, matrix, rhs).rounding, error, truth)
    step = 1 / (2**7 - 1) / math.sqrt(12)
    assert entry_error(MachineSpec(name="m", tau=TAU, matrix_bits=8)) == pytest.approx(step)
    assert entry_error(MachineSpec(name="m", tau=TAU, matrix_bits=8, stochastic_rounding=True)) == pytest.approx(step * 2**0.5)
    both = MachineSpec(name="m", tau=TAU, matrix_bits=8, write_noise=0.01, gain_mismatch=0.02)
    assert entry_error(both) == pytest.approx(math.hypot(step, 0.01, 0.02))


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_gain_mismatch_errs_in_proportion_to_the_entries() -> None:
    matrix = spd(200, n=32, condition=10.0)  # entries far below full scale off the diagonal
    root = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    matrix = root[..., :, None] * matrix * root[..., None, :]
    machine, rhs = Machine(MachineSpec(name="m", tau=TAU, gain_mismatch=1e-3)), normal(200, 1, 32)
    solver = ThermodynamicSolve(machine, LONG, equilibrate=False)
    value = solver.solve(solver.prepare(Dense(matrix))[0], rhs).value
    truth = solved(matrix, rhs)
    error = rms((value - truth).norm(dim=-1) / truth.norm(dim=-1))
    budget = predict(machine, torch.linalg.eigvalsh(matrix), LONG, 1.0).rounding
    assert 0.6 < error / rms(budget) < 1.6  # the largest entries lie on the diagonal, and not anywhere


def test_noise() -> None:
    """Each mode's voltage has the variance of law (e), so the error has their sum times the square of the drive's scale."""
    spec = MachineSpec(name="m", tau=TAU, noise_volts_rms=1e-2)
    matrix, rhs, error, truth = solves(spec)
    rates = torch.linalg.eigvalsh(matrix)
    spread = (2e-4 / 100 * (rates**-2 - rates**-3 / 100)).sum(-1)  # up to e^{−λT} = e^{−3}/λT² at the slowest
    assert (torch.exp(-100 * rates) / (100 * rates) < 1e-2).all()
    assert abs(z_score(error, spread[:, None] * rhs.abs().amax(-1).square())) < 4
    parts = predicted(spec, matrix, rhs)
    assert within_its_factor(parts.noise, error, truth)
    assert not parts.rounding.any()


def test_settling_is_the_slowest_modes() -> None:
    """No mode is left with more than the slowest is, and what that one is left with is part of the error."""
    schedule = Schedule(5 * TAU, 0.0, reads=1)
    spec = MachineSpec(name="m", tau=TAU)
    matrix, rhs, error, truth = solves(spec, schedule, condition=30)
    rates, modes = torch.linalg.eigh(matrix)
    settling = predicted(spec, matrix, rhs, schedule).settling
    torch.testing.assert_close(settling, torch.exp(-5 * rates[..., 0]), rtol=1e-9, atol=0)
    slowest = (truth @ modes)[..., 0].abs()
    assert (error.norm(dim=-1) <= settling[:, None] * truth.norm(dim=-1) * (1 + 1e-9)).all()
    assert (error.norm(dim=-1) >= settling[:, None] * slowest * (1 - 1e-9)).all()


def test_converters() -> None:
    """The drive's largest entry is held exactly, the others err by step/√12; readings by that of a range of a power of two."""
    spec = MachineSpec(name="m", tau=TAU, drive_bits=8, read_bits=8)
    matrix, rhs, error, truth = solves(spec)
    step, scale = 1 / (2**7 - 1) / math.sqrt(12), rhs.abs().amax(-1, keepdim=True)
    square = squared_inverse(matrix).diagonal(dim1=-2, dim2=-1)
    exact = square[:, None, :].expand_as(rhs).gather(-1, rhs.abs().argmax(-1, keepdim=True)).squeeze(-1)
    reading = torch.exp2(torch.ceil(torch.log2((truth / scale).abs().amax(-1))))
    variance = step**2 * (square.sum(-1, keepdim=True) - exact + N * reading.square()) * scale.squeeze(-1).square()
    assert abs(z_score(error, variance)) < 4
    assert within_its_factor(predicted(spec, matrix, rhs).conversion, error, truth)


def test_a_faulty_machine_is_predicted_as_the_one_that_works() -> None:
    machine = Machine(MachineSpec(name="m", tau=TAU, matrix_bits=8))
    values = torch.tensor([[0.1, 1.0]], dtype=torch.float64)
    one, other = (
        predict(m, values, LONG, 1.0).total for m in (machine, Machine(FaultInjector(machine.device, Fault.LATE, rate=0.5)))
    )
    assert torch.equal(one, other)


def test_warns_of_the_worst_member_only_if_it_is_useless() -> None:
    warn_if_useless(torch.tensor([0.05, 0.09]), torch.tensor([1.0, 2.0]), "cause", "remedy")
    with pytest.warns(
        InaccuracyWarning, match=r"condition number 2.0e\+00: the predicted relative error is 2.0e-01 \(cause\); remedy"
    ):
        warn_if_useless(torch.tensor([0.05, 0.2]), torch.tensor([1.0, 2.0]), "cause", "remedy")
    with pytest.warns(InaccuracyWarning, match="is nan"):
        warn_if_useless(torch.tensor([torch.nan]), torch.tensor([2.0]), "cause", "remedy")


COVARIANCE_CASES = [
    (None, None, None, 5.0),
    *((12, None, read_noise, 5.0) for read_noise in (None, 1e-4, 5e-4, 2e-3, 1e-2)),
    *((8, gain, None, 5.0) for gain in (1.0, 4.0, 8.0, 16.0, None)),
    (8, 4.0, 1e-3, 5.0),
    (12, None, 1e-3, 0.5),
    (12, None, 1e-3, 0.05),
]


@pytest.mark.parametrize(("bits", "gain", "read_noise", "interval"), COVARIANCE_CASES)
def test_errors_of_covariance_read_outs_are_predicted(
    bits: int | None, gain: float | None, read_noise: float | None, interval: float
) -> None:
    """Mean squared error of 60 read-outs against the closed form, by its own standard error."""
    members, tau = 60, 1e-6
    matrix = spd(n=6, condition=5)
    root = matrix.diagonal().rsqrt()
    matrix = root[:, None] * matrix * root
    spec = MachineSpec(
        name="noisy", tau=tau, noise_volts_rms=1e-3, read_bits=bits, read_gain_max=gain, read_noise_volts_rms=read_noise
    )
    readout = Fluctuations(500, interval * tau, 10 * interval * tau)
    solver = ThermodynamicInverse(Machine(spec), readout, equilibrate=False)
    state, _ = solver.prepare(Dense(matrix.expand(members, 6, 6)), generator=fresh(1))
    inverse = torch.linalg.inv(matrix)
    squares = (state.operator.dense() - inverse).square().sum((-2, -1)) / inverse.square().sum()
    predicted = predict_covariance(
        Machine(spec), matrix, reads=readout.reads, interval=readout.interval, burn_in=readout.burn_in
    ).total
    z = (squares.mean() - predicted.square()) / (squares.std() / members**0.5)
    assert abs(z.item()) < 4
    useful = usable(state.outcome).double().mean()
    assert useful == 1 if predicted < 0.75 else useful < 1 or predicted < 1


@pytest.mark.parametrize("change", [{"read_noise_volts_rms": 1e-5}, {"read_gain_max": 1.0}])
def test_a_useless_covariance_read_out_is_not_called_solved(change: dict) -> None:
    """Thermal noise of 2 µV of 1 V: read noise of 10 µV makes an inverse 19 × off, and without gain all reads are 0."""
    machine = Machine(replace(load_machine("tngd-2024"), **change))
    readout = Fluctuations(20_000, 1e-6, 50e-6)
    matrix = spd(n=8, condition=10)
    with pytest.warns(linalg.InaccuracyWarning, match="conversion"):
        result = linalg.inv(matrix, machine=machine, readout=readout, generator=fresh(1))
    error = relative(result.value, torch.linalg.inv(matrix))
    assert error > 0.9
    assert result.messages == [Outcome.INACCURATE.value]
    assert 0.8 < result.notes["predicted"].item() / error < 1.25
    watched = Guarded(ThermodynamicInverse(machine, readout), retries=0)
    state, _ = watched.prepare(Dense(matrix), generator=fresh(1))
    assert watched.outcome(state).item() == Outcome.FELL_BACK.code
    assert relative(watched.solve(state, torch.eye(8, dtype=matrix.dtype)).value, torch.linalg.inv(matrix)) < 1e-9
