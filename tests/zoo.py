"""Tables of things. A new row meets every law in `tests/laws.py`; `tests/test_laws.py` brings the two together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heatbath.machines import Machine, MachineSpec, Schedule, presets, with_bits
from heatbath.operators import Dense, DenseRoot, Diagonal, Gram, Kronecker, Operator
from heatbath.optim import KFAC, Policy, Unclipped
from heatbath.solvers import (
    Averaged,
    Blocked,
    Cholesky,
    ConjugateGradient,
    CosineVectors,
    Crossbar,
    Eigen,
    Factorwise,
    Fluctuations,
    Full,
    Guarded,
    Jacobi,
    NewtonSchulz,
    Refined,
    SmallSide,
    Solver,
    ThermodynamicInverse,
    ThermodynamicSolve,
    UnitVectors,
)

TAU = 1e-6
LONG = Schedule(burn_in=2000 * TAU, duration=100 * TAU)  # at λ_min = 0.02 a start has decayed to e⁻⁴⁰

MACHINES: dict[str, MachineSpec] = {
    **presets(),
    "tngd-2024 at 8 bits": with_bits(presets()["tngd-2024"], matrix=8, drive=8, read=8),
}
IDEAL = Machine(MACHINES["ideal"])
SIXTEEN = Machine(MACHINES["tngd-2024"])
EIGHT = Machine(MACHINES["tngd-2024 at 8 bits"])
SMALL = Machine(MachineSpec(name="two cells", tau=TAU, cells=2))
ROUNDED = Machine(MachineSpec(name="stochastically rounded", tau=TAU, matrix_bits=8, stochastic_rounding=True))
NOISY = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=1e-3))


# --- operators -------------------------------------------------------------------------------------------------------


def spd(*stack: int, n: int, condition: float = 10.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random SPD matrices `[*stack, n, n]` with eigenvalues log-spaced from 1 down to 1/condition."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(*stack, n, n, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ basis.mT
    return (0.5 * (matrix + matrix.mT)).to(dtype)


def _dense(*stack: int, n: int = 4, seed: int = 0) -> Dense:
    return Dense(spd(*stack, n=n, seed=seed))


def _diagonal(*stack: int, n: int = 4, seed: int = 0) -> Diagonal:
    return Diagonal(0.1 + torch.rand(*stack, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def _gram(*stack: int, m: int, n: int = 4, seed: int = 0) -> Gram:
    """A condition number near 10: S has singular values about 1, λ is 0.2."""
    basis = torch.randn(*stack, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Gram(DenseRoot(basis / (m + n) ** 0.5), torch.full(stack, 0.2, dtype=torch.float64))


OPERATORS: dict[str, Callable[..., Operator]] = {
    "dense": _dense,
    "diagonal": _diagonal,
    "dense ⊗ dense": lambda *stack: Kronecker(_dense(*stack, n=3), _dense(*stack, n=4, seed=1)),
    "dense ⊗ diagonal": lambda *stack: Kronecker(_dense(*stack, n=3), _diagonal(*stack, n=5, seed=1)),
    "1 × 1 ⊗ dense": lambda *stack: Kronecker(_diagonal(*stack, n=1), _dense(*stack, n=4, seed=1)),
    "tall Gram": lambda *stack: _gram(*stack, m=6),
    "wide Gram": lambda *stack: _gram(*stack, m=2),
    "shifted Kronecker": lambda *stack: Kronecker(_dense(*stack, n=3), _dense(*stack, n=2, seed=1)).shift(0.1),
}


# --- solvers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SolverRow:
    """A solver and what it promises.

    Args:
        solver: the recipe.
        operator: a row of `OPERATORS`, of condition numbers up to 100, that it takes.
        tolerance: relative error of a solution in float64 at condition number 10 a side.
        linear: solving is linear in the right-hand side up to rounding (no converters, no noise).
        noisy: draws random numbers.
        watched: answers with a usable solution whatever the matrix (`Guarded`).
    """

    solver: Solver[Any]
    operator: str = "dense"
    tolerance: float = 1e-11
    linear: bool = True
    noisy: bool = False
    watched: bool = False


# At 16 bits each entry of an equilibrated matrix errs by up to LSB/2 = 1.5e-5, so a 4 × 4 matrix by up to 6e-5 in norm; with
# λ_min > 0.05 that is 1.2e-3 of the solution, a drive's rounding 6e-4 and a reading's 3e-5 more. At 8 bits 256 times that is no
# bound any more; 0.5 says "the right direction". 4000 independent reads of 4 cells give sqrt(5/4000) = 0.035. Noise of 1e-3 and
# T = 100 τ: rel² = 2·1e-6/100·tr Â⁻²/‖Â⁻¹b̂‖² < (3e-3)².
SOLVERS: dict[str, SolverRow] = {
    "Cholesky": SolverRow(Cholesky()),
    "Cholesky, double": SolverRow(Cholesky(double=True)),
    "Cholesky of a diagonal": SolverRow(Cholesky(), "diagonal"),
    "Eigen": SolverRow(Eigen()),
    "Eigen of a diagonal": SolverRow(Eigen(), "diagonal"),
    "Eigen of a Kronecker product": SolverRow(Eigen(), "dense ⊗ dense"),
    "Eigen of a half-diagonal product": SolverRow(Eigen(), "dense ⊗ diagonal"),
    "Eigen, exactly damped": SolverRow(Eigen(), "shifted Kronecker"),
    "Factorwise(Cholesky)": SolverRow(Factorwise(Cholesky()), "dense ⊗ dense"),
    "Factorwise(Cholesky), half diagonal": SolverRow(Factorwise(Cholesky()), "dense ⊗ diagonal"),
    "Factorwise(Cholesky), 1 × 1": SolverRow(Factorwise(Cholesky()), "1 × 1 ⊗ dense"),
    "Guarded(Cholesky)": SolverRow(Guarded(Cholesky()), watched=True),
    "Factorwise(Guarded(Cholesky))": SolverRow(Factorwise(Guarded(Cholesky())), "dense ⊗ dense", watched=True),
    "ThermodynamicSolve, ideal": SolverRow(ThermodynamicSolve(IDEAL, LONG), tolerance=1e-9),
    "ThermodynamicSolve, warm": SolverRow(ThermodynamicSolve(IDEAL, LONG, warm_start=True), tolerance=1e-9),
    "ThermodynamicInverse, ideal": SolverRow(ThermodynamicInverse(IDEAL, UnitVectors(LONG)), tolerance=1e-9),
    "ThermodynamicInverse, cosines": SolverRow(ThermodynamicInverse(IDEAL, CosineVectors(LONG)), tolerance=1e-9),
    "ThermodynamicInverse, warm": SolverRow(ThermodynamicInverse(IDEAL, UnitVectors(LONG, warm_start=True)), tolerance=1e-9),
    "ThermodynamicSolve, 16 bits": SolverRow(ThermodynamicSolve(SIXTEEN, LONG), tolerance=2e-3, linear=False, noisy=True),
    "ThermodynamicInverse, cosines, 16 bits": SolverRow(
        ThermodynamicInverse(SIXTEEN, CosineVectors(LONG)), tolerance=2e-3, noisy=True
    ),
    "ThermodynamicInverse, 16 bits": SolverRow(ThermodynamicInverse(SIXTEEN, UnitVectors(LONG)), tolerance=2e-3, noisy=True),
    "ThermodynamicSolve, noisy": SolverRow(ThermodynamicSolve(NOISY, LONG), tolerance=1.5e-2, linear=False, noisy=True),
    "ThermodynamicInverse, fluctuations": SolverRow(
        ThermodynamicInverse(NOISY, Fluctuations(reads=4000, interval=100 * TAU, burn_in=2000 * TAU)), tolerance=0.2, noisy=True
    ),
    "Factorwise(Guarded(ThermodynamicSolve, 8 bits))": SolverRow(
        Factorwise(Guarded(ThermodynamicSolve(EIGHT, LONG))), "dense ⊗ dense", 0.5, linear=False, noisy=True, watched=True
    ),
    "Factorwise(ThermodynamicSolve, warm)": SolverRow(
        Factorwise(ThermodynamicSolve(IDEAL, LONG, warm_start=True)), "dense ⊗ dense", tolerance=1e-8
    ),
    "Jacobi of a diagonal": SolverRow(Jacobi(), "diagonal"),
    "ConjugateGradient": SolverRow(ConjugateGradient(tolerance=1e-13)),
    "ConjugateGradient, matrix-free": SolverRow(ConjugateGradient(tolerance=1e-13), "shifted Kronecker"),
    "ConjugateGradient, Jacobi": SolverRow(ConjugateGradient(tolerance=1e-13, preconditioner=Jacobi()), "dense ⊗ dense"),
    "NewtonSchulz": SolverRow(NewtonSchulz()),
    "Factorwise(NewtonSchulz)": SolverRow(Factorwise(NewtonSchulz()), "dense ⊗ dense"),
    "Crossbar, ideal": SolverRow(Crossbar(IDEAL, settle_seconds=2.0**-6), tolerance=1e-9),
    "Refined(ThermodynamicSolve, 16 bits)": SolverRow(
        Refined(ThermodynamicSolve(SIXTEEN, LONG), sweeps=4), tolerance=1e-11, linear=False, noisy=True
    ),
    "Factorwise(Guarded(Refined(ThermodynamicSolve, 8 bits)))": SolverRow(
        Factorwise(Guarded(Refined(ThermodynamicSolve(EIGHT, LONG)))),
        "dense ⊗ dense",
        0.1,
        linear=False,
        noisy=True,
        watched=True,
    ),
    "Averaged(ThermodynamicSolve)": SolverRow(Averaged(ThermodynamicSolve(ROUNDED, LONG)), tolerance=0.1, noisy=True),
    "SmallSide, tall": SolverRow(SmallSide(), "tall Gram"),
    "SmallSide, wide": SolverRow(SmallSide(), "wide Gram"),
    "SmallSide(ThermodynamicSolve), wide": SolverRow(
        SmallSide(ThermodynamicSolve(IDEAL, LONG, warm_start=True)), "wide Gram", tolerance=1e-8
    ),
    "Refined(SmallSide), wide": SolverRow(Refined(SmallSide(), sweeps=1), "wide Gram"),
    "ConjugateGradient of a Gram matrix": SolverRow(ConjugateGradient(tolerance=1e-13), "wide Gram"),
    "Full(Cholesky) of a Gram matrix": SolverRow(Full(Cholesky()), "wide Gram"),
    "Full(ThermodynamicSolve), exactly damped": SolverRow(
        Full(ThermodynamicSolve(IDEAL, LONG, warm_start=True)), "shifted Kronecker", tolerance=1e-8
    ),
    "Blocked(Cholesky)": SolverRow(Blocked(Cholesky(), cells=2)),
    "Blocked(ThermodynamicSolve) on two cells": SolverRow(Blocked(ThermodynamicSolve(SMALL, LONG), cells=2), tolerance=1e-8),
}


# --- optimizers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerRow:
    """A method: a constructor's options.

    Args:
        solver: for the damped factors; None: the default.
        exact: no converters and no noise, so trajectories of equal problems are equal up to rounding.
        watched: goes on where its solver fails.
    """

    solver: Solver[Any] | None = None
    exact: bool = True
    watched: bool = False

    def make(self, model: nn.Module, **options: Any) -> KFAC:
        """The optimizer, with a generator of its own."""
        return KFAC(model, solver=self.solver, generator=torch.Generator().manual_seed(5), **options)


OPTIMIZERS: dict[str, OptimizerRow] = {
    "kfac": OptimizerRow(),
    "kfac, Eigen": OptimizerRow(Eigen()),
    "kfac, Guarded(Cholesky)": OptimizerRow(Guarded(Cholesky()), watched=True),
    "kfac, ideal ThermodynamicInverse": OptimizerRow(ThermodynamicInverse(IDEAL, UnitVectors(LONG)), watched=True),
    "kfac, ideal ThermodynamicSolve": OptimizerRow(ThermodynamicSolve(IDEAL, LONG), watched=True),
    "kfac, ThermodynamicInverse at 8 bits": OptimizerRow(ThermodynamicInverse(EIGHT), exact=False, watched=True),
    "kfac, ThermodynamicSolve at 8 bits": OptimizerRow(ThermodynamicSolve(EIGHT, warm_start=True), exact=False, watched=True),
    "kfac, noisy ThermodynamicSolve": OptimizerRow(ThermodynamicSolve(NOISY), exact=False, watched=True),
}

PLAIN = Policy(factor_every=1, refresh_every=1, patience=0, trust=Unclipped())  # nothing between the gradient and the step


# --- layers ----------------------------------------------------------------------------------------------------------


class _First(nn.Module):
    """The first output of a module that returns several."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class _SelfAttention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x)[0]


