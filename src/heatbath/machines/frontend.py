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
from heatbath.machines.signals import Answer, Clock, Measurement
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


def drive_division(peak: Tensor, spec: MachineSpec) -> Tensor:
    """The power of two, 1 or more, by which a drive is lowered so that voltages up to `peak` `[*stack, m, 1]` fit the rails."""
    return torch.ones_like(peak) if spec.rail is None else power_of_two(peak / spec.rail).clamp(min=1)


def read_range(peak: Tensor, spec: MachineSpec) -> Tensor:
    """Full scale of the read converter: the power of two just above `peak`, as far as the amplifier reaches."""
    full_scale = power_of_two(peak)
    return full_scale if spec.read_gain_max is None else full_scale.clamp(min=1 / spec.read_gain_max)


def within_rails(volts: Tensor, spec: MachineSpec) -> Tensor:
    """Voltages as the rails leave them."""
    return volts if spec.rail is None else volts.clamp(-spec.rail, spec.rail)


def measure(
    answer: Answer, spread: Tensor, clock: Clock, spec: MachineSpec, *, generator: torch.Generator | None
) -> Measurement:
    """Range, convert and count the averaged readings of a linear law.

    Args:
        answer: readings at full drive.
        spread: stationary variance of each cell over 1/β, `[*stack, n]`.
        clock: the schedule.
        spec: the machine.
        generator: source of randomness.
    """
    division = drive_division(_plus(answer.signal, answer.rest).abs().amax(-1, keepdim=True), spec)
    analog = within_rails(_plus(answer.signal / division, answer.rest), spec)
    end = None if answer.end_signal is None else within_rails(_plus(answer.end_signal / division, answer.end_rest), spec)
    reads = clock.reads or 1
    nothing = torch.zeros_like(analog, dtype=torch.bool)
    if spec.read_noise > 0:
        analog = analog + normal(tuple(analog.shape), analog, generator) * math.sqrt(spec.read_noise / reads)
    if spec.read_bits is None:
        return Measurement(analog, end, division, nothing, nothing)
    full_scale = read_range(analog.abs().amax(-1, keepdim=True), spec)
    values, clipped = quantize(analog, spec.read_bits, full_scale)
    if reads == 1:
        return Measurement(values, end, division, clipped, nothing)
    step = lsb(spec.read_bits, full_scale)
    sigma = (clock.noise * spread + spec.read_noise).sqrt().unsqueeze(-2)
    dithered = sigma >= DITHERED * step
    white = analog + normal(tuple(analog.shape), analog, generator) * (step / math.sqrt(12 * reads))
    return Measurement(torch.where(dithered, white, values), end, division, clipped, ~dithered & (sigma > STILL * step))


def _plus(signal: Tensor, rest: Tensor | None) -> Tensor:
    return signal if rest is None else signal + rest
