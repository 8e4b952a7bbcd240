"""How far off a programmed machine is on average, for given right-hand sides: the closed form that measured errors follow.

For what the machine holds, with modes x = U y of rates λ, a drive b̂ and a schedule, laws (a) and (b) of `heatbath.machines`
give mean and variance of every reading in closed form. With the true answer x*,

    E‖x − x*‖² = ‖E x − x*‖² + Σ_i Var x_i,      Var x_i = scale² (Σ_k U_ik² Var_k + read noise/k + LSB²/12k)

where E x carries what rounding, mismatch, offsets and too short a time do, the same at each use, and Var what averaging over
repetitions would remove. Not in it: noise that differs between cells (`noise_mismatch`), clipping, the bias of averages that
are not dithered, and that noise may carry a reading over into the next range of its converter.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from heatbath.machines import ClosedLoopLaw, ExactLaw, Faulty, Machine, Schedule
from heatbath.machines.converters import lsb
from heatbath.machines.frontend import convert_drive, drive_division, read_range
from heatbath.solvers.held import Held


def expected_error(machine: Machine | Faulty, held: Held, rhs: Tensor, schedule: Schedule, answer: Tensor) -> Tensor:
    """Root-mean-square relative error over repeated runs, one number over all right-hand sides.

    Args:
        machine: the machine.
        held: from `program` with `law=ExactLaw` or a `ClosedLoop`, one matrix.
        rhs: b, `[m, n]`.
        schedule: of each drive.
        answer: M⁻¹b, `[m, n]`.

    Raises:
        ValueError: another law.
    """
    law, spec = held.programmed.law, machine.spec
    exact = law.exact if isinstance(law, ClosedLoopLaw) else law
    if not isinstance(exact, ExactLaw):
        raise ValueError(f"a closed form needs the modes: program with law=ExactLaw, got the {held.programmed.tier}")
    inner = machine.machine if isinstance(machine, Faulty) else machine
    clock = inner.clock(schedule)
    if isinstance(law, ClosedLoopLaw):
        clock = replace(clock, noise=0.0, inertia=None)
    moments, reads = clock.moments(exact.rates), schedule.reads or 1
    sent = convert_drive(rhs * held.root, spec)
    cells, offset = held.programmed.cells, held.programmed.offset
    alive = 1.0 if cells.alive is None else cells.alive.to(rhs)
    gain = moments.gain.to(rhs)
    signal = (((sent.volts * alive) @ exact.modes) * gain) @ exact.modes.mT
    rest = torch.zeros_like(signal) if offset is None else (((offset @ exact.modes) * gain) @ exact.modes.mT).expand_as(signal)
    division = drive_division((signal + rest).abs().amax(-1, keepdim=True), spec)
    volts = signal / division + rest
    variance = (exact.modes.square() * moments.variance.to(rhs)).sum(-1).expand_as(volts) + spec.read_noise / reads
    if spec.read_bits is not None:
        step = lsb(spec.read_bits, read_range(volts.abs().amax(-1, keepdim=True), spec))
        variance = variance + torch.as_tensor(step).square() / (12 * reads)
    spread = variance if cells.alive is None else variance * alive
    spread = spread if cells.mute is None else spread.masked_fill(cells.mute, 0.0)
    scale = sent.scale / held.programmed.scale * division * held.root
    bias = (cells.read(volts) * scale - answer).square().sum()
    return ((bias + (scale.square() * spread).sum()) / answer.square().sum()).sqrt()
