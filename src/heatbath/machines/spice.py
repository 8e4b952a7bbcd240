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
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.door import check_mean
from heatbath.machines.frontend import convert_drive
from heatbath.machines.machine import Machine
from heatbath.machines.programmed import Programmed
from heatbath.machines.schedule import Schedule
from heatbath.machines.spec import MachineSpec

LARGEST = 64  # cells; a full array of 64 has 4,096 resistors
RESISTANCE = 1e3  # ohm, where the specification states only tau; the law depends on R and C by their product alone
IDEAL_GAIN = 1e9  # stands for an infinite open-loop gain: errs by 1e-9 (1 + Σ|Â_ij|)/λ_min
STEPS = 20  # time steps in the fastest relaxation time: the trapezoidal rule errs by 1/4800 of a rate
KNOTS = 40  # independent normal numbers in the fastest relaxation time
CLAMP = 1e3  # conductance of the clamps at the rails, in units of 1/R


@dataclass(frozen=True, eq=False)
class Netlist:
    """A circuit for one matrix and one drive, and what to expect of it.

    Args:
        text: the netlist; cell i is node `x{i}`, counted from 1.
        scale: A⁻¹b per volt of a cell.
        settled: Â⁻¹b̂ in volts for amplifiers of infinite gain, `[n]`.
        seconds: how long it is simulated.
        step: longest time step, in seconds.
        knot: Δ, seconds between the independent numbers of a noise source; None without noise.
    """

    text: str
    scale: float
    settled: Tensor
    seconds: float
    step: float
    knot: float | None


@dataclass(frozen=True)
class _Parts:
    """Nominal values: R, C, L, and V, the voltage that stands for 1."""

    ohm: float
    farad: float
    henry: float | None
    volts: float
    gain: float


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
    parts = _parts(spec)
    sent = convert_drive(drive.reshape(1, -1), spec)
    division = _division(machine, programmed, drive, schedule, generator)
    volts = sent.volts[0].double() / division
    if programmed.cells.offset is not None:
        volts = volts + programmed.cells.offset.double()
    scale = float(sent.scale) * division / (float(programmed.scale) * parts.volts)
    held = programmed.held.double()
    step, knot = _steps(programmed, spec)
    knot_or_none = knot if noisy and spec.noise > 0 else None
    settled = _settled(programmed, volts) * parts.volts
    lines = [
        *_header(spec, programmed, parts, scale, settled, schedule),
        *_cells(programmed, parts, clamped=spec.rail is not None),
        *_array(held, programmed.cells.alive, parts, inverted=parts.henry is not None),
        *_drives(volts, programmed.cells.alive, parts),
        *_noise(programmed, spec, parts, knot_or_none),
        *_analysis(programmed, schedule, step, seed if knot_or_none else None),
    ]
    return Netlist("\n".join(lines) + "\n", scale, settled, schedule.seconds, step, knot_or_none)


def _check(spec: MachineSpec, programmed: Programmed, drive: Tensor, schedule: Schedule) -> None:
    check_mean(spec)
    if programmed.stack:
        raise ValueError(f"a netlist holds one matrix, got a stack of shape {tuple(programmed.stack)}; program one")
    n = programmed.size
    if n > LARGEST:
        raise ValueError(
            f"a netlist of {n} cells has up to {n * n} resistors; allowed are {LARGEST} cells: take a smaller matrix"
        )
    if drive.shape != (n,):
        raise ValueError(f"a netlist takes one drive of shape [{n}], got {tuple(drive.shape)}")
    if not bool(programmed.definite):
        low = float(torch.linalg.eigvalsh(programmed.held.double())[0])
        raise ValueError(
            f"what machine {spec.name!r} holds is not positive definite (smallest eigenvalue {low:.2g} of full scale), so the "
            "circuit would run away; raise the damping of the matrix or the matrix bits"
        )
    if schedule.reads not in (None, 1):
        raise ValueError(f"a netlist measures an average (reads=None) or one read (reads=1), got reads={schedule.reads}")


def _parts(spec: MachineSpec) -> _Parts:
    """R and C as stated; where only tau is, R = 1 kOhm or the one that goes with the C stated."""
    tau, ohm = spec.time_constant, spec.resistance
    if ohm is None:
        ohm = RESISTANCE if spec.capacitance is None else tau / spec.capacitance
    return _Parts(ohm, tau / ohm, spec.inductance, spec.volts, spec.amplifier_gain or IDEAL_GAIN)


def _division(
    machine: Machine, programmed: Programmed, drive: Tensor, schedule: Schedule, generator: torch.Generator | None
) -> float:
    """The power of two by which the machine's ranging pass lowers this drive."""
    if machine.spec.rail is None:
        return 1.0
    reading = machine.run(programmed, drive, schedule=schedule, keep_end=False, generator=generator)
    full = convert_drive(drive.reshape(1, -1), machine.spec).scale / programmed.scale
    return float(reading.scale.reshape(()) / full.reshape(())) if float(full) > 0 else 1.0


def _steps(programmed: Programmed, spec: MachineSpec) -> tuple[float, float]:
    """Longest time step and Δ in seconds, from a bound on the fastest rate."""
    rate = programmed.held.double().abs().sum(-1)
    if programmed.cells.speed is not None:
        rate = rate * programmed.cells.speed
    fastest = float(rate.max())
    if spec.inertia is not None:
        fastest = max(math.sqrt(fastest / spec.inertia), 1 / spec.inertia)
    return spec.time_constant / (STEPS * fastest), spec.time_constant / (KNOTS * fastest)


