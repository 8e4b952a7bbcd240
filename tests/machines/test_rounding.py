"""The simulated largest condition number is where independent matrices are off by half."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heatbath.machines import MachineSpec, figures
from heatbath.machines.rounding import simulated_condition
from tests.machines.truth import spd


@pytest.mark.parametrize("bits", [6, 9])
def test_errors_are_below_half_before_and_above_half_after(bits: int, generator: torch.Generator) -> None:
    spec, n = MachineSpec(name="m", tau=1e-6, matrix_bits=bits), 24
    found = simulated_condition(spec, cells=n, generator=generator)
    assert found is not None
    errors = {}
    for factor in (0.25, 4.0):
        matrix = spd(n, factor * found, seed=7, stack=(9,)).numpy()
        full = np.abs(matrix).max((1, 2), keepdims=True)
        top = 2 ** (bits - 1) - 1
        held = np.round(matrix / full * top) / top * full
        exact = np.linalg.inv(matrix)
        error = np.linalg.norm(np.linalg.inv(held) - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
        errors[factor] = np.median(np.where(np.linalg.eigvalsh(held)[:, 0] > 0, error, np.inf))
    assert errors[0.25] < 0.5 < errors[4.0]
    assert found > figures(spec, cells=n, condition=2.0).largest_condition  # the rule is on the safe side


def test_a_machine_without_errors_has_no_limit(generator: torch.Generator) -> None:
    assert simulated_condition(MachineSpec(name="m", tau=1e-6), cells=8, generator=generator) is None


def test_sizes_are_checked(generator: torch.Generator) -> None:
    spec = MachineSpec(name="m", tau=1e-6, cells=8)
    for cells in (1, 9):
        with pytest.raises(ValueError, match=f"cells must be 2 to 8 on machine 'm', got {cells}"):
            simulated_condition(spec, cells=cells, generator=generator)
