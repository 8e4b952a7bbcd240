"""The machine as a circuit: a SPICE netlist of the analog network that holds a matrix.

Each cell is an operational amplifier that integrates with a capacitor C the currents into its input, a virtual ground: entry
Â_ij feeds back the voltage v_j through a resistor R/|Â_ij| (from an inverting amplifier where Â_ij < 0), and a source of −b̂_i
drives through R. Kirchhoff's current law at the input, with an open-loop gain A₀, reads

    C (1 + 1/A₀) dv_i/dt = −(1/R) [ Σ_j Â_ij v_j + D_ii v_i/A₀ − b̂_i ] − i_n(t),       D_ii = 1 + Σ_j |Â_ij|

and an inverter multiplies by −1/(1 + 2/A₀): for A₀ → ∞ the law of `heatbath.machines` with τ = RC (resistor arrays, amplifiers
and noise sources: Aifer et al. 2023, arXiv 2308.05660; Donatella et al. 2024, arXiv 2405.13817). With an inductance, e = Âv − b̂
is formed by a summing amplifier and integrated through R and L in series: LC d²v/dt² + RC dv/dt = b̂ − Âv.

**Noise.** dv = … + sqrt(2 σ²/τ) dW, σ² = V²/β (volts²), asks of i_n the two-sided spectral density S = C² 2σ²/τ = 2σ²C/R; for
thermal noise, σ² = kT/C, that is 2kT/R, the Johnson noise of one resistor R. SPICE's `trrandom(2 Δ 0 a 0)` holds independent
normal numbers of rms a for Δ each; its density is a²Δ sinc²(fΔ), so a = sqrt(S/Δ). On average in time the variance of a mode
of rate λ is then too low by λΔ/3τ (a third is the mean of |u| under the triangle, the autocovariance of the held numbers):
0.8 % for the fastest mode with Δ a fortieth of its relaxation time. (`trnoise` joins its numbers by lines, but seeds itself
from the process in ngspice 39, so no run could be repeated.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from heatbath.machines.checks import check_mean
from heatbath.machines.converters import quantize
from heatbath.machines.machine import Machine
from heatbath.machines.netlist.circuit import (
    IDEAL_GAIN,
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
from heatbath.machines.spec import MachineSpec

CLAMP = 1e3  # conductance of the clamps at the rails, in units of 1/R


def netlist(
    machine: Machine,
    programmed: Programmed,
    drive: Tensor,
    *,
    schedule: Schedule,
    noisy: bool = True,
    seed: int = 1,
    generator: torch.Generator | None = None,
) -> Netlist:
    """The circuit of one programmed machine and one drive, with the measurements of a schedule.

    It carries what the machine holds (scaled, clipped, rounded, mismatched, stuck), converted drives, offsets, capacitance and
    noise mismatch, dead and stuck cells, rails and the gain of the amplifiers; not the read converters.

    Args:
        machine: the machine.
        programmed: what it holds, one matrix, from `machine.program`.
        drive: b, `[n]`.
        schedule: what is measured: the average over its duration, or one read at its end (`reads=1`).
        noisy: with the machine's noise sources.
        seed: of the noise sources.
        generator: randomness of the ranging pass of a machine with rails.

    Raises:
        ValueError: a stack of matrices, more than 64 cells, a matrix that is not positive definite as held, a drive of another
            shape, a schedule of several reads, or a machine coupled by capacitances.
    """
    spec = machine.spec
    _check(spec, programmed, drive, schedule)
    parts = parts_of(spec)
    cells, held = oracle(programmed).network.cells, oracle(programmed).conductance.double()
    peak = float(drive.abs().max())
    division = _division(machine, programmed, drive, schedule, generator)
    full = quantize(drive / (peak or 1.0), spec.drive_bits)[0].double()
    volts = full / division + cells.offset.double()
    scale = peak * division / (float(programmed.scale) * parts.volts)
    step, knot = _steps(programmed, spec)
    knot_or_none = knot if noisy and spec.noise > 0 else None
    settled = _settled(programmed, volts) * parts.volts
    lines = [
        *_header(spec, programmed, parts, scale, settled, schedule),
        *_cells(programmed, parts, clamped=spec.rail is not None),
        *_array(held, cells.working, parts, inverted=parts.henry is not None),
        *_drives(volts, cells.working, parts),
        *noise_sources(programmed, spec, parts, knot_or_none, node="s"),
        *analysis(schedule, step, seed if knot_or_none else None, cells=programmed.size, what="AVG"),
    ]
    return Netlist("\n".join(lines) + "\n", scale, settled, schedule.seconds, step, knot_or_none)


def _check(spec: MachineSpec, programmed: Programmed, drive: Tensor, schedule: Schedule) -> None:
    check_mean(spec)
    check_circuit(spec, programmed)
    if drive.shape != (programmed.size,):
        raise ValueError(f"a netlist takes one drive of shape [{programmed.size}], got {tuple(drive.shape)}")
    if schedule.reads not in (None, 1):
        raise ValueError(f"a netlist measures an average (reads=None) or one read (reads=1), got reads={schedule.reads}")


def _division(
    machine: Machine, programmed: Programmed, drive: Tensor, schedule: Schedule, generator: torch.Generator | None
) -> float:
    """The power of two by which the machine's ranging pass lowers this drive."""
    if machine.spec.rail is None:
        return 1.0
    reading = machine.run(programmed, drive, schedule=schedule, keep_end=False, generator=generator)
    full = drive.abs().max() / programmed.scale
    return float(reading.scale.reshape(()) / full) if float(full) > 0 else 1.0


