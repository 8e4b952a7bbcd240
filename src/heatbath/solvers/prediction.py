"""How accurate a machine will be, before it is asked: the error budget of one driven solve.

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

from heatbath.machines import Faulty, Machine, MachineSpec, Schedule
from heatbath.machines.converters import lsb

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


def predict(machine: Machine | Faulty, values: Tensor, schedule: Schedule, drive_norm: float) -> Prediction:
    """Predict the error of driven solves.

    Args:
        machine: the machine.
        values: eigenvalues λ of what it should hold, `[*stack, n]`, float64.
        schedule: of each drive.
        drive_norm: ‖b̂‖ with entries at full scale 1: 1 for a unit vector.
    """
    spec, n = machine.spec, values.shape[-1]
    moments = machine.clock(schedule).moments(values)
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
        settling=(moments.gain * values - 1).abs().amax(-1),
        noise=moments.variance.sum(-1).sqrt() / size,
        conversion=torch.full_like(size, conversion),
    )


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
