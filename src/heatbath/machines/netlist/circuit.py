"""What the circuits of `spice` and `resonators` share: component values, noise sources, the analysis.

The theory is in `heatbath.machines.spice`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.machines.oracle import oracle
from heatbath.machines.readings import Programmed
from heatbath.machines.schedule import Schedule
from heatbath.machines.spec import MachineSpec

LARGEST = 64  # cells; a full array of 64 has 4,096 resistors
RESISTANCE = 1e3  # ohm, where the specification states only tau; the law depends on R and C by their product alone
IDEAL_GAIN = 1e9  # stands for an infinite open-loop gain: errs by 1e-9 (1 + Σ|Â_ij|)/λ_min
STEPS = 20  # time steps in the fastest relaxation time: the trapezoidal rule errs by 1/4800 of a rate
KNOTS = 40  # independent normal numbers in the fastest relaxation time


@dataclass(frozen=True, eq=False)
class Netlist:
    """A circuit for one matrix, and what to expect of it.

    Args:
        text: the netlist; cell i is node `x{i}`, counted from 1.
        scale: A⁻¹b per volt of a cell; of resonators, A⁻¹ per volt² of covariance.
        settled: mean voltages at the end: Â⁻¹b̂ in volts for amplifiers of infinite gain, 0 of resonators, `[n]`.
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
class Parts:
    """Nominal values: R, C, L, and V, the voltage that stands for 1."""

    ohm: float
    farad: float
    henry: float | None
    volts: float
    gain: float


def parts_of(spec: MachineSpec) -> Parts:
    """R and C as stated; where only tau is, R = 1 kOhm or the one that goes with the C stated."""
    tau, ohm = spec.time_constant, spec.resistance
    if ohm is None:
        ohm = RESISTANCE if spec.capacitance is None else tau / spec.capacitance
    return Parts(ohm, tau / ohm, spec.inductance, spec.volts, spec.amplifier_gain or IDEAL_GAIN)


def check_circuit(spec: MachineSpec, programmed: Programmed) -> None:
    """Refuse what is no circuit of its own, or too large, or unstable.

    Raises:
        ValueError: a stack of matrices, more than 64 cells, or a matrix that is not positive definite as held.
    """
    if programmed.stack:
        raise ValueError(f"a netlist holds one matrix, got a stack of shape {tuple(programmed.stack)}; program one")
    n = programmed.size
    if n > LARGEST:
        raise ValueError(f"a netlist of {n} cells has up to {n * n} couplings; allowed are {LARGEST} cells: a smaller matrix")
    if not bool(oracle(programmed).definite):
        low = float(torch.linalg.eigvalsh(oracle(programmed).conductance.double())[0])
        raise ValueError(
            f"what machine {spec.name!r} holds is not positive definite (smallest eigenvalue {low:.2g} of full scale), so the "
            "circuit would run away; raise the damping of the matrix or the matrix bits"
        )


def ascii_comment(text: str) -> str:
    """Text for the comments of a netlist, which some simulators read as ASCII only."""
    return text.encode("ascii", "replace").decode().replace("\n", " ")


def noise_sources(programmed: Programmed, spec: MachineSpec, parts: Parts, knot: float | None, *, node: str) -> Iterator[str]:
    """A current source into the node of each cell that works."""
    if knot is None:
        return
    cells = oracle(programmed).network.cells
    density = 2 * spec.noise * parts.volts**2 * parts.farad / parts.ohm
    yield ""
    yield f"* noise: two-sided density {density:.6g} A^2/Hz up to about {0.44 / knot:.3g} Hz;"
    yield f"* a cell of conductance 1 without couplings fluctuates by {math.sqrt(spec.noise) * parts.volts:.6g} V rms"
    for k in range(programmed.size):
        if not bool(cells.working[k]):
            continue
        factor = float(cells.noise_intensity[k] / cells.mobility[k])  # noise that matches the capacitance, as in `dynamics`
        amplitude = math.sqrt(density * factor / knot)
        yield f"Inoise{k + 1} 0 {node}{k + 1} DC 0 TRRANDOM(2 {knot:.12g} 0 {amplitude:.9g} 0)"


def analysis(schedule: Schedule, step: float, seed: int | None, *, cells: int, what: str) -> Iterator[str]:
    """The transient analysis and one measurement of each cell: one read, or `what` (AVG, RMS) over the duration."""
    yield ""
    yield "* from rest; a longest step that resolves the fastest mode"
    if seed is not None:
        yield f".options seed={seed}"
    yield f".tran {step:.9g} {schedule.seconds:.12g} 0 {step:.9g} uic"
    names = [f"v(x{i + 1})" for i in range(cells)]
    for begin in range(0, len(names), 8):
        yield f".save {' '.join(names[begin : begin + 8])}"
    for i, name in enumerate(names):
        if schedule.reads == 1:
            yield f".meas tran cell{i + 1} FIND {name} AT={schedule.burn_in:.12g}"
        else:
            yield f".meas tran cell{i + 1} {what} {name} FROM={schedule.burn_in:.12g} TO={schedule.seconds:.12g}"
    yield ".end"
