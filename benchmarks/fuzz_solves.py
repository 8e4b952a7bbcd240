"""Linear systems of any scale, condition, layout and batch, for `fuzz.py`.

What is called solved is finite, and nearer to LAPACK's float64 answer than the stated error.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fuzz_cases import Case
from torch import Tensor

import heatbath as hb
from heatbath.machines import MachineSpec
from heatbath.solvers import (
    Cholesky,
    ConjugateGradient,
    Fluctuations,
    Guarded,
    NewtonSchulz,
    Refined,
    Solver,
    ThermodynamicInverse,
    ThermodynamicSolve,
)
from heatbath.solvers.linalg import Result

MACHINES = (
    hb.load_machine("tngd-2024"),
    hb.with_bits(hb.load_machine("tngd-2024"), matrix=4, drive=4, read=4),
    MachineSpec(name="noisy", tau=1e-6, noise_volts_rms=0.05, matrix_bits=8, gain_mismatch=0.02, dead_cells=0.05),
    MachineSpec(name="ideal", tau=1e-6),
)


def solver(dice: random.Random) -> dict[str, Any]:  # keyword arguments of `hb.linalg`
    """A solver, a machine, or neither."""
    machine = hb.Machine(dice.choice(MACHINES))
    driven = ThermodynamicSolve(machine)
    digital: list[Solver[Any]] = [Cholesky(), Cholesky(double=True), NewtonSchulz(), ConjugateGradient()]
    analog: list[Solver[Any]] = [
        Refined(driven),
        Refined(driven, tolerance=1e-3),
        Guarded(driven),
        Guarded(driven, residual_tolerance=0.1),
        ThermodynamicInverse(machine),
        ConjugateGradient(preconditioner=driven),
    ]
    if machine.spec.noise:
        analog.append(Guarded(ThermodynamicInverse(machine, Fluctuations(200, 1e-5, 1e-4))))
    return dice.choice([{}, {"machine": machine}, {"solver": dice.choice(digital)}, {"solver": dice.choice(analog)}])


def tensors(dice: random.Random, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A stack of matrices and rows for them."""
    stack, n = dice.choice(((), (), (1,), (3,), (2, 2))), dice.choice((1, 2, 3, 5, 8))
    batch = dice.choice(((), (1,), (3,), (2, 2), (0,)))
    dtype = dice.choice((torch.float32, torch.float64))
    reach = 30 if dtype is torch.float32 else 250
    exponents = torch.linspace(0, -dice.choice((0.0, 0.5, 1.0, 3.0, 6.0)), n, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(*stack, n, n, generator=generator, dtype=torch.float64)).Q
    size = 10.0 ** (dice.choice((0, 0, 0, dice.uniform(-reach, reach))))
    matrix = (basis * 10**exponents) @ basis.mT
    matrix = (0.5 * (matrix + matrix.mT) * size).to(dtype)
    rows = torch.randn(*stack, *batch, n, generator=generator, dtype=torch.float64)
    rows = (rows * 10.0 ** (dice.choice((0, 0, dice.uniform(-reach, reach))))).to(dtype)
    fate = dice.random()
    if fate < 0.05:
        rows = torch.zeros_like(rows)
    elif fate < 0.1 and rows.numel():
        rows[..., 0] = dice.choice((torch.nan, torch.inf, 0.0))
    elif fate < 0.15:
        matrix = -matrix
    elif fate < 0.2:
        rows = rows.to(torch.float16)
    elif fate < 0.3:
        rows = torch.stack([rows, rows], -1)[..., 0]  # strided
    elif fate < 0.32 and rows.numel():
        rows = rows[..., :-1]
    return matrix, rows


def holds(result: Result, matrix: Tensor, exact: Tensor) -> bool:
    """Whether a result is finite and within its stated error, or does not call itself solved."""
    if not result.solved:
        return True
    stack = result.error.ndim
    ends = torch.linalg.eigvalsh(matrix.double())[..., [0, -1]]
    peak = exact.abs().amax() if exact.numel() else torch.ones(())
    scale = torch.where(peak > 0, peak, 1.0)
    off = ((result.value.double() - exact) / scale).unsqueeze(-1).flatten(stack).norm(dim=-1)
    size = (exact / scale).unsqueeze(-1).flatten(stack).norm(dim=-1)
    rounding = 100 * torch.finfo(torch.float64).eps * (ends[..., 1] / ends[..., 0]) * size  # of LAPACK's own answer
    within = off <= result.error.double() / scale * (1 + 1e-6) + rounding
    return bool(torch.isfinite(result.value).all()) and bool(within.all())


def solved(seed: int) -> Callable[[], bool]:
    """Solves or inverts one random system."""

    def run() -> bool:
        dice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        matrix, rows = tensors(dice, generator)
        how = solver(dice)
        verb = dice.choice(("solve", "solve", "inv", "logdet"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hb.linalg.InaccuracyWarning)
            if verb == "logdet":
                result = hb.linalg.logdet(matrix, **how, generator=generator)
                return not result.solved or bool(torch.isfinite(result.value).all())
            if verb == "inv":
                result = hb.linalg.inv(matrix, **how, generator=generator)
                return holds(result, matrix, torch.linalg.inv(matrix.double()))
            result = hb.linalg.solve(matrix, rows, **how, generator=generator)
        exact = (rows.double().unsqueeze(-2) @ torch.linalg.inv(_over(matrix, rows).double())).squeeze(-2)
        return holds(result, matrix, exact)

    return run


def _over(matrix: Tensor, rows: Tensor) -> Tensor:
    """The matrices with as many dimensions as the rows have, and one."""
    extra = rows.ndim + 1 - matrix.ndim
    return matrix.reshape(*matrix.shape[:-2], *(1,) * extra, *matrix.shape[-2:])


def cases(count: int, seed: int) -> Iterator[Case]:
    """Linear systems."""
    for k in range(count):
        number = seed * 1_000_000 + k
        yield Case(f"system {number}", solved(number))
