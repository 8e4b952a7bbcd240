"""A machine of your own: a class with a data sheet and two methods, plugged into solve, inv and K-FAC.

The class stands for a driver of hardware: it gets whole numbers, and returns whole numbers. In place of cables there is NumPy.

    python examples/own_device.py
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

import heatbath as hb
from heatbath.machines import Machine, MachineSpec, RawReads
from heatbath.solvers import linalg

TOP = 127  # the outermost code of 8 bits


class Bench:
    """One board of 128 cells that relax as τ dx = −(Âx − b̂)dt, with 8-bit converters."""

    spec = MachineSpec(name="bench", tau=1e-6, cells=128, settle_taus=200.0, matrix_bits=8, drive_bits=8, read_bits=8)

    def __init__(self):
        self.boards = {}

    def load(self, codes, slots):
        for slot, matrix in zip(slots, codes, strict=True):
            self.boards[slot] = np.linalg.eigh(matrix.double().numpy() / TOP)

    def run(self, slots, drive, plan, *, initial=None, generator=None):
        if drive is None or plan.every:
            raise ValueError("this board has no noise to read; drive it")
        time = (plan.burn_in + plan.duration) / self.spec.tau
        volts = []
        for slot, rows in zip(slots, drive.double().numpy() / TOP, strict=True):
            rates, modes = self.boards[slot]
            gain = -np.expm1(-np.maximum(rates, -0.1) * time) / rates
            volts.append(((rows @ modes) * gain) @ modes.T)
        volts = torch.from_numpy(np.stack(volts))
        peak = volts.abs().amax(-1, keepdim=True).clamp_min(1e-9)
        unit = torch.exp2(torch.ceil(torch.log2(peak))) / TOP  # the amplifier goes in powers of two
        late = torch.zeros(len(slots), dtype=torch.bool)
        codes = torch.round(volts / unit)
        return RawReads(codes, unit, torch.ones_like(unit), codes.abs() > TOP, late)


def main() -> None:
    torch.manual_seed(0)
    machine = Machine(Bench())
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.5]])
    print("solve:", linalg.solve(matrix, torch.ones(3), machine=machine).value)
    print("inverse:", linalg.inv(matrix, machine=machine).value)
    inputs, model = torch.randn(256, 20), torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    labels = (inputs @ torch.randn(20, 4)).argmax(-1)
    optimizer = hb.KFAC(model, lr=0.3, solver=hb.ThermodynamicInverse(machine))
    for step in range(20):
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (0, 19):
            print(f"loss at step {step}: {loss.item():.3f}")
    print(f"matrices sent to the board: {optimizer.work.programmings:.0f}")


if __name__ == "__main__":
    main()
