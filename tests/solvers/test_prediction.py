"""The error budget, one cause at a time, against emulated machines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heatbath.machines import Fault, Faulty, Machine, MachineSpec, Schedule
from heatbath.operators import Dense
from heatbath.solvers import ThermodynamicSolve
from heatbath.solvers.prediction import InaccuracyWarning, Prediction, entry_error, predict, warn_if_useless
from tests.solvers.truth import fresh, normal, solved, spd

TAU = 1e-6
LONG = Schedule(2000 * TAU, 100 * TAU)


def measured(spec: MachineSpec, schedule: Schedule, condition: float = 10.0) -> tuple[float, Prediction]:
    """Relative error (root mean square) over 200 matrices and typical right-hand sides, and what was predicted."""
    matrix = spd(200, n=6, condition=condition)
    root = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    matrix = root[..., :, None] * matrix * root[..., None, :]
    rhs = normal(200, 4, 6)
    solver = ThermodynamicSolve(Machine(spec), schedule, equilibrate=False)
    value = solver.solve(solver.prepare(Dense(matrix), generator=fresh(1))[0], rhs, generator=fresh(2)).value
    truth = solved(matrix, rhs)
    error = ((value - truth).norm(dim=-1) / truth.norm(dim=-1)).square().mean().sqrt().item()
    drive = (rhs.norm(dim=-1) / rhs.abs().amax(-1)).median().item()
    return error, predict(Machine(spec), torch.linalg.eigvalsh(matrix), schedule, drive)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_rounding_of_entries() -> None:
    error, predicted = measured(MachineSpec(name="m", tau=TAU, matrix_bits=12), LONG)
    assert 0.5 < error / rms(predicted.rounding) < 1.5  # the diagonal of 1 is held exactly, so a little less
    assert rms(predicted.total) == pytest.approx(rms(predicted.rounding), rel=1e-6)


def test_write_noise_and_stochastic_rounding_add_to_it() -> None:
    noisy = MachineSpec(name="m", tau=TAU, write_noise=1e-3)
    error, predicted = measured(noisy, LONG)
    assert 0.7 < error / rms(predicted.rounding) < 1.5
    step = 1 / (2**7 - 1) / math.sqrt(12)
    assert entry_error(MachineSpec(name="m", tau=TAU, matrix_bits=8)) == pytest.approx(step)
    assert entry_error(MachineSpec(name="m", tau=TAU, matrix_bits=8, stochastic_rounding=True)) == pytest.approx(step * 2**0.5)
    both = MachineSpec(name="m", tau=TAU, matrix_bits=8, write_noise=0.01, gain_mismatch=0.02)
    assert entry_error(both) == pytest.approx(math.hypot(step, 0.01, 0.02))


def test_gain_mismatch_errs_in_proportion_to_the_entries() -> None:
    matrix = spd(200, n=32, condition=10.0)  # entries far below full scale off the diagonal
    root = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    matrix = root[..., :, None] * matrix * root[..., None, :]
    machine, rhs = Machine(MachineSpec(name="m", tau=TAU, gain_mismatch=1e-3)), normal(200, 1, 32)
    solver = ThermodynamicSolve(machine, LONG, equilibrate=False)
    value = solver.solve(solver.prepare(Dense(matrix))[0], rhs).value
    truth = solved(matrix, rhs)
    error = rms((value - truth).norm(dim=-1) / truth.norm(dim=-1))
    predicted = predict(machine, torch.linalg.eigvalsh(matrix), LONG, 1.0).rounding
    assert 0.6 < error / rms(predicted) < 1.6  # the largest entries lie on the diagonal, and not anywhere


def test_noise() -> None:
    error, predicted = measured(MachineSpec(name="m", tau=TAU, noise_volts_rms=1e-2), LONG)
    assert 0.6 < error / rms(predicted.noise) < 1.6  # solutions differ in size with the right-hand side
    assert rms(predicted.rounding) == 0


def test_settling_is_the_slowest_modes() -> None:
    schedule = Schedule(5 * TAU, 0.0, reads=1)
    error, predicted = measured(MachineSpec(name="m", tau=TAU), schedule, condition=30)
    matrix = spd(200, n=6, condition=30)
    root = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    slowest = torch.linalg.eigvalsh(root[..., :, None] * matrix * root[..., None, :])[..., 0]
    torch.testing.assert_close(predicted.settling, torch.exp(-5 * slowest), rtol=1e-9, atol=0)
    assert 0.5 < error / rms(predicted.settling) <= 1.0


def test_converters() -> None:
    error, predicted = measured(MachineSpec(name="m", tau=TAU, drive_bits=8, read_bits=8), LONG)
    assert 0.3 < error / rms(predicted.conversion) < 1.5


def test_a_faulty_machine_is_predicted_as_the_one_that_works() -> None:
    machine = Machine(MachineSpec(name="m", tau=TAU, matrix_bits=8))
    values = torch.tensor([[0.1, 1.0]], dtype=torch.float64)
    one, other = (predict(m, values, LONG, 1.0).total for m in (machine, Faulty(machine, Fault.LATE, rate=0.5)))
    assert torch.equal(one, other)


def test_warns_of_the_worst_member_only_if_it_is_useless() -> None:
    warn_if_useless(torch.tensor([0.05, 0.09]), torch.tensor([1.0, 2.0]), "cause", "remedy")
    with pytest.warns(
        InaccuracyWarning, match=r"condition number 2.0e\+00: the predicted relative error is 2.0e-01 \(cause\); remedy"
    ):
        warn_if_useless(torch.tensor([0.05, 0.2]), torch.tensor([1.0, 2.0]), "cause", "remedy")
    with pytest.warns(InaccuracyWarning, match="is nan"):
        warn_if_useless(torch.tensor([torch.nan]), torch.tensor([2.0]), "cause", "remedy")
