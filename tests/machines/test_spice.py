"""The netlist obeys the laws of the machine, by another program: ngspice."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from heatbath.machines import Machine, MachineSpec, Netlist, Programmed, Schedule, load_machine, netlist, with_bits
from heatbath.machines.netlist.circuit import KNOTS, STEPS
from heatbath.machines.netlist.feedback import CLAMP
from heatbath.machines.oracle import oracle
from tests.machines.ngspice import curves, effective, needs_ngspice, simulate
from tests.machines.truth import spd

CELL = MachineSpec(name="cell", resistance=2e3, capacitance=5e-10)  # tau = 1 µs
DRIVE = torch.tensor([1.0, -0.5, 0.25, 0.8, 0.0, -0.3], dtype=torch.float64)


def circuit(spec: MachineSpec, matrix: torch.Tensor, drive: torch.Tensor, schedule: Schedule) -> tuple[Programmed, Netlist]:
    machine = Machine(spec, serial=3)
    programmed = machine.program(matrix, generator=torch.Generator().manual_seed(0))
    return programmed, netlist(machine, programmed, drive, schedule=schedule)


def measurements(text: str, folder: Path) -> np.ndarray:
    found = re.findall(r"^cell(\d+)\s*=\s*(\S+)", simulate(text, folder), flags=re.MULTILINE)
    assert [int(i) for i, _ in found] == list(range(1, len(found) + 1))
    return np.array([float(value) for _, value in found])


@needs_ngspice
def test_settled_voltages_are_the_inverse_of_what_the_machine_holds(tmp_path: Path) -> None:
    spec = with_bits(MachineSpec(name="m", tau=3e-6, gain_mismatch=0.02), matrix=8, drive=8)
    matrix = spd(6, 12.0)
    programmed, got = circuit(spec, matrix, DRIVE, Schedule(600e-6, 0.0, 1))
    held = oracle(programmed).conductance.numpy()
    volts = np.round(DRIVE.numpy() * 127) / 127  # the 8-bit converter
    expected = np.linalg.solve(held, volts)
    slowest = np.linalg.eigvalsh(held)[0]
    bound = np.exp(-slowest * 600 / 3) + 1e-9 * (1 + np.abs(held).sum(1).max()) / slowest + 1e-9  # unsettled, gain, time grid
    measured = curves(got.text, tmp_path)[1][-1]
    assert np.abs(measured - expected).max() < bound * np.linalg.norm(expected)
    assert got.settled.numpy() == pytest.approx(expected, rel=1e-12)
    answer, ideal = measured * got.scale, np.linalg.solve(matrix.numpy(), DRIVE.numpy())
    rounding = 12.0 * np.linalg.norm(held * float(programmed.scale) - matrix.numpy(), 2) + 12.0 * 6**0.5 / 254
    assert np.linalg.norm(answer - ideal) < 1.5 * rounding * np.linalg.norm(ideal)  # first-order bound, and half as much again


@needs_ngspice
def test_settling_curve_is_the_exact_law(tmp_path: Path) -> None:
    programmed, got = circuit(CELL, spd(6, 10.0, seed=1), DRIVE, Schedule(20e-6, 0.0, 1))
    times, volts = curves(got.text, tmp_path)
    rates, modes = np.linalg.eigh(oracle(programmed).conductance.numpy())
    settled = modes.T @ DRIVE.numpy() / rates
    exact = (-np.expm1(-np.outer(times / 1e-6, rates)) * settled) @ modes.T
    assert np.diff(times).max() <= got.step * (1 + 1e-9)
    # trapezoidal rule: the rate of a mode is off by (λh)²/12, and x e^{-x} ≤ 1/e; one implicit Euler step of h/10 begins
    h = got.step / 1e-6
    bound = (np.abs(settled) * ((rates * h) ** 2 / 12 / np.e + (rates * h / 10) ** 2 / 2)).sum()
    assert bound < 2e-3 * np.abs(exact).max()
    assert np.abs(volts - exact).max() < bound
    for taus in (0.3, 1.0, 3.0, 10.0):  # and a wrong rate would be seen at each of these
        row = np.abs(times / 1e-6 - taus).argmin()
        slower = (-np.expm1(-times[row] / 1e-6 * rates * 0.97) * settled) @ modes.T
        assert np.abs(volts[row] - slower).max() > bound


@needs_ngspice
def test_finite_gain_adds_what_kirchhoff_says(tmp_path: Path) -> None:
    gain = 500.0
    spec = MachineSpec(name="m", tau=1e-6, amplifier_gain=gain)
    programmed, got = circuit(spec, spd(6, 8.0, seed=2), DRIVE, Schedule(300e-6, 0.0, 1))
    held = oracle(programmed).conductance.numpy()
    loop = np.where(held < 0, held / (1 + 2 / gain), held) + np.diag(1 + np.abs(held).sum(1)) / gain
    measured = curves(got.text, tmp_path)[1][-1]
    assert measured == pytest.approx(np.linalg.solve(loop, DRIVE.numpy()), abs=1e-8)
    assert np.abs(measured - got.settled.numpy()).max() > 1e-3


@needs_ngspice
@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"capacitance_mismatch": 0.29, "noise_mismatch": 0.2}], ids=["alike", "mismatched"])
def test_noise_has_the_mean_and_covariance_of_the_law(changes: dict[str, float], tmp_path: Path) -> None:
    noise, n = 0.1**2, 3
    spec = MachineSpec(**{"name": "m", "tau": 1e-6, "noise_volts_rms": 0.1, **changes})
    programmed, got = circuit(spec, spd(n, 4.0, seed=3), DRIVE[:n], Schedule(1000e-6, 500e-6))
    assert got.knot is not None
    held, cells = oracle(programmed).conductance.numpy(), oracle(programmed).network.cells
    speed = np.ones(n) if cells.mobility is None else cells.mobility.numpy()
    loudness = np.ones(n) if cells.noise_intensity is None else cells.noise_intensity.numpy()
    root = np.sqrt(speed)  # z = P^{-1/2} x has the symmetric drift P^{1/2} A P^{1/2}, and noise of covariance D
    rates, modes = np.linalg.eigh(root[:, None] * held * root)
    colour = modes.T @ np.diag(loudness) @ modes
    times, volts = curves(got.text, tmp_path)
    knots = np.round(times / got.knot)
    on = np.abs(times / got.knot - knots) < 1e-6
    _, first = np.unique(knots[on], return_index=True)
    around = volts[on][first] - np.linalg.solve(held, DRIVE[:n].numpy())
    modal = ((around / root) @ modes)[int(12 / rates[0] / got.knot * 1e-6) :]
    count = len(modal)
    assert count > 0.9 * got.seconds / got.knot
    # between joints the noise is constant: y ← r y + ξ (1 − r)/λ
    decay = np.exp(-rates * got.knot / 1e-6)
    push = (1 - decay) / rates
    covariance = colour * np.outer(push, push) / (1 - np.outer(decay, decay)) * 2 * noise / (got.knot / 1e-6)
    law = 2 * noise * colour / (rates[:, None] + rates)  # A⁻¹/β for cells that are alike
    spread = np.sqrt(np.outer(np.diag(law), np.diag(law)))
    assert (np.abs(covariance - law) / spread).max() < 1 / KNOTS**2  # white enough
    z = [abs(modal[:, i].mean()) / np.sqrt(covariance[i, i] / effective(decay[i], count)) for i in range(n)]
    for i in range(n):
        for j in range(i + 1):
            independent = effective(decay[i] * decay[j], count)
            error = np.sqrt((covariance[i, i] * covariance[j, j] + covariance[i, j] ** 2) / independent)
            z.append(abs((modal[:, i] * modal[:, j]).mean() - covariance[i, j]) / error)
    assert max(z) < 3.5  # nine numbers: a chance of 0.4 % if all is well
    assert np.sqrt(effective(decay[0] ** 2, count) / 2) > 10  # and a variance wrong by a factor 2 is more than 10 errors off


@needs_ngspice
@pytest.mark.parametrize(
    "changes",
    [
        {"capacitance_mismatch": 0.25},
        {"offset_mismatch": 0.1},
        {"dead_cells": 0.4},
        {"stuck_cells": 0.4},
        {"stuck_entries": 0.08},
        {"inductance": 3e-3},
        {"full_scale_volts": 0.2},
        {"full_scale_volts": 0.5, "rail_volts": 0.6},
    ],
    ids=str,
)
def test_imperfect_machines_are_measured_as_emulated(changes: dict[str, float], tmp_path: Path) -> None:
    spec = MachineSpec(**{"name": "m", "resistance": 2e3, "capacitance": 5e-10, **changes})
    matrix, schedule = spd(6, 6.0, seed=4) + 0.5 * torch.eye(6, dtype=torch.float64), Schedule(3e-6, 2e-6)
    machine = Machine(spec, serial=2, tolerance=0.0)
    programmed = machine.program(matrix)
    got = netlist(machine, programmed, DRIVE, schedule=schedule)
    reading = machine.run(programmed, DRIVE, schedule=schedule)
    measured = measurements(got.text, tmp_path) * got.scale
    ideal = Machine(CELL).run(Machine(CELL).program(matrix), DRIVE, schedule=schedule).mean
    # six digits are printed; the time step errs as in the settling curve, the ringing of an inductance likewise
    bound = (0.5 / STEPS**2 + 2 / CLAMP) * float(reading.mean.abs().max())
    assert np.abs(measured - reading.mean.numpy()).max() < bound
    if "full_scale_volts" not in changes:
        assert float((reading.mean - ideal).abs().max()) > 5 * bound  # the imperfection matters


@needs_ngspice
def test_rails_hold_the_cells(tmp_path: Path) -> None:
    spec = MachineSpec(name="m", tau=1e-6, rail_volts=1.0)
    machine = Machine(spec)
    programmed = machine.program(torch.eye(2, dtype=torch.float64))
    got = netlist(machine, programmed, torch.ones(2, dtype=torch.float64), schedule=Schedule(20e-6, 0.0, 1))
    louder = got.text.replace("DC -1", "DC -3")  # past the ranging pass
    assert louder != got.text
    assert measurements(louder, tmp_path) == pytest.approx(1.0 + 2.0 / (CLAMP + 1), abs=1e-5)


@needs_ngspice
def test_a_seed_repeats_the_noise(tmp_path: Path) -> None:
    machine = Machine(MachineSpec(name="m", tau=1e-6, noise_volts_rms=0.1))
    programmed = machine.program(torch.eye(2, dtype=torch.float64))

    def run(seed: int) -> np.ndarray:
        got = netlist(machine, programmed, DRIVE[:2], schedule=Schedule(5e-6, 5e-6), seed=seed)
        return measurements(got.text, tmp_path)

    assert (run(1) == run(1)).all()
    assert (run(1) != run(2)).all()


def test_the_resistors_are_what_the_machine_holds() -> None:
    programmed, got = circuit(with_bits(CELL, matrix=6), spd(6, 6.0, seed=4), DRIVE, Schedule(50e-6, 0.0, 1))
    rebuilt = np.zeros((6, 6))
    for i, j, sign, ohm in re.findall(r"^R(\d)_(\d) ([xy])\d s\d (\S+)", got.text, flags=re.MULTILINE):
        rebuilt[int(i) - 1, int(j) - 1] = (1 if sign == "x" else -1) * 2e3 / float(ohm)
    assert rebuilt == pytest.approx(oracle(programmed).conductance.numpy(), abs=1e-10)
    assert got.text.isascii()
    assert max(len(line) for line in got.text.splitlines()) < 130


def test_thermal_noise_is_that_of_one_resistor() -> None:
    spec = load_machine("tngd-2024")
    _, got = circuit(spec, torch.eye(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), Schedule(50e-6, 0.0, 1))
    density = float(re.search(r"two-sided density (\S+) A", got.text).group(1))  # type: ignore[union-attr]
    assert density == pytest.approx(2 * 1.380649e-23 * 300 / 1e3, rel=1e-5)  # Johnson 1928, Nyquist 1928: 4kT/R one-sided
    knot, rms = (float(v) for v in re.search(r"TRRANDOM\(2 (\S+) 0 (\S+) 0\)", got.text).groups())  # type: ignore[union-attr]
    assert rms**2 * knot == pytest.approx(density, rel=1e-5)
    machine = Machine(spec)
    quiet = netlist(
        machine,
        machine.program(torch.eye(1, dtype=torch.float64)),
        torch.ones(1, dtype=torch.float64),
        schedule=Schedule(50e-6, 0.0, 1),
        noisy=False,
    )
    assert "TRRANDOM" not in quiet.text
    assert quiet.knot is None


def test_only_the_product_of_resistance_and_capacitance_matters_where_only_tau_is_stated() -> None:
    for spec in (
        MachineSpec(name="m", tau=2e-6),
        MachineSpec(name="m", tau=2e-6, resistance=1e5),
        MachineSpec(name="m", tau=2e-6, capacitance=1e-12),
    ):
        _, got = circuit(spec, torch.eye(2, dtype=torch.float64), DRIVE[:2], Schedule(50e-6, 0.0, 1))
        ohm, farad = (float(v) for v in re.search(r"R=(\S+) C=(\S+)", got.text).groups())  # type: ignore[union-attr]
        assert ohm * farad == pytest.approx(2e-6)
        assert spec.resistance in (None, ohm)
        assert spec.capacitance is None or spec.capacitance == pytest.approx(farad)


def test_dead_converters_are_named() -> None:
    spec = MachineSpec(name="µ-machine", tau=1e-6, dead_converters=0.5)
    programmed, got = circuit(spec, spd(6, 2.0), DRIVE, Schedule(9e-6, 0.0, 1))
    assert oracle(programmed).network.cells.dead_adc is not None
    dead = [f"x{i + 1}" for i in oracle(programmed).network.cells.dead_adc.nonzero().flatten().tolist()]
    assert 0 < len(dead) < 6
    assert f"read converters of {', '.join(dead)} are dead" in got.text
    assert got.text.isascii()


@pytest.mark.parametrize(
    "changes,matrix,drive,schedule,message",
    [
        (
            {},
            spd(2, 2.0, stack=(3,)),
            torch.ones(3, 2),
            Schedule(1e-6, 0.0, 1),
            r"holds one matrix, got a stack of shape \(3,\)",
        ),
        ({}, torch.eye(65), torch.ones(65), Schedule(1e-6, 0.0, 1), "65 cells has up to 4225 couplings; allowed are 64 cells"),
        ({}, torch.eye(2), torch.ones(3), Schedule(1e-6, 0.0, 1), r"one drive of shape \[2\], got \(3,\)"),
        ({}, torch.eye(2), torch.ones(2), Schedule(1e-6, 1e-6, 4), "an average .* or one read .*, got reads=4"),
        (
            {},
            torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
            torch.ones(2),
            Schedule(1e-6, 0.0, 1),
            "what machine 'm' holds is not positive definite .smallest eigenvalue -0.5",
        ),
        ({"coupling": "capacitive"}, torch.eye(2), torch.ones(2), Schedule(1e-6, 0.0, 1), "holds the matrix in capacitances"),
    ],
)
def test_what_is_no_circuit_is_refused(
    changes: dict[str, str], matrix: torch.Tensor, drive: torch.Tensor, schedule: Schedule, message: str
) -> None:
    spec = MachineSpec(**{"name": "m", "tau": 1e-6, **changes})
    machine = Machine(spec)
    programmed = machine.program(matrix.double())
    with pytest.raises(ValueError, match=message):
        netlist(machine, programmed, drive.double(), schedule=schedule)
