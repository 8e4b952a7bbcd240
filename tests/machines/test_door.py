"""What a machine refuses, before any work."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import Machine, MachineSpec, Schedule, load_machine
from heatbath.machines.oracle import oracle

SCHEDULE = Schedule(1e-5, 1e-6)


@pytest.mark.parametrize(
    "matrix,error,message",
    [
        ([[1.0]], TypeError, "the matrix must be a torch.Tensor, got list"),
        (
            torch.eye(2).half(),
            TypeError,
            r"the matrix must be float32 or float64, got torch.float16; convert it with .float\(\) or .double\(\)",
        ),
        (torch.eye(2).long(), TypeError, "the matrix must be float32 or float64, got torch.int64"),
        (torch.ones(3), ValueError, r"must be square, \[\*stack, n, n\], got shape \(3,\)"),
        (torch.ones(3, 4), ValueError, r"must be square, \[\*stack, n, n\], got shape \(3, 4\)"),
        (torch.ones(0, 0), ValueError, r"must be square, \[\*stack, n, n\], got shape \(0, 0\)"),
        (
            torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
            ValueError,
            r"not symmetric: \|A − Aᵀ\| reaches 5.0e-01 of its largest entry; use",
        ),
        (
            torch.full((2, 2), torch.nan),
            ValueError,
            "the matrix holds 4 entries that are NaN or inf, of 4; look at what it was made from",
        ),
        (torch.full((2, 2), torch.inf), ValueError, "the matrix holds 4 entries that are NaN or inf"),
        (
            torch.eye(9),
            ValueError,
            "a matrix of size 9 needs 9 cells, machine 'spu-2023' has 8; use a larger machine, split the matrix into blocks",
        ),
    ],
)
def test_bad_matrices_are_refused(matrix: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Machine(load_machine("spu-2023")).program(matrix)  # type: ignore[arg-type]


def test_rounding_asymmetry_is_not_refused() -> None:
    matrix = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    gram = matrix.mT @ matrix + torch.eye(30)
    gram = gram + 1e-6 * gram.abs().max() * torch.randn(30, 30, generator=torch.Generator().manual_seed(1))
    programmed = Machine(load_machine("ideal")).program(gram)
    assert torch.equal(oracle(programmed).conductance, oracle(programmed).conductance.mT)


@pytest.mark.parametrize(
    "drive,extra,error,message",
    [
        ([1.0, 2.0], {}, TypeError, "drive must be a torch.Tensor, got list"),
        (torch.ones(2, 3).double(), {}, TypeError, "drive is torch.float64, the programmed matrix torch.float32; convert one"),
        (torch.ones(3), {}, ValueError, r"drive must have shape \[2, \*batch, 3\] for this stack of matrices, got \(3,\)"),
        (torch.ones(4, 3), {}, ValueError, r"drive must have shape \[2, \*batch, 3\]"),
        (torch.ones(2, 5, 4), {}, ValueError, r"drive must have shape \[2, \*batch, 3\]"),
        (torch.ones(2, 3, device="meta"), {}, ValueError, "drive is on meta, the programmed matrix on cpu; move one of them"),
        (torch.ones(2, 5, 3), {"start": torch.ones(2, 3)}, ValueError, r"start must have the shape of drive, \(2, 5, 3\), got"),
        (torch.ones(2, 3), {"guess": torch.ones(2, 3).double()}, TypeError, "guess is torch.float64"),
        (
            torch.ones(2, 3),
            {"guess": torch.ones(2, 3), "start": torch.ones(2, 3)},
            ValueError,
            r"give either start \(voltages\) or guess \(a solution\), got both",
        ),
    ],
)
def test_bad_drives_are_refused(drive: object, extra: dict, error: type, message: str) -> None:
    machine = Machine(load_machine("ideal"))
    programmed = machine.program(torch.eye(3).expand(2, 3, 3))
    with pytest.raises(error, match=message):
        machine.run(programmed, drive, schedule=SCHEDULE, **extra)  # type: ignore[arg-type]


def test_bad_machines_are_refused() -> None:
    with pytest.raises(
        TypeError,
        match=r"needs a MachineSpec, or a Device with spec, load and run, got 'tngd-2024'; load one: Machine\(load_machine",
    ):
        Machine("tngd-2024")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"serial and tolerance must be 0 or more, got -1 and 0\.01"):
        Machine(MachineSpec(name="m", tau=1e-6), serial=-1)
    with pytest.raises(ValueError, match="serial and tolerance must be 0 or more"):
        Machine(MachineSpec(name="m", tau=1e-6), tolerance=-0.1)
