"""Bad input is refused before any work, in words that say what is wrong, what was got and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from heatbath.machines import Machine, MachineSpec
from heatbath.solvers import Cholesky, linalg
from heatbath.solvers.door import check_definite
from tests.solvers.truth import spd, with_spectrum

FEW = Machine(MachineSpec(name="few", tau=1e-6, cells=2, noise_volts_rms=1e-3))
GOOD = spd(n=3)
NAN = GOOD.clone()
NAN[0, 1] = NAN[1, 0] = torch.nan

ALL = [
    lambda a, **options: linalg.solve(a, torch.ones(3, dtype=torch.float64), **options),
    linalg.inv,
    linalg.logdet,
    lambda a, **options: linalg.lyapunov(a, GOOD, **options),
    lambda a, **options: linalg.expm_neg(a, 1.0, **options),
]


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize(
    "matrix,error,message",
    [
        (np.eye(3), TypeError, r"the matrix must be a torch.Tensor, got ndarray"),
        (
            torch.eye(3, dtype=torch.int64),
            TypeError,
            r"must be float32 or float64, got torch.int64; convert it with .float\(\)",
        ),
        (torch.eye(3, dtype=torch.bfloat16), TypeError, r"must be float32 or float64, got torch.bfloat16"),
        (torch.ones(2, 3), ValueError, r"must be square, \[\*stack, n, n\], got shape \(2, 3\)"),
        (torch.ones(3), ValueError, r"must be square.*got shape \(3,\)"),
        (torch.ones(0, 0), ValueError, r"must be square.*got shape \(0, 0\)"),
        (NAN, ValueError, r"holds 2 entries that are NaN or inf, of 9; look at what it was made from"),
        (GOOD + torch.triu(GOOD, 1), ValueError, r"is not symmetric: \|A − Aᵀ\| reaches .* use \(A \+ Aᵀ\)/2"),
        (
            with_spectrum(torch.tensor([1.0, 0.5, -0.3])),
            ValueError,
            r"not positive definite: the eigenvalues reach from -0.3 to 1; add damping above 0.3 ",
        ),
        (with_spectrum(torch.tensor([1.0, 0.5, 0.0])) - 1e-12 * torch.eye(3), ValueError, r"is not positive definite"),
    ],
)
def test_bad_matrices_are_refused_by_every_function(function: Any, matrix: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        function(matrix)


@pytest.mark.parametrize("function", ALL)
def test_machines_are_checked_by_every_function(function: Any) -> None:
    with pytest.raises(ValueError, match=r"needs 3 cells, machine 'few' has 2; use solver=Blocked\(.*cells=2\)"):
        function(GOOD, machine=FEW)
    with pytest.raises(ValueError, match=r"give either solver= or machine=, got both"):
        function(GOOD, machine=FEW, solver=Cholesky())
    with pytest.raises(TypeError, match=r"needs a MachineSpec, or a Device with spec, load and run, got 'tngd-2024'"):
        function(GOOD, machine="tngd-2024")


def test_an_indefinite_member_is_named() -> None:
    with pytest.raises(ValueError, match=r"the eigenvalues of member 1 of the stack reach from -1 to 2"):
        check_definite(torch.tensor([[1.0, 2.0], [-1.0, 2.0]]))
    check_definite(torch.tensor([[1e-9, 2.0]]))


@pytest.mark.parametrize(
    "rhs,error,message",
    [
        (np.ones(3), TypeError, r"rhs must be a torch.Tensor, got ndarray"),
        (torch.ones(3), TypeError, r"rhs is torch.float32, the matrix torch.float64; convert one of them"),
        (torch.ones(4, dtype=torch.float64), ValueError, r"rhs must have shape \[\*batch, 3\], got \(4,\)$"),
        (torch.ones(3, 2, dtype=torch.float64), ValueError, r"got \(3, 2\); right-hand sides are rows: pass rhs.mT"),
        (torch.ones(3, dtype=torch.float64, device="meta"), ValueError, r"rhs is on meta, the matrix on cpu; move one of them"),
        (torch.full((3,), torch.inf, dtype=torch.float64), ValueError, r"rhs holds NaN or inf; look at what it was made from"),
    ],
)
def test_bad_right_hand_sides_are_refused(rhs: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        linalg.solve(GOOD, rhs)


def test_stacks_of_right_hand_sides_must_match() -> None:
    with pytest.raises(ValueError, match=r"rhs must have shape \[2, \*batch, 3\], got \(4, 3\)"):
        linalg.solve(spd(2, n=3), torch.ones(4, 3, dtype=torch.float64))


def test_a_guess_must_have_the_shape_of_the_right_hand_side() -> None:
    with pytest.raises(ValueError, match=r"guess must have the shape of rhs, \(3,\), got \(2, 3\)"):
        linalg.solve(GOOD, torch.ones(3, dtype=torch.float64), guess=torch.ones(2, 3, dtype=torch.float64))
