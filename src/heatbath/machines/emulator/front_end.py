"""From codes to codes: the converters, ranges and rails around a network.

A drive's codes become voltages, which an attenuator lowers by a power of two so that the cells stay within the rails; a ranging
pass that takes one more burn-in sets it, and machines without stated rails need none. What the cells settle to is read with
noise, amplified by the power of two that brings the largest of a drive's readings just within the converter's range (both
ranges follow from what is read, noise included, never from the exact answer), and converted.

An average of k reads that were converted one by one equals the average plus white noise where each read dithers the converter
(`converters`); elsewhere it is rounded as one, which is counted (`undithered`) and which `read_by_read` emulation avoids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heatbath.machines.converters import DITHER_MIN_LSB, STILL_MAX_LSB, decode, encode, lsb, power_of_two
from heatbath.machines.device import RawReads
from heatbath.machines.dynamics import Cells, Clock, Dynamics, Excitation, SettledApproximation
from heatbath.machines.random import normal
from heatbath.machines.spec import MachineSpec
from heatbath.operators import tree

HEADROOM = 4.0  # of a range for many reads over the largest rms of the first ones, before rounding up to a power of two
PEAK_HEADROOM = 1.25  # of a range for one drive over the peak of its first reads


@tree
@dataclass(frozen=True, eq=False)
class Network:
    """The analog part of a stack of programmed machines.

    Args:
        conductance: Â, what the cells hold, in units of full scale, `[*stack, n, n]`.
        cells: how they differ from one another.
        offset: drive that is always on, that of stuck cells included, `[*stack, n]`.
        dynamics: how they answer.
    """

    conductance: Tensor
    cells: Cells
    offset: Tensor
    dynamics: Dynamics


@dataclass(frozen=True, eq=False)
class EmulatedReads:
    """Raw reads, and what no wire carries: for continued runs and reports of the emulation itself.

    Args:
        raw: what the device returns.
        end: voltages at the end over full scale, `[*stack, m, n]`; None if not kept.
        undithered: averages of reads with too little noise for the white-noise rule and too much for none, int64 `[*stack]`.
    """

    raw: RawReads
    end: Tensor | None
    undithered: Tensor


def attenuation(peak: Tensor, spec: MachineSpec) -> Tensor:
    """The power of two, 1 or more, by which a drive is lowered so that voltages up to `peak` `[*stack, m, 1]` fit the rails."""
    return torch.ones_like(peak) if spec.rail is None else power_of_two(peak / spec.rail).clamp(min=1)


def read_range(peak: Tensor, spec: MachineSpec) -> Tensor:
    """Full scale of the read converter: the power of two just above `peak`, as far as the amplifier reaches."""
    full_scale = power_of_two(peak)
    return full_scale if spec.read_gain_max is None else full_scale.clamp(min=1 / spec.read_gain_max)


def within_rails(volts: Tensor, spec: MachineSpec) -> Tensor:
    """Voltages as the rails leave them."""
    return volts if spec.rail is None else volts.clamp(-spec.rail, spec.rail)


def at_rails(volts: Tensor, spec: MachineSpec) -> Tensor:
    """Which voltages touch a rail."""
    return torch.zeros_like(volts, dtype=torch.bool) if spec.rail is None else volts.abs() >= spec.rail


def excite(network: Network, drive: Tensor, initial: Tensor | None, start: Tensor | None, spec: MachineSpec) -> Excitation:
    """What codes `[*stack, m, n]` apply to the cells, with voltages to begin from or None."""
    volts = decode(drive, spec.drive_bits) * network.cells.working.unsqueeze(-2)
    rest = Excitation.of_drive(volts, network.offset)
    return replace(rest, guess=rest.guess if initial is None else initial, start=rest.start if start is None else start)


def read_average(
    network: Network,
    excitation: Excitation,
    clock: Clock,
    spec: MachineSpec,
    *,
    keep_end: bool,
    generator: torch.Generator | None,
) -> EmulatedReads:
    """One averaged reading of each drive, drawn at once."""
    dynamics, cells, reads = network.dynamics, network.cells, clock.reads or 1
    response = dynamics.respond(excitation, clock, keep_end=keep_end, generator=generator)
    if spec.rail is None:
        free = dynamics.volts(response.proportional + response.constant)
        lowered = torch.ones_like(free[..., :1])
        end = dynamics.volts(response.end_proportional + response.end_constant) if keep_end else None
    else:
        proportional, constant = dynamics.volts(response.proportional), dynamics.volts(response.constant)
        lowered = attenuation((proportional + constant).abs().amax(-1, keepdim=True), spec)
        free, end = proportional / lowered + constant, None
        if keep_end:
            end = dynamics.volts(response.end_proportional) / lowered + dynamics.volts(response.end_constant)
            end = within_rails(end, spec)
    railed = at_rails(free, spec)
    volts = cells.seen(within_rails(free, spec))
    if spec.read_noise > 0:
        volts = volts + normal(tuple(volts.shape), volts, generator) * math.sqrt(spec.read_noise / reads)
    full_scale = read_range(volts.abs().amax(-1, keepdim=True), spec)
    codes, unit, over = encode(volts, spec.read_bits, full_scale)
    undithered = torch.zeros(volts.shape[:-2], dtype=torch.int64, device=volts.device)
    if reads > 1 and spec.read_bits is not None:
        step = lsb(spec.read_bits, full_scale)
        sigma = (cells.noise * dynamics.spread + spec.read_noise).sqrt().unsqueeze(-2)
        dithered = sigma >= DITHER_MIN_LSB * step
        white = volts / step + normal(tuple(volts.shape), volts, generator) / math.sqrt(12 * reads)
        codes, over = torch.where(dithered, white, codes), over & ~dithered
        undithered = (~dithered & (sigma > STILL_MAX_LSB * step)).sum((-2, -1), dtype=torch.int64)
    return EmulatedReads(_raw(cells.converted(codes), unit * lowered, lowered, railed | over), end, undithered)


def read_each(
    network: Network,
    excitation: Excitation,
    clock: Clock,
    spec: MachineSpec,
    *,
    shared_range: bool,
    generator: torch.Generator | None,
) -> Iterator[RawReads]:
    """Every read of every drive, each converted on its own, in chunks `[*stack, m, c, n]`.

    Args:
        network: the programmed machines.
        excitation: what drives them.
        clock: k reads.
        spec: the machine.
        shared_range: one converter range for all drives of a machine; else one for each drive. Set by the first chunk.
        generator: source of randomness.
    """
    full_scale: Tensor | None = None
    for free in network.dynamics.reads(excitation, clock, generator):
        volts = network.cells.seen(within_rails(free, spec))
        if spec.read_noise > 0:
            volts = volts + math.sqrt(spec.read_noise) * normal(tuple(volts.shape), volts, generator)
        if full_scale is None:
            if shared_range:
                peak = HEADROOM * volts.square().mean((-3, -2), keepdim=True).sqrt().amax(-1, keepdim=True)
            else:
                peak = PEAK_HEADROOM * volts.abs().amax((-2, -1), keepdim=True)
            full_scale = read_range(peak, spec)
        codes, unit, over = encode(volts, spec.read_bits, full_scale)
        unit = torch.as_tensor(unit).to(volts).expand(*volts.shape[:-2], 1, 1).squeeze(-1)
        codes = network.cells.converted(codes)
        yield _raw(codes, unit, torch.ones_like(unit), at_rails(free, spec) | over)


def gram_of_reads(network: Network, clock: Clock, spec: MachineSpec, generator: torch.Generator | None) -> RawReads | None:
    """A few reads with the second moment of all, where reads are independent and nothing stands between them and the host."""
    dynamics, cells, reads = network.dynamics, network.cells, clock.reads or 1
    plain = spec.read_bits is None and spec.read_noise == 0 and spec.rail is None and cells.intact
    plain = plain and spec.offset_mismatch is None and spec.dead_converters is None
    if not plain or not isinstance(dynamics, SettledApproximation) or reads < network.conductance.shape[-1]:
        return None
    rows = dynamics.gram_rows(reads, generator)
    unit = torch.ones_like(rows[..., :1, 0])
    return _raw(rows, unit, unit, torch.zeros_like(rows, dtype=torch.bool))


def read_average_of_each(
    network: Network, excitation: Excitation, clock: Clock, spec: MachineSpec, generator: torch.Generator | None
) -> EmulatedReads:
    """The average of reads that are drawn and converted one by one, after a ranging pass."""
    lowered = torch.ones_like(excitation.drive[..., :1])
    if spec.rail is not None:
        passed = network.dynamics.respond(excitation, Clock(clock.burn_in, 0.0, 1), keep_end=False, generator=generator)
        volts = network.dynamics.volts(passed.proportional + passed.constant)
        lowered = attenuation(volts.abs().amax(-1, keepdim=True), spec)
    low = replace(excitation, drive=excitation.drive / lowered, guess=excitation.guess / lowered)
    total, railed, unit = torch.zeros_like(excitation.drive), torch.zeros_like(excitation.drive, dtype=torch.bool), lowered
    for chunk in read_each(network, low, clock, spec, shared_range=False, generator=generator):
        total, railed, unit = total + chunk.codes.sum(-2), railed | chunk.railed.any(-2), chunk.unit
    none = torch.zeros(total.shape[:-2], dtype=torch.int64, device=total.device)
    return EmulatedReads(_raw(total / (clock.reads or 1), unit * lowered, lowered, railed), None, none)


def _raw(codes: Tensor, unit: Tensor, lowered: Tensor, railed: Tensor) -> RawReads:
    stack = unit.shape[:-2]
    return RawReads(codes, unit, lowered, railed, torch.zeros(stack, dtype=torch.bool, device=codes.device))
