"""The least energy physics allows, to hold a bill against.

    erasing b bits                      b k T ln 2                       Landauer 1961 (doi 10.1147/rd.53.0183)
    N analog nodes of b bits            12 k T 4ᵇ N

The second: a node of capacitance C and swing V holds C V² joules, and its thermal noise k T / C may be as large as the
rounding noise of b bits, (V / 2ᵇ)² / 12; hence C V² = 12 k T 4ᵇ. k is Boltzmann's constant, T the temperature. A logically
reversible machine may spend less than the first per operation, never per reset.
"""

from __future__ import annotations

import math

from heatbath.machines.spec import BOLTZMANN


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


def _check(bits: float, temperature: float) -> None:
    if bits < 0:
        raise ValueError(f"bits must be 0 or more, got {bits}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, in kelvin, got {temperature}; room temperature is 300")
