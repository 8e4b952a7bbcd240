"""How cells hold a matrix that was sent: mismatch, write noise, stuck entries, and drift until it is used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heatbath.machines.converters import decode
from heatbath.machines.emulator.imperfections import DRIFT, GAIN, STUCK_ENTRY, defects, mismatch_like
from heatbath.machines.random import normal
from heatbath.machines.spec import MachineSpec


def program_conductances(codes: Tensor, spec: MachineSpec, serials: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """The conductances Â, `[*stack, n, n]`, over full scale.

    Args:
        codes: what was sent, `[*stack, n, n]`.
        spec: the machine.
        serials: serial number of each machine of the stack.
        generator: source of write noise.
    """
    conductance, shape = decode(codes, spec.matrix_bits), tuple(codes.shape[-2:])
    if spec.gain_mismatch is not None:
        conductance = conductance * (1 + spec.gain_mismatch * mismatch_like(codes, serials, GAIN, shape))
    if spec.write_noise is not None:
        error = normal(tuple(codes.shape), codes, generator)
        conductance = conductance + spec.write_noise * (error.triu() + error.triu(1).mT)
    if spec.stuck_entries is not None:
        conductance = conductance.masked_fill(defects(codes, serials, STUCK_ENTRY, shape, spec.stuck_entries), 0.0)
    return drift(conductance, spec, serials, seconds=spec.hold_seconds or 0.0)


def drift(conductance: Tensor, spec: MachineSpec, serials: Sequence[int], *, seconds: float) -> Tensor:
    """What is left of the conductances `seconds` after programming.

    G(t) = G(0) (1 + t/1 s)^{−ν}, the power law of phase-change memories, with an exponent ν of its own for each entry.
    """
    if spec.drift_exponent is None or seconds == 0:
        return conductance
    exponent: Tensor | float = spec.drift_exponent
    if spec.drift_spread is not None:
        spread = mismatch_like(conductance, serials, DRIFT, tuple(conductance.shape[-2:]))
        exponent = exponent * (1 + spec.drift_spread * spread)
    return conductance * (1 + seconds) ** (-exponent)
