"""Digits by equilibrium propagation, next to backpropagation, and how far its gradients are from the truth.

    python examples/equilibrium_propagation.py --out docs/figures

The network settles three times for each batch: free, pulled to the target, pushed away from it. Backpropagation trains the same
layers as a plain feed-forward network with the same optimizer, cost and batches.
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.costs import h100, price, with_unit
from heatbath.experiments.data import digits
from heatbath.machines import load_machine
from heatbath.optim import EquilibriumPropagation

BETAS = (0.4, 0.1, 0.03, 0.01, 1e-3, 1e-4)


def network() -> nn.Sequential:
    """64-128-10 with units that stay in [0, 1]."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Hardtanh(0.0, 1.0), nn.Linear(128, 10))


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test digits: pixels `[B, 64]` in [0, 1] and labels."""
    data = digits.load()
    parts = [split.batch(torch.arange(len(split))) for split in (data.train, data.test)]
    return tuple((images.flatten(1), labels) for images, labels in parts)


def train(propagate: bool, epochs: int) -> list[float]:
    """Test accuracy after every pass over the training data."""
    (x, labels), (x_test, labels_test) = load()
    model = network()
    trainer = EquilibriumPropagation(model, free_sweeps=20, nudged_sweeps=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    curve = []
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            targets = F.one_hot(labels[rows], 10).float()
            if propagate:
                trainer.backward(x[rows], targets)
            else:
                (0.5 * (model(x[rows]) - targets).square().sum(-1).mean()).backward()
            optimizer.step()
        with torch.no_grad():
            output = trainer.relax(x_test)[-1] if propagate else model(x_test)
        curve.append(float((output.argmax(-1) == labels_test).double().mean()))
    return curve


def gradient_errors() -> list[float]:
    """Relative distance from backpropagation through 500 steps of the relaxation, for every β; float64."""
    (x, labels), _ = load()
    x, targets = x[:32].double(), F.one_hot(labels[:32], 10).double()
    model = network().double()
    first, second = (layer for layer in model if isinstance(layer, nn.Linear))
    hidden, output = x.new_zeros(32, 128), x.new_zeros(32, 10)
    for _ in range(500):
        hidden = (0.7 * hidden + 0.3 * (first(x) + output @ second.weight)).clamp(0, 1)
        output = 0.7 * output + 0.3 * second(hidden)
    truth = torch.autograd.grad(0.5 * (output - targets).square().sum() / 32, list(model.parameters()))
    errors = []
    for beta in BETAS:
        model.zero_grad()
        EquilibriumPropagation(model, beta=beta, free_sweeps=300, nudged_sweeps=300).backward(x, targets)
        off = torch.cat([(p.grad - t).flatten() for p, t in zip(model.parameters(), truth, strict=True)])
        errors.append(float(off.norm() / torch.cat([t.flatten() for t in truth]).norm()))
    return errors


def main() -> None:
    """Train both ways, measure gradients, price a step; print, draw, keep the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/equilibrium-propagation"))
    parser.add_argument("--epochs", type=int, default=15)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    curves = {"equilibrium propagation": train(True, given.epochs), "backpropagation": train(False, given.epochs)}
    for name, curve in curves.items():
        print(f"{name}: test accuracy {curve[-1]:.3f} after {given.epochs} passes, best {max(curve):.3f}")
    errors = gradient_errors()
    for beta, error in zip(BETAS, errors, strict=True):
        print(f"beta {beta:g}: gradient off by {error:.1e}")
    trainer, spec = EquilibriumPropagation(network(), free_sweeps=20, nudged_sweeps=8), load_machine("tngd-2024")
    emulated = price(trainer.digital_work(64), digital=h100()).seconds
    print(f"a step emulated on an H100, predicted: {with_unit(emulated, 's')}")
    for machines in (1, 64):
        work = trainer.machine_work(64, spec, machines=machines)
        bill = price(work, digital=h100(), machines={spec.name: spec}, copies=machines)
        print(f"a step on {machines} machines {spec.name}, predicted: at least {with_unit(bill.seconds, 's')}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.loglog(BETAS, errors, "o-", color="#d55e00", label="measured")
    left.loglog(BETAS, [errors[-1] * (beta / BETAS[-1]) ** 2 for beta in BETAS], "--", color="#7a8794", label="∝ β²")
    left.set_ylim(min(errors) / 3, 3)
    left.set(xlabel="nudge β", ylabel="relative error of the gradient")
    left.legend(frameon=False)
    for (name, curve), colour in zip(curves.items(), ("#d55e00", "#2e8fd6"), strict=True):
        right.plot(range(1, len(curve) + 1), curve, color=colour, label=name)
    right.set(xlabel="passes over the training data", ylabel="test accuracy")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(given.out / "equilibrium_propagation.svg")
    with open(given.out / "equilibrium_propagation.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "beta or pass", "value"])
        writer.writerows(["gradient error", beta, f"{error:.4g}"] for beta, error in zip(BETAS, errors, strict=True))
        for name, curve in curves.items():
            writer.writerows([f"test accuracy, {name}", k, f"{value:.4g}"] for k, value in enumerate(curve, 1))


if __name__ == "__main__":
    main()
