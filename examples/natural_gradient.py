"""Exact and thermodynamic natural gradient on one small regression, beside Adam.

The task: sin(3x) seen at 100 points, and a network 1-10-1 of tanh units (31 numbers). The natural gradient divides the gradient
by the curvature of the model's outputs, v = (G + λI)⁻¹g. A machine given the time t returns something between g and v.

    python examples/natural_gradient.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heatbath as hb

FISHER = hb.ExactFisher(hb.Gaussian())  # the curvature that belongs to nn.MSELoss


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1))


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-2, 2, 100).unsqueeze(1)
    return x, torch.sin(3 * x)


def steps_until(
    target: float, make: Callable[[nn.Module], torch.optim.Optimizer], limit: int = 1000
) -> tuple[int | None, torch.optim.Optimizer]:
    """How many steps bring the mean squared error below the target (None: more than the limit), and the optimizer."""
    model, (x, y) = network(), data()
    optimizer = make(model)
    observe = getattr(optimizer, "observe", lambda outputs: outputs)  # the one line that natural gradients need
    for step in range(limit):
        optimizer.zero_grad()
        loss = F.mse_loss(observe(model(x)), y)
        if loss.item() < target:
            return step, optimizer
        loss.backward()
        optimizer.step()
    return None, optimizer


def linear_regression() -> None:
    """A linear model has constant curvature: one full step is the least-squares solution."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64).unsqueeze(1) + 0.7
    model = nn.Linear(4, 1).double()
    opt = hb.NGD(model, fisher=FISHER, lr=1.0, damping=0.0)
    F.mse_loss(opt.observe(model(x)), y).backward()
    opt.step()
    weights = [round(w, 6) + 0.0 for w in (*model.weight[0].tolist(), model.bias.item())]
    print(f"one step of NGD on a linear model: {weights}; the data were made with 1, -2, 0.5, 3 and 0.7\n")


def main() -> None:
    linear_regression()
    ideal = hb.Machine(hb.load_machine("ideal"))  # τ = 1 µs, no noise, no converters
    tngd_2024 = hb.Machine(hb.load_machine("tngd-2024"))  # 16 bits, thermal noise
    known = {"fisher": FISHER, "lr": 1.0, "damping": 1e-2}
    reset = hb.TNGDPolicy(start=hb.Start.RESET)  # each step starts from 0 V
    cases: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "Adam, lr 0.03": lambda m: torch.optim.Adam(m.parameters(), lr=0.03),
        "NGD, small side": lambda m: hb.NGD(m, **known),
        "NGD, 40 conjugate-gradient steps": lambda m: hb.NGD(m, solver=hb.ConjugateGradient(40, 1e-4), **known),
        "TNGD, t = 500 τ": lambda m: hb.TNGD(m, machine=ideal, time=500e-6, policy=reset, **known),
        "TNGD, t = 50 τ": lambda m: hb.TNGD(m, machine=ideal, time=50e-6, policy=reset, **known),
        "TNGD, t = 50 τ, 16 bits": lambda m: hb.TNGD(m, machine=tngd_2024, time=50e-6, policy=reset, **known),
    }
    print("steps until the mean squared error of sin(3x) is below 0.001:")
    for name, make in cases.items():
        steps, optimizer = steps_until(1e-3, make)
        line = f"  {name:34} {'more than 1000' if steps is None else steps}"
        if isinstance(optimizer, hb.TNGD):
            line += f", {1e3 * optimizer.work.analog_seconds:.2f} ms on the machine"
        print(line)


if __name__ == "__main__":
    main()