@dataclass(frozen=True)
class LayerRow:
    """A layer, alone in a network that puts one number per example out of it.

    Args:
        make: the layer, batch first.
        shape: of one example.
        tokens: 0, or inputs are integers below this.
        per_example: an example's output does not depend on the rest of its batch.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int = 0
    per_example: bool = True

    def model(self, seed: int = 0) -> nn.Module:
        """The layer in float64 with fixed weights."""
        module = self.make().double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            parameter.data.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return module

    def batch(self, examples: int, seed: int = 1) -> Tensor:
        """Inputs `[examples, *shape]`."""
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(self.tokens, (examples, *self.shape), generator=generator)
        return torch.randn(examples, *self.shape, generator=generator, dtype=torch.float64)


LAYERS: dict[str, LayerRow] = {
    "linear": LayerRow(lambda: nn.Linear(3, 2), (3,)),
    "linear, no bias": LayerRow(lambda: nn.Linear(3, 2, bias=False), (3,)),
    "linear, positions": LayerRow(lambda: nn.Linear(3, 2), (2, 4, 3)),
    "conv1d": LayerRow(lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "conv2d": LayerRow(lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 5, 4)),
    "conv2d, grouped": LayerRow(lambda: nn.Conv2d(4, 6, 2, groups=2, bias=False), (4, 3, 4)),
    "conv3d": LayerRow(lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 2)),
    "conv transpose": LayerRow(lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 3, 2)),
    "embedding": LayerRow(lambda: nn.Embedding(5, 3, padding_idx=0), (4,), tokens=5),
    "embedding bag": LayerRow(lambda: nn.EmbeddingBag(5, 3, mode="mean"), (4,), tokens=5),
    "layer norm": LayerRow(lambda: nn.LayerNorm(3), (4, 3)),
    "rms norm": LayerRow(lambda: nn.RMSNorm(3), (4, 3)),
    "group norm": LayerRow(lambda: nn.GroupNorm(2, 4), (4, 3)),
    "batch norm": LayerRow(lambda: nn.BatchNorm1d(3), (3, 4), per_example=False),
    "attention": LayerRow(_SelfAttention, (3, 4)),
    "rnn": LayerRow(lambda: _First(nn.RNN(3, 2, batch_first=True)), (4, 3)),
    "lstm": LayerRow(lambda: _First(nn.LSTM(3, 2, batch_first=True, bidirectional=True)), (4, 3)),
    "gru": LayerRow(lambda: _First(nn.GRU(3, 2, batch_first=True, num_layers=2)), (4, 3)),
}