def _steps(programmed: Programmed, spec: MachineSpec) -> tuple[float, float]:
    """Longest time step and Δ in seconds, from a bound on the fastest rate."""
    network = oracle(programmed).network
    fastest = float((network.conductance.double().abs().sum(-1) * network.cells.mobility).max())
    if spec.inertia is not None:
        fastest = max(math.sqrt(fastest / spec.inertia), 1 / spec.inertia)
    return spec.time_constant / (STEPS * fastest), spec.time_constant / (KNOTS * fastest)


def _settled(programmed: Programmed, volts: Tensor) -> Tensor:
    """Where the cells settle, over full scale: cells that do not work are held at their voltage and pull the others."""
    network = oracle(programmed).network
    cells, (matrix, constant) = network.cells, network.cells.embed(network.conductance.double())
    pull = constant - torch.where(cells.working, cells.offset, 0.0)  # `volts` has the offset already
    rows = torch.where(cells.working, volts + pull, 0.0)
    return torch.where(cells.working, torch.linalg.solve(matrix, rows), cells.stuck_voltage.double())


def _header(
    spec: MachineSpec, programmed: Programmed, parts: Parts, scale: float, settled: Tensor, schedule: Schedule
) -> Iterator[str]:
    n = programmed.size
    rates = torch.linalg.eigvalsh(oracle(programmed).conductance.double())
    yield f"* heatbath: {n} cells of machine {ascii_comment(spec.name)}, holding a matrix of size {n}"
    yield "*"
    yield "* tau dv/dt = -(A v - b) + noise, tau = R C; A is the matrix as held, in units of full scale."
    yield f"* matrix: 1 here is {float(programmed.scale):.6g} in the matrix that was sent; eigenvalues as held"
    yield f"*   {float(rates[0]):.6g} to {float(rates[-1]):.6g}, condition number {float(rates[-1] / rates[0]):.6g}"
    yield f"* answer: (matrix)^-1 (right-hand side) = voltage of the cell times {scale:.9g} per volt"
    stated = spec.resistance is not None and spec.capacitance is not None
    yield f"* tau = {spec.time_constant:.6g} s; R and C {'as stated' if stated else 'chosen: only their product is stated'}"
    if spec.amplifier_gain is None:
        yield f"* amplifiers: no open-loop gain is stated; {IDEAL_GAIN:g} stands for an ideal one"
    dead_adc = oracle(programmed).network.cells.dead_adc
    if bool(dead_adc.any()):
        dead = ", ".join(f"x{i + 1}" for i in dead_adc.nonzero().flatten().tolist())
        yield f"* the read converters of {dead} are dead: they return 0 whatever the voltage is"
    yield "* settled voltages to expect with ideal amplifiers, without noise:"
    for i, value in enumerate(settled.tolist()):
        yield f"*   v(x{i + 1}) = {value:.9g}"
    yield "* run: ngspice -b FILE.cir prints the measurements; ngspice -b -r FILE.raw FILE.cir keeps the curves"
    yield f"* measured: {_reading(schedule)}"
    yield ""
    inductance = "" if parts.henry is None else f" L={parts.henry:.12g}"
    yield f".param R={parts.ohm:.12g} C={parts.farad:.12g}{inductance} gain={parts.gain:.12g}"
    if spec.rail_volts is not None:
        yield f".param rail={spec.rail_volts:.12g}"
    yield ""
    yield "* inverting input against ground; infinite input and no output resistance"
    yield ".subckt amplifier in out"
    yield "E1 out 0 0 in {gain}"
    yield ".ends"
    if spec.rail_volts is not None:
        yield "* back-to-back clamps across an integrator: it stays within the rails and does not wind up"
        yield ".subckt clamp in out"
        yield f"B1 out in I = {CLAMP:g}/{{R}}*(max(v(out)-{{rail}},0)+min(v(out)+{{rail}},0))"
        yield ".ends"


