"""The least energy physics allows, to hold a bill against.

    erasing b bits                      b k T ln 2                       Landauer 1961 (doi 10.1147/rd.53.0183)
    N analog nodes of b bits            12 k T 4ᵇ N

The second: a node of capacitance C and swing V holds C V² joules, and its thermal noise k T / C may be as large as the
rounding noise of b bits, (V / 2ᵇ)² / 12; hence C V² = 12 k T 4ᵇ. k is Boltzmann's constant, T the temperature.

How many bits a computation erases depends on how it is done. An ordinary machine overwrites a register with the result of every
operation. A logically reversible one undoes its intermediate results (Bennett 1973, doi 10.1147/rd.176.0525) and erases only
what a kernel leaves behind, when that is overwritten the next time; it pays in operations and in slowness, which this bound
leaves out. Numbers that cross to an analog machine and back are overwritten either way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from heatbath.machines.spec import BOLTZMANN
from heatbath.work import Kernel, Work


def landauer(bits: float, *, temperature: float = 300.0) -> float:
    """Joules to erase `bits` bits at `temperature` kelvin.

    Raises:
        ValueError: negative bits or a temperature that is not positive.

    >>> f"{landauer(1):.3g}"
    '2.87e-21'
    """
    _check(bits, temperature)
    return bits * BOLTZMANN * temperature * math.log(2)


def analog_floor(bits: float, *, nodes: float = 1, temperature: float = 300.0) -> float:
    """Joules to charge `nodes` analog nodes whose thermal noise equals the rounding noise of `bits` bits.

    Raises:
        ValueError: negative bits or a temperature that is not positive.

    >>> f"{analog_floor(8):.2g}, {analog_floor(12):.2g}"
    '3.3e-15, 8.3e-13'
    """
    _check(bits, temperature)
    return nodes * 12 * BOLTZMANN * temperature * 4.0**bits


@dataclass(frozen=True)
class Floors:
    """The least a computation could cost, in joules.

    Args:
        irreversible: every operation's result erased, once.
        reversible: only the results that kernels leave behind.
        analog: charging the cells of every drive to the precision of its converters; 0 without a machine.
    """

    irreversible: float
    reversible: float
    analog: float


def floors(work: Work, *, word_bits: int = 32, temperature: float = 300.0) -> Floors:
    """The floors of counted work.

    Args:
        work: what was asked of hardware.
        word_bits: bits of a number on the digital side.
        temperature: in kelvin.

    Raises:
        ValueError: fewer than one bit, or a temperature that is not positive.

    >>> from heatbath.work import Work, matmul
    >>> least = floors(Work.of(matmul(100, 100, 100)))
    >>> f"{least.irreversible:.2e} {least.reversible:.2e}"
    '1.84e-13 9.19e-16'
    """
    if word_bits < 1:
        raise ValueError(f"word_bits must be 1 or more, got {word_bits}")
    left_behind = sum(count * _results(kernel) for kernel, count in work.kernels.items()) * word_bits
    crossing = sum(count * (j.upload_bits + j.drives * (j.drive_bits + j.read_bits)) for j, count in work.jobs.items())
    analog = 0.0
    for job, count in work.jobs.items():
        bits = max(job.drive_bits, job.read_bits) / job.cells
        if job.drives and bits:
            analog += count * job.drives * analog_floor(bits, nodes=job.cells, temperature=temperature)
    return Floors(
        landauer(work.flops * word_bits + crossing, temperature=temperature),
        landauer(left_behind + crossing, temperature=temperature),
        analog,
    )


def _results(kernel: Kernel) -> float:
    """How many numbers a kernel leaves behind."""
    n, *rest = kernel.shape
    match kernel.name:
        case "matmul":
            return float(n * rest[-1])
        case "cholesky":
            return n * (n + 1) / 2
        case "inverse":
            return float(n * n)
        case "triangular_solve":
            return float(n * rest[0])
        case "eigh":
            return float(n * n + n)
        case "elementwise":
            return float(n)
    raise ValueError(f"how many numbers a kernel {kernel.name!r} leaves behind is not known; add it to costs/floors.py")


def _check(bits: float, temperature: float) -> None:
    if bits < 0:
        raise ValueError(f"bits must be 0 or more, got {bits}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, in kelvin, got {temperature}; room temperature is 300")
