"""The network that was built, by ngspice: its response and its noise are those of the law."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from heatbath.machines import Machine, MachineSpec, Schedule, resonator_netlist
from heatbath.machines.netlist.circuit import KNOTS
from heatbath.machines.oracle import oracle
from tests.machines.ngspice import curves, effective_of, needs_ngspice, simulate

# two couplings as capacitors, one that would need a negative one
MATRIX = torch.tensor([[1.0, -0.3, 0.0], [-0.3, 0.8, 0.15], [0.0, 0.15, 0.6]], dtype=torch.float64)
SPEC = MachineSpec(
    name="spu", resistance=1e3, capacitance=1e-9, inductance=4e-4, coupling="capacitive", noise_volts_rms=0.1
)  # μ = 0.4: rings


def network(held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drift F of (v, i_L) in seconds and volts, amperes, and C₀Â; from Kirchhoff's laws alone."""
    n, capacitance = len(held), 1e-9 * held
    inverse = np.linalg.inv(capacitance)
    return np.block([[-inverse / 1e3, -inverse], [np.eye(n) / 4e-4, np.zeros((n, n))]]), capacitance


@needs_ngspice
def test_a_current_step_rings_as_the_network_does(tmp_path: Path) -> None:
    machine = Machine(SPEC)
    programmed = machine.program(MATRIX)
    got = resonator_netlist(machine, programmed, schedule=Schedule(0.0, 15e-6), noisy=False)
    times, volts = curves(got.text.replace(".end\n", "Istep 0 x1 DC 1m\n.end\n"), tmp_path)
    drift, capacitance = network(oracle(programmed).conductance.numpy())
    push = np.concatenate([np.linalg.solve(capacitance, [1e-3, 0.0, 0.0]), np.zeros(3)])
    rest = np.linalg.solve(drift, push)  # z(t) = (e^{Ft} − 1) F⁻¹ g
    exact = np.stack([(scipy.linalg.expm(drift * t) - np.eye(6))[:3] @ rest for t in times[::20]])
    # trapezoidal rule: a mode s errs by (|s|h)²/12 of |s|t e^{−Re s t} at most; the amplitudes add up at worst
    rates, modes = np.linalg.eig(drift)
    amplitude = np.abs(modes[:3]) @ np.abs(np.linalg.solve(modes, rest))
    worst = max((abs(s) * got.step) ** 2 / 12 * abs(s) / -s.real / np.e for s in rates)
    assert np.abs(volts[::20] - exact).max() < 1.5 * worst * amplitude.max()
    assert np.abs(exact).max() > 30 * worst * amplitude.max()
    assert (np.diff(np.sign(exact[:, 0])) != 0).sum() >= 2  # it rings


@needs_ngspice
@pytest.mark.slow
def test_the_covariance_of_its_noise_is_the_inverse(tmp_path: Path) -> None:
    machine = Machine(SPEC)
    programmed = machine.program(MATRIX)
    got = resonator_netlist(machine, programmed, schedule=Schedule(20e-6, 800e-6))
    assert got.knot is not None
    times, volts = curves(got.text, tmp_path)
    knots = np.round(times / got.knot)
    on = np.abs(times / got.knot - knots) < 1e-6
    _, first = np.unique(knots[on], return_index=True)
    held = oracle(programmed).conductance.numpy()
    values, modes = np.linalg.eigh(held)
    modal = (volts[on][first] @ modes)[int(20e-6 / got.knot) :]
    count = len(modal)
    assert count > 0.9 * got.seconds / got.knot
    law = 0.1**2 / values
    correlations = []
    for value in values:  # of one mode, (v, i_L) in equilibrium: C v²/2 and L i²/2 alike
        drift, _ = network(np.array([[value]]))
        step, lags = scipy.linalg.expm(drift * got.knot), np.empty(count)
        state = np.array([1.0, 0.0])
        for k in range(count):
            lags[k] = state[0]
            state = step @ state
        correlations.append(lags)
    z = []
    for i in range(3):
        z.append(abs(modal[:, i].mean()) / np.sqrt(law[i] / effective_of(correlations[i])))
        for j in range(i + 1):
            independent = effective_of(correlations[i] * correlations[j])
            error = np.sqrt((1 + (i == j)) * law[i] * law[j] / independent)
            white = law[i] * (i == j) / (3 * KNOTS)  # at most that much is missing, since the noise is not quite white
            z.append(max(0.0, abs((modal[:, i] * modal[:, j]).mean() - (i == j) * law[i]) - white) / error)
    assert max(z) < 3.5  # nine numbers: a chance of 0.4 % if all is well
    assert np.sqrt(effective_of(correlations[0] ** 2) / 2) > 10  # a variance wrong by a factor 2 is more than 10 errors off
    read = np.cov(volts[on][first][int(20e-6 / got.knot) :].T) * got.scale
    assert read == pytest.approx(np.linalg.inv(MATRIX.numpy()), abs=0.5)


@needs_ngspice
def test_it_measures_the_rms_of_each_voltage(tmp_path: Path) -> None:
    machine = Machine(SPEC)
    got = resonator_netlist(machine, machine.program(MATRIX), schedule=Schedule(5e-6, 50e-6), seed=2)
    said = simulate(got.text, tmp_path)
    assert said.count("cell") == 3
    expected = [float(line.split("=")[1]) for line in got.text.splitlines() if line.startswith("*   v(x")]
    assert expected == pytest.approx(0.1 * np.sqrt(np.diag(np.linalg.inv(MATRIX.numpy()))), rel=1e-5)


def test_the_capacitors_are_maxwells_matrix() -> None:
    machine = Machine(MachineSpec(name="m", resistance=1e3, capacitance=1e-9, coupling="capacitive", dead_cells=0.4), serial=2)
    programmed = machine.program(MATRIX)
    got = resonator_netlist(machine, programmed, schedule=Schedule(0.0, 1e-6))
    nodal = np.zeros((3, 3))
    for words in (line.split() for line in got.text.splitlines() if line.startswith("C")):
        i, j, farad = int(words[1][1:]) - 1, int(words[2].lstrip("x")) - 1, float(words[3])
        nodal[i, i] += farad
        if j >= 0:
            nodal[j, j] += farad
            nodal[i, j] -= farad
            nodal[j, i] -= farad
    alive = oracle(programmed).network.cells.working.numpy()  # type: ignore[union-attr]
    assert 0 < alive.sum() < 3
    assert (nodal / 1e-9)[np.ix_(alive, alive)] == pytest.approx(
        oracle(programmed).conductance.numpy()[np.ix_(alive, alive)], abs=1e-12
    )
    assert got.text.count("does not work") == (~alive).sum()
    assert "TRRANDOM" not in got.text  # no noise is stated
    assert not any(line.startswith("L") for line in got.text.splitlines())


@pytest.mark.parametrize(
    "changes,schedule,message",
    [
        ({}, Schedule(1e-6, 1e-6), "machine 'm' is coupled by resistors; use netlist"),
        ({"coupling": "capacitive", "offset_mismatch": 0.1}, Schedule(1e-6, 1e-6), "offset_mismatch = 0.1 has no place"),
        ({"coupling": "capacitive"}, Schedule(1e-6, 0.0, 1), "an rms needs a duration above 0 s"),
    ],
)
def test_what_is_no_such_network_is_refused(changes: dict, schedule: Schedule, message: str) -> None:
    machine = Machine(MachineSpec(name="m", tau=1e-6, **changes))
    with pytest.raises(ValueError, match=message):
        resonator_netlist(machine, machine.program(MATRIX), schedule=schedule)
