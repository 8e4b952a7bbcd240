"""What is wrong with one particular machine, the same at every use.

Mismatch belongs to a machine, not to a run: it is a pure function of the machine's serial number and of the place in the
machine, so the entry (i, j) of machine 7 errs alike whatever matrix is programmed, at every use and on every device. It is
drawn by a counter-based generator (SplitMix64 finalizer, Steele et al. 2014; Box–Muller in float64), which needs no state and
no loop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from heatbath.machines.dynamics.cells import Cells
from heatbath.machines.spec import MachineSpec

# streams of random numbers, one for each property
GAIN, OFFSET, CAPACITANCE, NOISE_INTENSITY, DRIFT, STUCK_ENTRY, DEAD_CELL, STUCK_CELL, STUCK_SIGN, DEAD_CONVERTER = range(1, 11)
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


def mismatch_like(like: Tensor, serials: Sequence[int], stream: int, shape: tuple[int, ...]) -> Tensor:
    """`mismatch` of a stack of machines with these serial numbers, `[*stack, *shape]`, in dtype and device like `like`.

    Args:
        like: `[*stack, *shape]`.
        serials: serial number of each member of the stack.
        stream: which property.
        shape: as for `mismatch`.
    """
    first, last = min(serials), max(serials)
    drawn = mismatch(first, last - first + 1, stream, shape)
    if len(serials) < len(drawn) or list(serials) != list(range(first, last + 1)):
        drawn = drawn[[serial - first for serial in serials]]
    return drawn.reshape(*like.shape[: like.ndim - len(shape)], *shape).to(like)


def defects(like: Tensor, serials: Sequence[int], stream: int, shape: tuple[int, ...], fraction: float | None) -> Tensor:
    """Which places are defective, bool `[*stack, *shape]`: each with probability `fraction`; none if that is None."""
    if fraction is None:
        return torch.zeros_like(like, dtype=torch.bool)
    threshold = torch.special.ndtri(torch.tensor(fraction, dtype=torch.float64)).item()
    return mismatch_like(like.double(), serials, stream, shape) < threshold


def cells_of(spec: MachineSpec, serials: Sequence[int], conductance: Tensor) -> Cells:
    """The cells of the machines that hold a stack `[*stack, n, n]`."""
    row = torch.zeros_like(conductance[..., 0])
    shape = (conductance.shape[-1],)

    def drawn(stream: int) -> Tensor:
        return mismatch_like(row, serials, stream, shape)

    cells = Cells.alike(conductance, noise=spec.noise, inertia=spec.inertia, capacitive=spec.coupling is not None)
    changed: dict[str, Tensor | bool] = {}
    if spec.capacitance_mismatch is not None:
        changed["mobility"] = torch.exp(-spec.capacitance_mismatch * drawn(CAPACITANCE))
    if spec.noise_mismatch is not None:
        changed["noise_intensity"], changed["isotropic"] = torch.exp(2 * spec.noise_mismatch * drawn(NOISE_INTENSITY)), False
    if spec.offset_mismatch is not None:
        changed["offset"] = spec.offset_mismatch * drawn(OFFSET)
    if spec.dead_cells is not None or spec.stuck_cells is not None:
        dead = defects(row, serials, DEAD_CELL, shape, spec.dead_cells)
        stuck = defects(row, serials, STUCK_CELL, shape, spec.stuck_cells) & ~dead
        changed["working"], changed["intact"] = ~(dead | stuck), False
        changed["stuck_voltage"] = torch.where(stuck, drawn(STUCK_SIGN).sign(), 0.0)
    if spec.dead_converters is not None:
        changed["dead_adc"] = defects(row, serials, DEAD_CONVERTER, shape, spec.dead_converters)
    return replace(cells, **changed)  # type: ignore[arg-type]  # each of its field's type
