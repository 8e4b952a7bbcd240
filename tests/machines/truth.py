"""Independent, slow truths for the machine: linear stochastic differential equations by Van Loan's
matrix exponential in short steps."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch

from heatbath.machines import Machine, MachineSpec
from heatbath.machines.oracle import oracle

STEP = 0.125


def spd(n: int, condition: float, *, seed: int = 0, stack: tuple[int, ...] = ()) -> torch.Tensor:
    """Random symmetric positive definite matrices `[*stack, n, n]` with log-spaced eigenvalues from 1/condition to 1."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(*stack, n, n, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.mT


def hold(
    matrix: torch.Tensor, spec: MachineSpec, serial: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the cells of an emulated machine hold over full scale, the scale, and the number of clipped entries."""
    programmed = Machine(spec, serial).program(matrix, check=False, generator=generator)
    return oracle(programmed).conductance, programmed.scale, programmed.clipped


class LinearProcess:
    """dz = (F z + g) dt + B dW with B Bᵀ = D: mean and covariance of z, moved on in short steps."""

    def __init__(self, start: np.ndarray, covariance: np.ndarray | None = None) -> None:
        self.mean = np.array(start, dtype=float)
        self.covariance = np.zeros((len(start), len(start))) if covariance is None else np.array(covariance, dtype=float)

    def advance(self, drift: np.ndarray, push: np.ndarray, diffusion: np.ndarray, time: float) -> None:
        d = len(push)
        steps = max(1, int(np.ceil(time * max(1.0, np.abs(drift).sum(1).max()) / STEP)))
        h = time / steps
        block = np.zeros((2 * d, 2 * d))
        block[:d, :d], block[:d, d:], block[d:, d:] = -drift, diffusion, drift.T
        exponential = scipy.linalg.expm(block * h)  # Van Loan 1978, theorem 1
        carry = exponential[d:, d:].T
        noise = carry @ exponential[:d, d:]
        affine = np.zeros((d + 1, d + 1))
        affine[:d, :d], affine[:d, d] = drift, push
        gain = scipy.linalg.expm(affine * h)[:d, d]
        for _ in range(steps):
            self.mean = carry @ self.mean + gain
            self.covariance = carry @ self.covariance @ carry.T + noise


def reading(
    drift: np.ndarray,
    push: np.ndarray,
    diffusion: np.ndarray,
    *,
    start: np.ndarray,
    start_covariance: np.ndarray | None = None,
    burn_in: float,
    duration: float,
    reads: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[2d]` and covariance `[2d, 2d]` of (reading of the state, state at the end) of dz = (F z + g) dt + B dW."""
    d = len(push)
    process = LinearProcess(start, start_covariance)
    if burn_in > 0:
        process.advance(drift, push, diffusion, burn_in)
    both = LinearProcess(np.concatenate([np.zeros(d), process.mean]), np.zeros((2 * d, 2 * d)))
    both.covariance[d:, d:] = process.covariance
    zero = np.zeros((d, d))
    wide_push, wide_diffusion = np.concatenate([np.zeros(d), push]), np.block([[zero, zero], [zero, diffusion]])
    if reads is None:
        both.advance(np.block([[zero, np.eye(d)], [zero, drift]]), wide_push, wide_diffusion, duration)
        weight = duration
    else:
        take = np.block([[np.eye(d), np.eye(d)], [zero, np.eye(d)]])
        for _ in range(reads):
            both.mean, both.covariance = take @ both.mean, take @ both.covariance @ take.T
            if duration > 0:
                both.advance(np.block([[zero, zero], [zero, drift]]), wide_push, wide_diffusion, duration / reads)
        weight = float(reads)
    scale = np.concatenate([np.full(d, 1 / weight), np.ones(d)])
    return scale * both.mean, scale[:, None] * both.covariance * scale


def machine_reading(
    held: np.ndarray,
    drive: np.ndarray,
    *,
    noise: float,
    burn_in: float,
    duration: float,
    reads: int | None,
    start: np.ndarray | None = None,
    speed: np.ndarray | None = None,
    loudness: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (reading, end state) of τ dx = −P(Âx − b̂)dt + sqrt(2τPD/β) dW, times in units of τ."""
    n = len(drive)
    p = np.ones(n) if speed is None else speed
    loud = np.ones(n) if loudness is None else loudness
    return reading(
        -p[:, None] * held,
        p * drive,
        np.diag(2 * noise * p * loud),
        start=np.zeros(n) if start is None else start,
        burn_in=burn_in,
        duration=duration,
        reads=reads,
    )


def worst_z(samples: torch.Tensor, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Largest |z| of the means, variances and covariances of Gaussian samples `[N, d]` against their predictions."""
    count = samples.shape[0]
    x = samples.double().numpy() - mean
    z_mean = x.mean(0) / np.sqrt(np.diag(covariance) / count)
    products = x.T @ x / count
    error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / count)
    return float(max(np.abs(z_mean).max(), np.abs((products - covariance) / error).max()))
