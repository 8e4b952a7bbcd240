"""The network that was built, as a circuit: resonators coupled by capacitances (Aifer et al. 2023, arXiv 2312.04836).

Each cell is a node with R, L and a noise current to ground; between nodes i and j lies the capacitance −C₀Â_ij, from node i to
ground C₀ Σ_j Â_ij, so that the nodal capacitance matrix is C₀Â (Maxwell's):

    C₀ Â dv/dt = −v/R − i_L + i_n,    L di_L/dt = v

the law of `heatbath.machines.dynamics.ringing.resonator`. Under i_n of two-sided density 2σ²C₀/R (thermal: 2kT/R, Johnson
noise) the voltages settle to mean 0 and covariance σ²Â⁻¹, which for thermal noise is equipartition, kT (C₀Â)⁻¹. Where
Â_ij > 0, or a row sums to less than 0, the capacitance is negative: SPICE takes it, hardware needs an active circuit there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from heatbath.machines.machine import Machine
from heatbath.machines.netlist.circuit import (
    KNOTS,
    STEPS,
    Netlist,
    Parts,
    analysis,
    ascii_comment,
    check_circuit,
    noise_sources,
    parts_of,
)
from heatbath.machines.oracle import oracle
from heatbath.machines.readings import Programmed
from heatbath.machines.schedule import Schedule


def resonator_netlist(
    machine: Machine, programmed: Programmed, *, schedule: Schedule, noisy: bool = True, seed: int = 1
) -> Netlist:
    """The circuit of a machine whose matrix is held in capacitances, undriven; it measures the rms of each voltage.

    It carries what the machine holds, dead and stuck cells; not offsets and not the read converters.

    Args:
        machine: with `coupling = "capacitive"`.
        programmed: what it holds, one matrix, from `machine.program`.
        schedule: burn-in, and the duration over which the rms is taken.
        noisy: with the machine's noise sources.
        seed: of the noise sources.

    Raises:
        ValueError: another coupling, an offset, a schedule without duration, or as `netlist`.
    """
    spec = machine.spec
    if spec.coupling is None:
        raise ValueError(f"machine {spec.name!r} is coupled by resistors; use netlist")
    if spec.offset_mismatch is not None:
        raise ValueError(f"offset_mismatch = {spec.offset_mismatch:g} has no place in a network without drives; leave it out")
    if schedule.duration == 0:
        raise ValueError("an rms needs a duration above 0 s; give the schedule one")
    check_circuit(spec, programmed)
    parts = parts_of(spec)
    slowest_capacitance = float(torch.linalg.eigvalsh(oracle(programmed).conductance.double())[0])
    fastest = 1 / slowest_capacitance
    if spec.inertia is not None:
        fastest = max(fastest, math.sqrt(fastest / spec.inertia))
    step, knot = spec.time_constant / (STEPS * fastest), spec.time_constant / (KNOTS * fastest)
    drawn = knot if noisy and spec.noise > 0 else None
    scale = 1 / (spec.noise * parts.volts**2 * float(programmed.scale)) if spec.noise > 0 else math.nan
    lines = [
        *_header(machine, programmed, parts, scale),
        *_network(programmed, parts),
        *noise_sources(programmed, spec, parts, drawn, node="x"),
        *analysis(schedule, step, seed if drawn else None, cells=programmed.size, what="RMS"),
    ]
    still = torch.zeros(programmed.size, dtype=torch.float64)
    return Netlist("\n".join(lines) + "\n", scale, still, schedule.seconds, step, drawn)


def _header(machine: Machine, programmed: Programmed, parts: Parts, scale: float) -> Iterator[str]:
    n, spec = programmed.size, machine.spec
    yield f"* heatbath: {n} resonators of machine {ascii_comment(spec.name)}, holding a matrix of size {n} in capacitances"
    yield "*"
    yield "* C A dv/dt = -v/R - i_L + noise; A is the matrix as held, in units of full scale."
    yield f"* matrix: 1 here is {float(programmed.scale):.6g} in the matrix that was sent"
    yield f"* answer: (matrix)^-1 = covariance of the voltages times {scale:.9g} per volt^2; the mean is no solution"
    if spec.noise > 0:
        yield "* rms voltages to expect after a long time:"
        variance = torch.linalg.inv(oracle(programmed).conductance.double()).diagonal() * spec.noise
        for i, value in enumerate((variance.sqrt() * parts.volts).tolist()):
            yield f"*   v(x{i + 1}) = {value:.6g}"
    yield "* run: ngspice -b FILE.cir prints the measurements; ngspice -b -r FILE.raw FILE.cir keeps the curves"
    yield ""
    inductance = "" if parts.henry is None else f" L={parts.henry:.12g}"
    yield f".param R={parts.ohm:.12g} C={parts.farad:.12g}{inductance}"


def _network(programmed: Programmed, parts: Parts) -> Iterator[str]:
    held, cells = oracle(programmed).conductance.double(), oracle(programmed).network.cells
    entries, ground, n = held.tolist(), held.sum(-1).tolist(), programmed.size
    yield ""
    yield "* resonators; the capacitance to ground makes up each row's sum"
    for k in range(n):
        i = k + 1
        if not bool(cells.working[k]):
            yield f"Vfixed{i} x{i} 0 DC {float(cells.stuck_voltage[k]) * parts.volts:.12g}  ; this cell does not work"
            continue
        yield f"R{i} x{i} 0 {{R}}"
        if parts.henry is not None:
            yield f"L{i} x{i} 0 {{L}} ic=0"
        if ground[k] != 0:
            yield f"C{i} x{i} 0 {parts.farad * ground[k]:.12g} ic=0"
    yield ""
    yield "* couplings: minus C times the entry"
    for i in range(n):
        for j in range(i):
            if entries[i][j] != 0:
                farad = -parts.farad * entries[i][j]
                yield f"C{j + 1}_{i + 1} x{j + 1} x{i + 1} {farad:.12g} ic=0  ; {entries[i][j]:+.6g}"
