"""How long must a machine settle, and how quiet must it be, for thermodynamic natural gradient descent?

The task: 8×8 digits averaged to 4×4 pixels, a network 16-8-10 of tanh units (n = 226 numbers, so 226 cells), batches of 64, the
exact Fisher matrix. Three questions, each a panel of the figure:

1. distance  ‖v(t) − v‖/‖v‖ of a reading after t from the natural gradient v = (G + λI)⁻¹g, on an ideal machine, cells reset,
             at the weights that 20 steps of NGD lead to; the mean of 5 batches.
2. training  the loss on all training images while training with t = 5, 10, 20, 50 τ (voltages carried over), with NGD, and with
             SGD with momentum at its best rate of seven.
3. noise     the loss after the last step at t = 20 τ against the rms voltage of a cell of conductance 1 over full scale.

    python benchmarks/tngd.py            # a few minutes; writes benchmarks/results/tngd.json and docs/tngd.svg
    python benchmarks/tngd.py --draw     # the figure again, from the stored numbers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heatbath as hb
from heatbath.curvature import InputCapture, JacobianRoot, Passage, sight
from heatbath.experiments.data import digits
from heatbath.experiments.environment import host, versions

HERE = Path(__file__).parent
RESULTS, FIGURE = HERE / "results" / "tngd.json", HERE.parent / "docs" / "tngd.svg"
TAU = 1e-6
SETTING = {"lr": 0.5, "damping": 0.03}
TIMES, NOISES, DAMPINGS = (5, 10, 20, 50), (0.0, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1), (0.3, 0.1, 0.03, 0.01)
CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500)
SEEDS, STEPS, BATCH = range(5), 80, 64
FISHER = hb.ExactFisher(hb.Categorical())


def data() -> tuple[Tensor, Tensor]:
    """All training images, `[N, 16]`, and labels."""
    images, labels = digits.load().train.tensors
    return F.avg_pool2d(images, 2).flatten(1), labels


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 10))


def machine(noise: float = 0.0) -> hb.Machine:
    return hb.Machine(
        hb.MachineSpec(name="study", tau=TAU, noise_volts_rms=noise or None), tolerance=0.0
    )  # always the exact law


def tngd(model: nn.Module, taus: float, *, noise: float = 0.0, start: hb.Start = hb.Start.CARRIED, **changed: Any) -> hb.TNGD:
    known = {"machine": machine(noise), "fisher": FISHER, "generator": torch.Generator().manual_seed(9)}
    return hb.TNGD(model, time=taus * TAU, policy=hb.TNGDPolicy(start=start), **known, **{**SETTING, **changed})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int = STEPS) -> list[float]:
    """The loss on all training images before each step and after the last."""
    x, y = data()
    observe = getattr(optimizer, "observe", lambda outputs: outputs)
    generator, losses = torch.Generator().manual_seed(100 + seed), []
    for step in range(steps + 1):
        with torch.no_grad():
            losses.append(F.cross_entropy(model(x), y).item())
        if step < steps:
            part = torch.randint(len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(observe(model(x[part])), y[part]).backward()
            optimizer.step()
    return losses


def step_of(weights: dict[str, Tensor], make: Any, part: Tensor) -> Tensor:
    """What one step of lr 1 takes off the weights, `[n]`, in float64."""
    x, y = data()
    model = network(0).double()
    model.load_state_dict(weights)
    optimizer = make(model)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    F.cross_entropy(optimizer.observe(model(x[part].double())), y[part]).backward()
    optimizer.step()
    return before - torch.cat([p.detach().flatten() for p in model.parameters()])


def distances() -> list[dict[str, Any]]:
    """Panel 1."""
    model = network(0)
    train(model, hb.NGD(model, fisher=FISHER, **SETTING), 0, 20)
    weights, rows = model.state_dict(), []
    parts = [torch.randint(1438, (BATCH,), generator=torch.Generator().manual_seed(s)) for s in range(5)]
    for damping in DAMPINGS:
        known = {"lr": 1.0, "damping": damping}
        found = dict.fromkeys(CURVE, 0.0)
        for part in parts:
            truth = step_of(
                weights, lambda m, known=known: hb.NGD(m, fisher=FISHER, solver=hb.Full(hb.Cholesky()), **known), part
            )
            for t in CURVE:
                read = step_of(weights, lambda m, t=t, known=known: tngd(m, t, start=hb.Start.RESET, **known), part)
                found[t] += ((read - truth).norm() / truth.norm()).item() / len(parts)
        scale = sum(largest_entry(model, part) for part in parts) / len(parts)
        rows.append({"damping": damping, "damping over largest entry": damping / (scale + damping), "distance": found})
    return rows


def largest_entry(model: nn.Module, part: Tensor) -> float:
    """Of G, without damping."""
    x, capture = data()[0][part], InputCapture(model)
    seen = sight(((x,), {}), model(x), fisher=FISHER)
    capture.detach()
    root = JacobianRoot(model, dict(model.named_parameters()), [Passage(seen, seen.terms)], seen.terms, capture)
    return hb.Gram(root, torch.tensor(0.0)).dense().max().item()


def over_seeds(make: Any) -> Tensor:
    """Loss curves `[seeds, steps + 1]`."""
    curves = []
    for seed in SEEDS:
        model = network(seed)
        curves.append(train(model, make(model), seed))
    return torch.tensor(curves)


def mean_over_seeds(make: Any) -> list[float]:
    """Loss curves, averaged."""
    return over_seeds(make).mean(0).tolist()


def noises() -> dict[float, list[float]]:
    """Panel 3: the last loss of each seed."""
    return {s: over_seeds(lambda m, s=s: tngd(m, 20, noise=s))[:, -1].tolist() for s in NOISES}


def measure() -> dict[str, Any]:
    training = {"NGD": mean_over_seeds(lambda m: hb.NGD(m, fisher=FISHER, **SETTING))}
    for t in TIMES:
        training[f"TNGD, {t} τ"] = mean_over_seeds(lambda m, t=t: tngd(m, t))
    rates = [0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0]
    sgd = {r: mean_over_seeds(lambda m, r=r: torch.optim.SGD(m.parameters(), lr=r, momentum=0.9)) for r in rates}
    best = min(sgd, key=lambda r: sgd[r][-1])
    training[f"SGD, momentum 0.9, lr {best:g}"] = sgd[best]
    return {
        "question": __doc__.splitlines()[0],
        "setting": {**SETTING, "batch": BATCH, "steps": STEPS, "seeds": len(SEEDS), "tau in s": TAU},
        "distance": distances(),
        "training": training,
        "noise": noises(),
        "environment": {**host(torch.device("cpu")), "packages": versions()},
    }


def draw(found: dict[str, Any]) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for row in found["distance"]:
        points = {float(t): d for t, d in row["distance"].items()}
        panels[0].loglog(list(points), [max(d, 1e-7) for d in points.values()], "o-", ms=3, label=f"λ = {row['damping']:g}")
    panels[0].set(xlabel="analog time / τ", ylabel="distance to the natural gradient", ylim=(1e-6, 2))
    for name, curve in found["training"].items():
        style = {"NGD": "k-"}.get(name, "--" if name.startswith("SGD") else "-")
        panels[1].semilogy(curve, style, lw=1.4, label=name)
    panels[1].set(xlabel="step", ylabel="training loss")
    levels = {float(s): sum(losses) / len(losses) for s, losses in found["noise"].items()}
    panels[2].semilogx([s for s in levels if s], [loss for s, loss in levels.items() if s], "o-", ms=4)
    panels[2].axhline(levels[0.0], color="k", lw=0.8, label="no noise")
    panels[2].set(xlabel="noise of a cell, rms over full scale", ylabel="training loss after the last step", yscale="log")
    for panel in panels:
        panel.legend(fontsize=8, frameon=False)
    FIGURE.parent.mkdir(exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "tngd"
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw from the stored numbers")
    if not parser.parse_args().draw:
        RESULTS.write_text(json.dumps(measure(), indent=1, ensure_ascii=False) + "\n")
    found = json.loads(RESULTS.read_text())
    draw(found)
    for row in found["distance"]:
        at = ", ".join(f"{t} τ: {row['distance'][str(t)]:.2e}" for t in TIMES)
        print(f"λ = {row['damping']:<5g} λ/s = {row['damping over largest entry']:.3f}: distance at {at}")
    for name, curve in found["training"].items():
        print(f"{name:26} loss after {len(curve) - 1} steps {curve[-1]:.4f}")
    quiet = torch.tensor(found["noise"]["0.0"])
    for level, losses in found["noise"].items():
        change = torch.tensor(losses) - quiet
        error = (change.std() / len(losses) ** 0.5).item()
        print(f"noise {level:6} loss {sum(losses) / len(losses):.4f}, change {change.mean().item():+.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