def _settled(programmed: Programmed, volts: Tensor) -> Tensor:
    """Where the cells settle, over full scale: cells that do not work are held at their voltage and pull the others."""
    matrix, pull = programmed.cells.embed(programmed.held.double())
    alive, fixed = programmed.cells.alive, programmed.cells.fixed
    if alive is None or fixed is None:
        return torch.linalg.solve(matrix, volts)
    assert pull is not None
    constant = pull if programmed.cells.offset is None else pull - programmed.cells.offset  # `volts` has the offset already
    return torch.where(alive, torch.linalg.solve(matrix, torch.where(alive, volts + constant, 0.0)), fixed.double())


def _header(
    spec: MachineSpec, programmed: Programmed, parts: _Parts, scale: float, settled: Tensor, schedule: Schedule
) -> Iterator[str]:
    n = programmed.size
    rates = torch.linalg.eigvalsh(programmed.held.double())
    yield f"* heatbath: {n} cells of machine {_ascii(spec.name)}, holding a matrix of size {n}"
    yield "*"
    yield "* tau dv/dt = -(A v - b) + noise, tau = R C; A is the matrix as held, in units of full scale."
    yield f"* matrix: 1 here is {float(programmed.scale):.6g} in the matrix that was sent; eigenvalues as held"
    yield f"*   {float(rates[0]):.6g} to {float(rates[-1]):.6g}, condition number {float(rates[-1] / rates[0]):.6g}"
    yield f"* answer: (matrix)^-1 (right-hand side) = voltage of the cell times {scale:.9g} per volt"
    stated = spec.resistance is not None and spec.capacitance is not None
    yield f"* tau = {spec.time_constant:.6g} s; R and C {'as stated' if stated else 'chosen: only their product is stated'}"
    if spec.amplifier_gain is None:
        yield f"* amplifiers: no open-loop gain is stated; {IDEAL_GAIN:g} stands for an ideal one"
    if programmed.cells.mute is not None and bool(programmed.cells.mute.any()):
        dead = ", ".join(f"x{i + 1}" for i in programmed.cells.mute.nonzero().flatten().tolist())
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


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\n", " ")


def _cells(programmed: Programmed, parts: _Parts, *, clamped: bool) -> Iterator[str]:
    """Integrators; dead and stuck cells are voltage sources."""
    cells = programmed.cells
    yield ""
    yield "* cells: current into s, voltage of the cell at x"
    for k in range(programmed.size):
        i = k + 1
        if cells.alive is not None and cells.fixed is not None and not bool(cells.alive[k]):
            yield f"Vfixed{i} x{i} 0 DC {float(cells.fixed[k]) * parts.volts:.12g}  ; this cell does not work"
            continue
        farad = "{C}" if cells.speed is None else f"{parts.farad / float(cells.speed[k]):.12g}"
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


def _array(held: Tensor, alive: Tensor | None, parts: _Parts, *, inverted: bool) -> Iterator[str]:
    """Inverters for the columns that need one, then the resistors, row by row."""
    sign = -1.0 if inverted else 1.0
    entries = (sign * held).tolist()
    n = len(entries)
    rows = [i for i in range(n) if alive is None or bool(alive[i])]
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


def _drives(volts: Tensor, alive: Tensor | None, parts: _Parts) -> Iterator[str]:
    yield ""
    yield "* drives, inverted by the integrators" if parts.henry is None else "* drives"
    sign = -1.0 if parts.henry is None else 1.0
    for k, value in enumerate(volts.tolist()):
        if alive is None or bool(alive[k]):
            yield f"Vdrive{k + 1} d{k + 1} 0 DC {sign * value * parts.volts:.12g}"
            yield f"Rdrive{k + 1} d{k + 1} s{k + 1} {{R}}"


def _noise(programmed: Programmed, spec: MachineSpec, parts: _Parts, knot: float | None) -> Iterator[str]:
    """A current source at each integrator; see the module's docstring for the amplitude."""
    if knot is None:
        return
    cells = programmed.cells
    density = 2 * spec.noise * parts.volts**2 * parts.farad / parts.ohm
    yield ""
    yield f"* noise: two-sided density {density:.6g} A^2/Hz up to about {0.44 / knot:.3g} Hz;"
    yield f"* a cell of conductance 1 without couplings fluctuates by {math.sqrt(spec.noise) * parts.volts:.6g} V rms"
    for k in range(programmed.size):
        if cells.alive is not None and not bool(cells.alive[k]):
            continue
        factor = 1.0 if cells.loudness is None else float(cells.loudness[k])
        if cells.speed is not None:
            factor /= float(cells.speed[k])  # noise that matches the capacitance, as in the law
        amplitude = math.sqrt(density * factor / knot)
        yield f"Inoise{k + 1} 0 s{k + 1} DC 0 TRRANDOM(2 {knot:.12g} 0 {amplitude:.9g} 0)"


def _analysis(programmed: Programmed, schedule: Schedule, step: float, seed: int | None) -> Iterator[str]:
    yield ""
    yield "* from rest; a longest step that resolves the fastest mode"
    if seed is not None:
        yield f".options seed={seed}"
    yield f".tran {step:.9g} {schedule.seconds:.12g} 0 {step:.9g} uic"
    names = [f"v(x{i + 1})" for i in range(programmed.size)]
    for begin in range(0, len(names), 8):
        yield f".save {' '.join(names[begin : begin + 8])}"
    for i, name in enumerate(names):
        if schedule.reads == 1:
            yield f".meas tran cell{i + 1} FIND {name} AT={schedule.burn_in:.12g}"
        else:
            yield f".meas tran cell{i + 1} AVG {name} FROM={schedule.burn_in:.12g} TO={schedule.seconds:.12g}"
    yield ".end"
