"""A Laplace posterior from K-FAC factors: a network of handwritten digits that knows what it does not know.

    python examples/laplace_digits.py --out docs/figures

Five networks are trained by K-FAC on 200 images each. The factors of one more pass give every weight a Gaussian posterior,
W ~ N(W*, (B ⊗ A + δI)⁻¹). Its predictions are compared with those of W* alone, on test images and on turned ones. Weights
are drawn digitally and on an emulated machine whose cells hold the precision: their voltages are the samples.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import heatbath as hb
from heatbath.experiments.calibration import Calibration
from heatbath.experiments.data import digits
from heatbath.experiments.models import mlp
from heatbath.experiments.plots import save_figure
from heatbath.experiments.uncertainty import ANGLES, SHIFTED, Measured, measure
from heatbath.experiments.uncertainty_plots import uncertainty_figure
from heatbath.samplers import fit_laplace, most_predictive

IMAGES, HELD_OUT, STEPS = 200, 144, 200
CELLS = hb.MachineSpec(name="cells", tau=1e-6, noise_volts_rms=1e-3)  # an ideal machine but for its noise
COLUMNS = ("accuracy", "nll", "ece", "chance", "entropy")


def train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.nn.Module:
    """K-FAC on batches of 128, no weight decay."""
    optimizer = hb.KFAC(model, lr=0.1, damping=1e-3)
    for _ in range(STEPS):
        batch = torch.randperm(len(x), generator=generator)[:128]
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def one_seed(seed: int, on_machine: bool, samples: int) -> tuple[list[Measured], dict[str, float]]:
    """Train, fit, choose δ on held-out images, predict."""
    x, y = digits.load().train.tensors
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    shown, held = order[:IMAGES], order[IMAGES : IMAGES + HELD_OUT]
    model = train(mlp((64, 256, 128, 10)), x[shown], y[shown], generator)

    fisher = hb.ExactFisher(hb.Categorical())
    posterior = most_predictive(fit_laplace(model, [(x[shown], y[shown])], fisher), x[held], y[held])
    evident = posterior.tuned()  # δ by the evidence, which supposes that W* was trained with this very prior

    machine = hb.Machine(CELLS) if on_machine else None
    rows, drawn = measure(posterior, digits, samples=samples, machine=machine, generator=generator)
    (_, linearized, *_), _ = measure(evident, digits, samples=1, generator=generator)
    rows.append(replace(linearized, name="linearized, δ by evidence"))
    facts = {"prior": posterior.priors["1"], "prior_by_evidence": evident.priors["1"]}
    if drawn is not None:
        facts |= {"analog_seconds": drawn.work.analog_seconds, "read_clipped": drawn.notes["read_clipped"]}
    return rows, facts


def mean(rows: list[Measured], angle: int) -> dict[str, tuple[float, float | None]]:
    """Mean and standard error over seeds; of one seed no error."""
    found = {}
    for name in COLUMNS:
        values = [getattr(row.by_angle[angle], name) for row in rows]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        found[name] = (statistics.fmean(values), error)
    return found


def pooled(rows: list[Measured]) -> Measured:
    """All seeds as one, for the figure."""

    def join(several: tuple[Calibration, ...]) -> Calibration:
        merged: dict[int, list[tuple[float, float, int]]] = {}
        for mean_confidence, accuracy, count in (b for c in several for b in c.bins):
            merged.setdefault(min(int(10 * mean_confidence), 9), []).append((mean_confidence, accuracy, count))
        bins = []
        for _, parts in sorted(merged.items()):
            total = sum(count for *_, count in parts)
            bins.append((*(sum(p[k] * p[2] for p in parts) / total for k in (0, 1)), total))
        return replace(several[0], nll=statistics.fmean(c.nll for c in several), bins=tuple(bins))

    by_angle = tuple(join(several) for several in zip(*(row.by_angle for row in rows), strict=True))
    return replace(rows[0], by_angle=by_angle)


def main() -> None:
    """Run all seeds; print a table, draw a figure, keep the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/laplace-digits"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=50)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = [one_seed(seed, seed == 0, options.samples) for seed in range(options.seeds)]
    names = list(dict.fromkeys(row.name for rows, _ in seeds for row in rows))
    ways = {name: [row for rows, _ in seeds for row in rows if row.name == name] for name in names}
    data = []
    for angle in (0, SHIFTED):
        table = Table("predictions", *COLUMNS, title=f"digits turned by {ANGLES[angle]}°, {options.seeds} seeds")
        for name, rows in ways.items():
            numbers = mean(rows, angle)
            table.add_row(f"{name} ({len(rows)})", *(f"{m:.3f} ± {e:.3f}" if e else f"{m:.3f}" for m, e in numbers.values()))
            data.append({"predictions": name, "angle": ANGLES[angle], "seeds": len(rows), **numbers})
        Console(width=120).print(table)
    print("each seed:", [{k: float(f"{v:.3g}") for k, v in facts.items()} for _, facts in seeds])
    figure = uncertainty_figure([pooled(rows) for name, rows in ways.items() if len(rows) == options.seeds])
    save_figure(figure, options.out / "laplace.svg")
    (options.out / "laplace.json").write_text(json.dumps({"rows": data, "seeds": [f for _, f in seeds]}, indent=1) + "\n")
    print(f"figure and data: {options.out}")


if __name__ == "__main__":
    main()