def _reading(schedule: Schedule) -> str:
    if schedule.reads == 1:
        return f"one read at {schedule.burn_in:.6g} s"
    return f"the average from {schedule.burn_in:.6g} s to {schedule.seconds:.6g} s"


def _cells(programmed: Programmed, parts: Parts, *, clamped: bool) -> Iterator[str]:
    """Integrators; dead and stuck cells are voltage sources."""
    cells = oracle(programmed).network.cells
    yield ""
    yield "* cells: current into s, voltage of the cell at x"
    for k in range(programmed.size):
        i = k + 1
        if not bool(cells.working[k]):
            yield f"Vfixed{i} x{i} 0 DC {float(cells.stuck_voltage[k]) * parts.volts:.12g}  ; this cell does not work"
            continue
        even = float(cells.mobility[k]) == 1
        farad = "{C}" if even else f"{parts.farad / float(cells.mobility[k]):.12g}"
        inside = f"s{i}"
        if parts.henry is not None:
            inside = f"t{i}"
            yield f"Rsum{i} s{i} e{i} {{R}}"
            yield f"Xsum{i} s{i} e{i} amplifier"
            yield f"Rin{i} e{i} l{i} {{R}}"
            yield f"L{i} l{i} t{i} {{L}} ic=0"
        yield f"C{i} {inside} x{i} {farad} ic=0"
        yield f"Xcell{i} {inside} x{i} amplifier"
        if clamped:
            yield f"Xclamp{i} {inside} x{i} clamp"


def _array(held: Tensor, working: Tensor, parts: Parts, *, inverted: bool) -> Iterator[str]:
    """Inverters for the columns that need one, then the resistors, row by row."""
    sign = -1.0 if inverted else 1.0
    entries = (sign * held).tolist()
    n = len(entries)
    rows = [i for i in range(n) if bool(working[i])]
    yield ""
    yield "* inverters: -v at y"
    for j in range(n):
        if any(entries[i][j] < 0 for i in rows):
            yield f"Ra{j + 1} x{j + 1} m{j + 1} {{R}}"
            yield f"Rb{j + 1} m{j + 1} y{j + 1} {{R}}"
            yield f"Xinv{j + 1} m{j + 1} y{j + 1} amplifier"
    yield ""
    yield "* the matrix: R over the magnitude of each entry as held, from x where positive and from y where negative"
    for i in rows:
        for j in range(n):
            entry = entries[i][j]
            if entry != 0:
                source = "x" if entry > 0 else "y"
                yield f"R{i + 1}_{j + 1} {source}{j + 1} s{i + 1} {parts.ohm / abs(entry):.12g}  ; {sign * entry:+.6g}"


def _drives(volts: Tensor, working: Tensor, parts: Parts) -> Iterator[str]:
    yield ""
    yield "* drives, inverted by the integrators" if parts.henry is None else "* drives"
    sign = -1.0 if parts.henry is None else 1.0
    for k, value in enumerate(volts.tolist()):
        if bool(working[k]):
            yield f"Vdrive{k + 1} d{k + 1} 0 DC {sign * value * parts.volts:.12g}"
            yield f"Rdrive{k + 1} d{k + 1} s{k + 1} {{R}}"
