"""What is wrong with one particular machine, the same at every use.

Mismatch belongs to a machine, not to a run: it is a pure function of the machine's serial number and of the place in the
machine, so the entry (i, j) of machine 7 errs alike whatever matrix is programmed, at every use and on every device. It is
drawn by a counter-based generator (SplitMix64 finalizer, Steele et al. 2014; Box–Muller in float64), which needs no state and
no loop. Member i of a stack of matrices is programmed on machine serial + i.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from heatbath.machines.signals import Cells
from heatbath.machines.spec import MachineSpec

# streams of random numbers, one for each property
GAIN, OFFSET, CAPACITANCE, LOUDNESS, DRIFT, STUCK_ENTRY, DEAD_CELL, STUCK_CELL, STUCK_SIGN, DEAD_CONVERTER = range(1, 11)
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(x: Tensor) -> Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
        x = x * _signed(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _uniform(counter: Tensor) -> Tensor:
    bits = (_mix(counter) >> 11) & ((1 << 53) - 1)
    return (bits.double() + 0.5) * 2.0**-53


@functools.lru_cache(maxsize=32)
def mismatch(serial: int, machines: int, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that belong to machines `serial` … `serial + machines − 1`, float64 `[machines, *shape]`.

    Args:
        serial: serial number of the first machine.
        machines: how many machines.
        stream: which property: `GAIN`, `OFFSET`, `CAPACITANCE`.
        shape: (n,) for a property of cells, (n, n) for a symmetric one of entries. A larger shape begins with the smaller.
    """
    places = torch.arange(shape[0], dtype=torch.int64)
    if len(shape) == 2:
        places = torch.maximum(places[:, None], places) * (1 << 24) + torch.minimum(places[:, None], places)
    machine = torch.arange(serial, serial + machines, dtype=torch.int64).reshape(-1, *(1,) * len(shape))
    key = _mix(machine * _signed(0x9E3779B97F4A7C15) + stream)
    counter = _mix(key + places * _signed(0xD1B54A32D192ED03))
    radius = torch.sqrt(-2 * torch.log(_uniform(counter)))
    return radius * torch.cos(2 * math.pi * _uniform(counter + 1))


def mismatch_like(like: Tensor, serial: int, stream: int, stack: torch.Size, shape: tuple[int, ...]) -> Tensor:
    """`mismatch` for a stack `[*stack, *shape]`, in the dtype and on the device of `like`."""
    drawn = mismatch(serial, max(stack.numel(), 1), stream, shape)
    return drawn.reshape(*stack, *shape).to(like)


def defects(
    like: Tensor, serial: int, stream: int, stack: torch.Size, shape: tuple[int, ...], fraction: float | None
) -> Tensor | None:
    """Which places are defective, bool `[*stack, *shape]`: each with probability `fraction`; None if the fraction is None."""
    if fraction is None:
        return None
    threshold = torch.special.ndtri(torch.tensor(fraction, dtype=torch.float64)).item()
    drawn = mismatch(serial, max(stack.numel(), 1), stream, shape)
    return (drawn < threshold).reshape(*stack, *shape).to(like.device)


def cells_of(spec: MachineSpec, serial: int, held: Tensor) -> Cells:
    """The cells of the machines that hold a stack `[*stack, n, n]`."""
    stack, shape = held.shape[:-2], (held.shape[-1],)
    speed = loudness = offset = fixed = alive = None
    if spec.capacitance_mismatch is not None:
        speed = torch.exp(-spec.capacitance_mismatch * mismatch_like(held, serial, CAPACITANCE, stack, shape))
    if spec.noise_mismatch is not None:
        loudness = torch.exp(2 * spec.noise_mismatch * mismatch_like(held, serial, LOUDNESS, stack, shape))
    if spec.offset_mismatch is not None:
        offset = spec.offset_mismatch * mismatch_like(held, serial, OFFSET, stack, shape)
    dead = defects(held, serial, DEAD_CELL, stack, shape, spec.dead_cells)
    stuck = defects(held, serial, STUCK_CELL, stack, shape, spec.stuck_cells)
    if dead is not None or stuck is not None:
        none = torch.zeros((*stack, *shape), dtype=torch.bool, device=held.device)
        dead, stuck = (none if mask is None else mask for mask in (dead, stuck))
        alive = ~(dead | stuck)
        fixed = torch.where(stuck & ~dead, mismatch_like(held, serial, STUCK_SIGN, stack, shape).sign(), 0.0)
    mute = defects(held, serial, DEAD_CONVERTER, stack, shape, spec.dead_converters)
    return Cells(speed, loudness, offset, alive, fixed, mute)
