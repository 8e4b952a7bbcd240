"""The front end between digital numbers and cell voltages: ranges, converters, rescaling.

A drive is scaled so that its largest entry is at full scale, converted, and applied through a divider by a power of two. The
divider is set by a ranging pass that takes one more burn-in, so that the voltages stay within the rails; a machine without
stated rails needs no ranging pass. Readings are held, amplified by the power of two that brings the largest of a drive's
readings just within the converter's range (both ranges follow from what is read, noise included, never from the exact answer),
converted, and rescaled digitally.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.converters import DITHERED, STILL, lsb, normal, power_of_two, quantize
from heatbath.machines.law import Answer, Clock
from heatbath.machines.spec import MachineSpec


@dataclass(frozen=True, eq=False)
class Drive:
    """Drives after the digital-to-analog converter.

    Args:
        volts: over full scale, `[*stack, m, n]`.
        scale: units of b for each unit of volts, `[*stack, m, 1]`; 0 for a drive of zeros.
        clipped: mask of entries beyond full scale.
    """

    volts: Tensor
    scale: Tensor
    clipped: Tensor


def convert_drive(rows: Tensor, spec: MachineSpec) -> Drive:
    """Scale each row to full scale and convert it."""
    scale = rows.abs().amax(-1, keepdim=True)
    volts, clipped = quantize(rows / torch.where(scale > 0, scale, 1.0), spec.drive_bits)
    return Drive(volts, scale, clipped)


@dataclass(frozen=True, eq=False)
class Voltages:
    """Readings before conversion and end states, rows over full scale, and the division of the drive `[*stack, m, 1]`."""

    reading: Tensor
    end: Tensor | None
    division: Tensor


def set_drive_range(answer: Answer, spec: MachineSpec) -> Voltages:
    """Choose the division of the drive that keeps what is read within the rails."""
    if spec.rail is None:
        reading = answer.signal + answer.rest
        end = None if answer.end_signal is None else answer.end_signal + answer.end_rest  # type: ignore[operator]  # both or none
        return Voltages(reading, end, torch.ones_like(reading[..., :1]))
    peak = (answer.signal + answer.rest).abs().amax(-1, keepdim=True)
    division = power_of_two(peak / spec.rail).clamp(min=1)
    reading = (answer.signal / division + answer.rest).clamp(-spec.rail, spec.rail)
    end = None
    if answer.end_signal is not None and answer.end_rest is not None:
        end = (answer.end_signal / division + answer.end_rest).clamp(-spec.rail, spec.rail)
    return Voltages(reading, end, division)


@dataclass(frozen=True, eq=False)
class Codes:
    """Converted readings over full scale, and masks of those that clipped and of those with too little dither."""

    values: Tensor
    clipped: Tensor
    undithered: Tensor


def convert_reading(
    analog: Tensor, spread: Tensor, clock: Clock, spec: MachineSpec, *, generator: torch.Generator | None
) -> Codes:
    """Read noise, range and conversion of averaged readings.

    Args:
        analog: averages over full scale, `[*stack, m, n]`.
        spread: stationary variance of each cell over 1/β, `[*stack, n]`.
        clock: the schedule.
        spec: the machine.
        generator: source of randomness.
    """
    reads = clock.reads or 1
    nothing = torch.zeros_like(analog, dtype=torch.bool)
    if spec.read_noise > 0:
        analog = analog + normal(tuple(analog.shape), analog, generator) * math.sqrt(spec.read_noise / reads)
    if spec.read_bits is None:
        return Codes(analog, nothing, nothing)
    full_scale = read_range(analog, spec)
    values, clipped = quantize(analog, spec.read_bits, full_scale)
    if reads == 1:
        return Codes(values, clipped, nothing)
    step = lsb(spec.read_bits, full_scale)
    sigma = (clock.noise * spread + spec.read_noise).sqrt().unsqueeze(-2)
    dithered = sigma >= DITHERED * step
    white = analog + normal(tuple(analog.shape), analog, generator) * (step / math.sqrt(12 * reads))
    return Codes(torch.where(dithered, white, values), clipped, ~dithered & (sigma > STILL * step))


def read_range(analog: Tensor, spec: MachineSpec) -> Tensor:
    """Full scale of the read converter for each row: the power of two just above the largest reading, `[*stack, m, 1]`."""
    full_scale = power_of_two(analog.abs().amax(-1, keepdim=True))
    return full_scale if spec.read_gain_max is None else full_scale.clamp(min=1 / spec.read_gain_max)
