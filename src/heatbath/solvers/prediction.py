"""How accurate a machine will be, before it is asked: the error budget of one driven solve, and of a covariance read-out.

For a held matrix Â with eigenvalues λ, drives b̂ at full scale and typical right-hand sides (no eigenvector preferred, so that
‖x̂‖² ≈ (‖b̂‖²/n) Σ 1/λ²), relative to the solution:

    rounding     σ √(Σ 1/λ²)            σ: rms error of an entry (step/√12, write noise, gain mismatch)
    settling     max |λ·gain(λ) − 1|     what the slowest mode has not reached when it is read
    noise        √(Σ Var(λ)) / ‖x̂‖      laws (a) and (b) of `heatbath.machines`
    conversion   drive step/√12 · √n/‖b̂‖, and one step of the read converter

All are first-order, so a total near 1 means no more than "useless". Rounding, noise and conversion are right within a factor
of 2 in the mean over typical right-hand sides (entries at full scale, which are held exactly, and ranges of the read converter
are not in the formulas); settling is a bound.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heatbath.machines import Machine, MachineSpec, Schedule
from heatbath.machines.converters import lsb
from heatbath.machines.dynamics import Clock, average
from heatbath.machines.dynamics.base import READING
from heatbath.machines.dynamics.ornstein_uhlenbeck import covariance_variance
from heatbath.machines.emulator.front_end import HEADROOM, read_range
from heatbath.solvers.products import norms

DITHERING = 4  # σ per LSB from which rounding is white noise to all digits
WARN_ABOVE = 0.1  # predicted relative error above which a user is warned


class InaccuracyWarning(UserWarning):
    """The predicted error is so large that the result will hardly be of use."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted relative errors of a solve by their cause, `[*stack]`."""

    rounding: Tensor
    settling: Tensor
    noise: Tensor
    conversion: Tensor

    @property
    def total(self) -> Tensor:
        """Root of the sum of squares."""
        parts = torch.stack([self.rounding, self.settling, self.noise, self.conversion])
        return parts.square().sum(0).sqrt()


def predict(machine: Machine, values: Tensor, schedule: Schedule, drive_norm: float) -> Prediction:
    """Predict the error of driven solves.

    Args:
        machine: the machine.
        values: eigenvalues λ of what it should hold, `[*stack, n]`, float64.
        schedule: of each drive.
        drive_norm: ‖b̂‖ with entries at full scale 1: 1 for a unit vector.
    """
    spec, n = machine.spec, values.shape[-1]
    clock = Clock.of(schedule, spec.time_constant)
    moments = average(values, clock, noise=spec.noise, inertia=spec.inertia)
    inverse_norm = values.reciprocal().square().sum(-1).sqrt()
    size = drive_norm / math.sqrt(n) * inverse_norm
    conversion = 0.0 if spec.drive_bits is None else step_error(spec.drive_bits) * math.sqrt(n) / drive_norm
    if spec.read_bits is not None:
        conversion = math.hypot(conversion, float(lsb(spec.read_bits)))
    own = entry_error(replace(spec, gain_mismatch=None))
    mismatch = (spec.gain_mismatch or 0.0) * values.square().sum(-1).sqrt() / n  # relative to the rms entry, ‖Â‖_F/n
    entry = torch.hypot(torch.full_like(mismatch, own), mismatch)
    return Prediction(
        rounding=entry * inverse_norm,
        settling=(moments.gain[..., READING] * values - 1).abs().amax(-1),
        noise=moments.covariance[..., READING, READING].sum(-1).sqrt() / size,
        conversion=torch.full_like(size, conversion),
    )


def predict_covariance(machine: Machine, matrix: Tensor, *, reads: int, interval: float, burn_in: float) -> Prediction:
    """Predict the error of a covariance read-out, relative to the inverse in the Frobenius norm.

    For C = Â⁻¹/β, S = (1/k) Σ x xᵀ as converted, and w = read noise + LSB²/12:

        rounding     as of a driven solve
        settling     ‖C diag(mean of e^{−2λt} over the reads)‖ / ‖C‖
        noise        √(Σ Var S_ij) / ‖C‖, law (d) with white noise: Var S_ij + (1 + δ_ij)(w (C_ii + C_jj) + w²)/k
        conversion   ‖E S − C‖ / ‖C‖: read noise on the diagonal, what a converter makes of a Gaussian of σ per LSB
                     (E Q² = LSB² Σ_m (2m+1) P(|x| > (m+½) LSB); to first order in correlations E QQ' = g g' E xx',
                     g = Σ_m 2 LSB φ((m+½) LSB/σ)/σ), and offsets o, which add (Â⁻¹o)(Â⁻¹o)ᵀ

    Not in it: mismatch of capacitances and noises, rails, inertia (ringing correlates reads), defects.

    Args:
        machine: the machine.
        matrix: what it should hold, Â, `[*stack, n, n]`, float64.
        reads: k.
        interval: seconds between reads.
        burn_in: seconds before the first.
    """
    spec = machine.spec
    values, basis = torch.linalg.eigh(matrix)
    values = values.clamp_min(torch.finfo(values.dtype).tiny)
    covariance = (basis * (spec.noise / values).unsqueeze(-2)) @ basis.mT
    size = norms(covariance, matrix.ndim - 2)
    inverse_norm = norms(values.reciprocal(), values.ndim - 1)
    step, dt = spec.time_constant, interval / spec.time_constant
    decay = torch.exp(-2 * values * dt)
    left = torch.exp(-2 * values * burn_in / step) * -torch.expm1(-2 * values * dt * reads) / (reads * (1 - decay))
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    read, gain, white = _converted_moments(diagonal, spec)
    shift = gain.unsqueeze(-1) * covariance * gain.unsqueeze(-2) - covariance
    bias = shift - torch.diag_embed(shift.diagonal(dim1=-2, dim2=-1)) + torch.diag_embed(read - diagonal)
    offset = (spec.offset_mismatch or 0.0) ** 2 * inverse_norm.square()
    thermal = covariance_variance(values, interval=dt, reads=reads, noise=spec.noise).sum((-2, -1))
    total, extra = diagonal.sum(-1), white.sum(-1)
    mixed = 2 * (total * extra + (diagonal * white).sum(-1)) + extra.square() + white.square().sum(-1)
    entry = predict(machine, values, Schedule(burn_in, interval, 1), 1.0).rounding
    return Prediction(
        rounding=entry,
        settling=norms(left / values, values.ndim - 1) / inverse_norm,
        noise=(thermal + mixed / reads).sqrt() / size,
        conversion=torch.hypot(norms(bias, matrix.ndim - 2), offset) / size,
    )


