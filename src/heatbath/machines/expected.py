"""How far off an emulated machine is on average, for given right-hand sides: the closed form that measured errors follow.

For what the machine holds, with modes x = U y of rates λ, a drive b̂ and a schedule, mean and variance of every reading have a
closed form (`heatbath.machines.dynamics`). With the true answer x*,

    E‖x − x*‖² = ‖E x − x*‖² + Σ_i Var x_i,      Var x_i = scale² (Σ_k U_ik² Var_k + read noise/k + LSB²/12k)

where E x carries what rounding, mismatch, offsets and too short a time do, the same at each use, and Var what averaging over
repetitions would remove. Not in it: noise that differs between cells (`noise_mismatch`), clipping, the bias of averages that
are not dithered, and that noise may carry a reading over into the next range of its converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heatbath.machines.converters import encode, lsb
from heatbath.machines.dynamics import Clock, ExactDynamics
from heatbath.machines.dynamics.base import READING
from heatbath.machines.emulator.front_end import attenuation, excite, read_range
from heatbath.machines.machine import Machine
from heatbath.machines.oracle import oracle
from heatbath.machines.readings import Programmed
from heatbath.machines.schedule import Schedule


def expected_error(
    machine: Machine, programmed: Programmed, root: Tensor, rhs: Tensor, schedule: Schedule, answer: Tensor
) -> Tensor:
    """Root-mean-square relative error over repeated runs, one number over all right-hand sides.

    Args:
        machine: an emulated machine.
        programmed: one matrix D M D, on it, with `circuit=ExactDynamics` or a `ClosedLoop`.
        root: D, `[n]`.
        rhs: b, `[m, n]`.
        schedule: of each drive.
        answer: M⁻¹b, `[m, n]`.

    Raises:
        ValueError: dynamics without modes, or a machine that is not emulated.
    """
    spec, network = machine.spec, oracle(programmed).network
    exact, cells, reads = network.dynamics, network.cells, schedule.reads or 1
    if not isinstance(exact, ExactDynamics):
        raise ValueError(f"a closed form needs the modes: program with circuit=ExactDynamics, got the {exact.name}")
    moments = exact.average(Clock.of(schedule, spec.time_constant))
    rows = rhs * root
    peak = rows.abs().amax(-1, keepdim=True)
    codes, _, _ = encode(rows / peak, spec.drive_bits)
    excitation = excite(network, codes, None, None, spec)
    gain = moments.gain[..., READING].to(rhs)
    signal, rest = (((b @ exact.modes) * gain) @ exact.modes.mT for b in (excitation.drive, excitation.offset))
    lowered = attenuation((signal + rest).abs().amax(-1, keepdim=True), spec)
    volts = cells.seen(signal / lowered + rest)
    variance = (exact.modes.square() * moments.covariance[..., READING, READING].to(rhs)).sum(-1) * cells.working
    variance = variance.expand_as(volts) + spec.read_noise / reads
    if spec.read_bits is not None:
        step = lsb(spec.read_bits, read_range(volts.abs().amax(-1, keepdim=True), spec))
        variance = variance + torch.as_tensor(step).square() / (12 * reads)
    scale = peak / programmed.scale * lowered * root
    bias = (cells.converted(volts) * scale - answer).square().sum()
    return ((bias + (scale.square() * cells.converted(variance)).sum()) / answer.square().sum()).sqrt()
