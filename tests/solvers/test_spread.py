"""Inverses read from a coarse machine, where many features share one eigenvalue far above the rest.

M = I + (κ − 1) u uᵀ with entries of u all ±1/√n, as the output factor of many pixels that rise and fall together:
M⁻¹ = I − (1 − 1/κ) u uᵀ has entries of about ±1/n beside ones.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heatbath.machines import Machine, with_bits
from heatbath.machines.converters import lsb
from heatbath.operators import Dense
from heatbath.solvers import Cholesky, CosineVectors, Guarded, Outcome, ThermodynamicInverse, UnitVectors
from heatbath.solvers.guarded import overshoot
from heatbath.work import Job, Work, elementwise
from tests.zoo import IDEAL, LONG

SIZE, KAPPA, BITS = 300, 30.0, 8


U = (torch.randint(0, 2, (SIZE,), generator=torch.Generator().manual_seed(0)).double() * 2 - 1) / math.sqrt(SIZE)


def crowd() -> Tensor:
    return torch.eye(SIZE, dtype=torch.float64) + (KAPPA - 1) * U.outer(U)


def reader(readout: CosineVectors | UnitVectors) -> ThermodynamicInverse:
    """Only the read converter is coarse."""
    return ThermodynamicInverse(Machine(with_bits(IDEAL.spec, matrix=None, drive=None, read=BITS)), readout)


def along_the_crowd(inverse: Tensor) -> float:
    """κ uᵀXu, which is 1 for the exact inverse."""
    return float(KAPPA * U @ inverse @ U)


def test_unit_vectors_read_small_entries_as_zero_and_go_too_far_along_the_large_eigenvalue(generator: torch.Generator) -> None:
    """All n(n − 1) entries of ±(1 − 1/κ)/n lie below LSB/2 = 2^−bits, so X = I − … ≈ I, and κ uᵀXu ≈ κ."""
    assert (1 - 1 / KAPPA) / SIZE < 2.0**-BITS
    state, _ = reader(UnitVectors(LONG)).prepare(Dense(crowd()), generator=generator)
    inverse = state.operator.dense()
    assert (inverse - torch.diag(inverse.diagonal())).abs().max() == 0
    assert along_the_crowd(inverse) == pytest.approx(KAPPA, rel=0.02)


def test_cosine_vectors_read_it_as_well_as_their_rounding_as_noise_allows(generator: torch.Generator) -> None:
    """X = Cᵀ(Y + E), E of variance (LSB r)²/12: uᵀXu has standard error LSB r/√12.

    The range r is a power of two times the peak √(2/n) of the wave driven, of which the answer's peak is about 1: so 2 at most.
    """
    state, _ = reader(CosineVectors(LONG)).prepare(Dense(crowd()), generator=generator)
    standard_error = KAPPA * float(lsb(BITS)) * 2 * math.sqrt(2 / SIZE) / math.sqrt(12)
    assert abs(along_the_crowd(state.operator.dense()) - 1) < 4 * standard_error


def test_the_transform_back_is_the_transposed_matrix_of_drives() -> None:
    for n in (1, 2, 7, 16):
        answers = torch.randn(2, n, n, dtype=torch.float64)
        drives = CosineVectors().drives(answers)
        torch.testing.assert_close(drives @ drives.mT, torch.eye(n, dtype=torch.float64))
        found, work = CosineVectors().inverse(answers)
        torch.testing.assert_close(found, drives.mT @ answers)
        assert work == Work.of(elementwise(2 * n * n, round(2.5 * math.log2(2 * n)) + 1), 2)


def test_an_inverse_that_goes_too_far_is_tried_again_falls_back_and_is_counted(generator: torch.Generator) -> None:
    stack = Dense(torch.stack((crowd(), torch.eye(SIZE, dtype=torch.float64))))
    solver = Guarded(reader(UnitVectors(LONG)))
    state, work = solver.prepare(stack, generator=generator)
    assert state.outcome.tolist() == [Outcome.FELL_BACK.code, Outcome.SOLVED.code]
    assert state.rise[1] == 0
    drives = sum(job.drives * count for job, count in work.jobs.items() if isinstance(job, Job))
    assert drives == (2 + 4) * SIZE  # the member that failed was asked again once as it is, and three times damped
    rhs = torch.ones(2, SIZE, dtype=torch.float64)
    solution = solver.solve(state, rhs, generator=generator)
    exact = Cholesky().solve(Cholesky().prepare(stack)[0], rhs)
    torch.testing.assert_close(solution.value[0], exact.value[0])
    unchecked, _ = Guarded(reader(UnitVectors(LONG)), overshoot=None).prepare(stack, generator=generator)
    assert unchecked.outcome.tolist() == [Outcome.SOLVED.code] * 2


def test_overshoot_is_the_largest_distance_of_an_eigenvalue_of_xm_from_one(generator: torch.Generator) -> None:
    basis = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=generator)).Q
    values = torch.linspace(1, 50, 20, dtype=torch.float64)
    found = []
    for outlier in (3.0, -1.5, 1.4):
        distances = torch.full((20,), 0.1, dtype=torch.float64)
        distances[7] = outlier - 1
        matrix, inverse = (basis * values) @ basis.mT, (basis * ((1 + distances) / values)) @ basis.mT
        found.append(float(overshoot(Dense(inverse), Dense(matrix))[0]))
        assert found[-1] <= abs(outlier - 1) * (1 + 1e-12)  # from below
    assert found == pytest.approx([2.0, 2.5, 0.4], rel=1e-2)


def test_no_overshoot_of_an_exact_inverse() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    assert float(overshoot(Dense(torch.linalg.inv(matrix)), Dense(matrix))[0]) == 0


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_an_overshoot_that_is_not_positive_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="overshoot must be positive, got"):
        Guarded(Cholesky(), overshoot=limit)