def _converted_moments(variance: Tensor, spec: MachineSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Of cells of these variances: variance of a converted read, gain for correlations, white noise; each `[*stack, n]`."""
    analog = variance + spec.read_noise
    sigma = analog.sqrt()
    if spec.read_bits is None:
        return analog, torch.ones_like(sigma), analog - variance
    full_scale = read_range(HEADROOM * sigma.amax(-1, keepdim=True), spec)
    step = torch.as_tensor(lsb(spec.read_bits, full_scale))
    ratio = (sigma / step).clamp(max=DITHERING)
    levels = torch.arange(10 * DITHERING, dtype=sigma.dtype, device=sigma.device) + 0.5
    z = levels / ratio.unsqueeze(-1).clamp_min(1e-3)
    square = (2 * levels * torch.erfc(z / math.sqrt(2))).sum(-1) * step.square()
    gain = (2 * torch.exp(-z.square() / 2)).sum(-1) / (math.sqrt(2 * math.pi) * ratio.clamp_min(1e-3))
    dithered = sigma >= DITHERING * step
    read = torch.where(dithered, analog + step.square() / 12, square)
    gain = torch.where(dithered, 1.0, gain)
    return read, gain, (read - gain.square() * variance).clamp_min(0)


def measured_covariance_error(read: Tensor, spec: MachineSpec, reads: int) -> Tensor:
    """The relative error that a covariance read-out shows by itself, `[*stack]`; 1 or more is useless.

    What is read, S, holds w = read noise + LSB²/12 on its diagonal, known from the machine's data sheet. With C = S − wI,

        error² = n w²/‖C‖² + ((tr S)²/‖S‖² + 1)/k,

    the second of k independent reads; correlated ones err more. Costs n² operations.

    Args:
        read: S over full scale squared, `[*stack, n, n]`.
        spec: the machine.
        reads: k.
    """
    n, stack = read.shape[-1], read.ndim - 2
    diagonal = read.diagonal(dim1=-2, dim2=-1)
    white = torch.full_like(diagonal[..., :1], spec.read_noise)
    if spec.read_bits is not None:
        full_scale = read_range(HEADROOM * diagonal.amax(-1, keepdim=True).sqrt(), spec)
        white = white + torch.as_tensor(lsb(spec.read_bits, full_scale)).square() / 12
    size, signal = norms(read, stack), norms(read - torch.diag_embed(white.expand_as(diagonal)), stack)
    bias = math.sqrt(n) * white.squeeze(-1) / signal
    error = (bias.square() + ((diagonal.sum(-1) / size).square() + 1) / reads).sqrt()
    return torch.where(size > 0, error, torch.inf)


def entry_error(spec: MachineSpec) -> float:
    """Root-mean-square error of an entry at full scale of what a machine holds, over full scale."""
    rounding = 0.0 if spec.matrix_bits is None else step_error(spec.matrix_bits)
    if spec.stochastic_rounding:
        rounding *= math.sqrt(2)  # variance f(1 − f) of the step, 1/6 on average, against 1/12
    return math.sqrt(rounding**2 + (spec.write_noise or 0.0) ** 2 + (spec.gain_mismatch or 0.0) ** 2)


def step_error(bits: int) -> float:
    """LSB/√12 over full scale."""
    return float(lsb(bits)) / math.sqrt(12)


def warn_if_useless(predicted: Tensor, condition: Tensor, cause: str, remedy: str) -> None:
    """Warn where a predicted relative error is above 10 %.

    Args:
        predicted: relative error, `[*stack]`.
        condition: condition number, `[*stack]`.
        cause: where the error comes from.
        remedy: what to do.
    """
    worst = int(predicted.flatten().nan_to_num(nan=math.inf).argmax())
    error, kappa = float(predicted.flatten()[worst]), float(condition.flatten()[worst])
    if not error <= WARN_ABOVE:
        warnings.warn(
            f"condition number {kappa:.1e}: the predicted relative error is {error:.1e} ({cause}); {remedy}",
            InaccuracyWarning,
            stacklevel=3,
        )
