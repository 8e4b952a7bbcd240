"""What an emulator knows and no machine would tell: for reports, netlists and tests of the emulator alone.

Solvers, samplers and optimizers must not import this module (`tests/test_observables.py` looks): what they do rests on what
a machine returns.
"""

from __future__ import annotations

from heatbath.machines.emulator.emulator import Emulated
from heatbath.machines.readings import Programmed


def oracle(programmed: Programmed) -> Emulated:
    """The emulated machines behind what was programmed.

    Raises:
        ValueError: it was not programmed into an emulator.
    """
    if not isinstance(programmed.emulated, Emulated):
        raise ValueError(f"machine {programmed.machine!r} is not emulated: what it holds is known only by what it returns")
    return programmed.emulated
