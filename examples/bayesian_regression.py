"""Bayesian regression on real tables: the voltages of a machine at equilibrium are samples of the posterior.

    python examples/bayesian_regression.py --out docs/figures

Strength of concrete, linear: the machine holds the posterior's precision, is driven by Xᵀy/σ², and is read. Tumours, logistic:
cells are pulled by the gradient of the energy, a nonlinear drift. References are the closed form, and Hamiltonian Monte Carlo
with Metropolis' correction. Differences are z-scores: over the Monte Carlo errors of both sides, by arviz-stats.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

import heatbath as hb
from heatbath.experiments.data.uci import load_breast_cancer, load_table
from heatbath.experiments.plots import COLOURS, save_figure, style
from heatbath.samplers import LogisticRegression, diagnose, langevin, linear_regression, sample_gaussian

CELLS = hb.MachineSpec(name="cells", tau=1e-6, noise_volts_rms=0.02)  # an ideal machine but for its noise, full scale 1 V
BITS = (None, 12, 10, 8)  # at 6, rounding makes this precision indefinite: refused
CHAINS = 50  # copies of the machine side by side


def concrete(reads: int) -> tuple[list[dict[str, object]], Tensor]:
    """Linear regression, 927 × 8, at several resolutions of all converters: rows of a table, and z-scores."""
    exact = linear_regression(*load_table("concrete").train.tensors, noise=0.6, prior=1.0)
    root = exact.precision.diagonal().rsqrt()
    relaxation = CELLS.time_constant / float(torch.linalg.eigvalsh(root[:, None] * exact.precision * root)[0])
    deviation, rows, scores = exact.covariance().diagonal().sqrt(), [], []
    for bits in BITS:
        machine = hb.Machine(CELLS if bits is None else hb.with_bits(CELLS, matrix=bits, drive=bits, read=bits))
        noise = torch.Generator().manual_seed(0)
        times = {"interval": 2 * relaxation, "burn_in": 20 * relaxation}
        draws = sample_gaussian(exact, machine, reads=reads, chains=CHAINS, generator=noise, **times)
        found, values = diagnose(draws.values), draws.values.flatten(0, 1)
        z = (values.mean(0) - exact.mean()) / torch.tensor(found.error)
        row = {"bits": bits, "effective": min(found.effective), "r_hat": max(found.r_hat), "largest_z": float(z.abs().max())}
        row["mean_error"] = float(((values.mean(0) - exact.mean()) / deviation).abs().max())
        row["deviation_error"] = float((values.std(0) / deviation - 1).abs().max())
        rows.append({**row, "drive_clipped": draws.notes["drive_clipped"], "analog_seconds": draws.work.analog_seconds})
        scores.append(z)
    return rows, torch.stack(scores)


def hamiltonian(model: LogisticRegression, reads: int, noise: torch.Generator) -> Tensor:
    """The judge: `[reads, chains, n]` by leapfrog steps in coordinates where the Laplace posterior is isotropic."""
    half = torch.linalg.cholesky((mode := model.laplace()).covariance())

    def force(q: Tensor) -> tuple[Tensor, Tensor]:
        w = mode.mean() + q @ half.mT
        return model.energy(w), model.gradient(w) @ half

    q, rows = torch.randn(CHAINS, len(half), generator=noise, dtype=torch.float64), []
    energy, slope = force(q)
    for _ in range(reads + 100):
        p = torch.randn(CHAINS, len(half), generator=noise, dtype=torch.float64)
        new, momentum, pull, step = q, p, slope, 0.15 + 0.1 * float(torch.rand((), generator=noise))
        for _ in range(8):
            momentum = momentum - step / 2 * pull
            new = new + step * momentum
            there, pull = force(new)
            momentum = momentum - step / 2 * pull
        change = there - energy + (momentum.square() - p.square()).sum(-1) / 2
        accept = torch.rand(CHAINS, generator=noise, dtype=torch.float64) < (-change).exp()
        q, slope = (torch.where(accept[:, None], a, b) for a, b in ((new, q), (pull, slope)))
        energy = torch.where(accept, there, energy)
        rows.append(mode.mean() + q @ half.mT)
    return torch.stack(rows[100:])


def tumours(reads: int) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Logistic regression, 512 × 10: summary, and means and deviations of both samplers."""
    data = load_breast_cancer()
    inputs, labels = data.train.tensors
    model, noise = LogisticRegression(inputs[:, :10], labels, prior=1.0), torch.Generator().manual_seed(0)
    mode = model.laplace()
    scale = float(torch.linalg.eigvalsh(mode.precision)[-1]) ** -0.5  # unit of a voltage: the largest curvature becomes 1
    slowest = CELLS.time_constant / (scale**2 * float(torch.linalg.eigvalsh(mode.precision)[0]))
    draws = langevin(
        lambda v: scale * model.gradient(scale * v),
        (mode.mean() / scale).expand(CHAINS, -1),
        spec=CELLS,
        upload_bits=8.0 * inputs[:, :10].numel(),
        reads=reads,
        interval=slowest,
        burn_in=8 * slowest,
        step=0.3,
        generator=noise,
    )
    ours, judge = scale * draws.values, hamiltonian(model, reads, noise)
    found, other = diagnose(ours), diagnose(judge)
    z = (ours.mean((0, 1)) - judge.mean((0, 1))) / (torch.tensor(found.error) ** 2 + torch.tensor(other.error) ** 2).sqrt()
    probability = torch.sigmoid(ours.flatten(0, 1) @ data.test.tensors[0][:, :10].mT).mean(0)
    summary = {"effective": min(found.effective), "r_hat": max(found.r_hat), "largest_z": float(z.abs().max())}
    summary["judge_effective"] = min(other.effective)
    summary["deviation_error"] = float((ours.flatten(0, 1).std(0) / judge.flatten(0, 1).std(0) - 1).abs().max())
    summary["test_accuracy"] = float(((probability > 0.5) == (data.test.tensors[1] == 1)).double().mean())
    summary["analog_seconds"] = draws.work.analog_seconds
    parts = {"machine": ours.flatten(0, 1), "judge": judge.flatten(0, 1)}
    return summary, {f"{k}_{n}": getattr(v, n)(0) for k, v in parts.items() for n in ("mean", "std")} | {"z": z}


def main() -> None:
    """Sample both posteriors; print tables, draw a figure, keep the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bayesian-regression"))
    parser.add_argument("--reads", type=int, default=80, help="of each of 50 chains")
    options = parser.parse_args()
    if find_spec("arviz_stats") is None:
        raise SystemExit("bayesian_regression.py judges samples by arviz-stats: pip install 'heatbath[studies]'")
    options.out.mkdir(parents=True, exist_ok=True)
    rows, scores = concrete(options.reads)
    table = Table(*rows[0], title="concrete, linear regression, exact posterior as judge")
    for row in rows:
        table.add_row(*("ideal" if v is None else f"{v:.4g}" for v in row.values()))
    summary, moments = tumours(options.reads)
    console = Console(width=120)
    console.print(table)
    said = {k: float(f"{v:.3g}") for k, v in summary.items()}
    console.print("tumours, logistic regression, Hamiltonian Monte Carlo as judge:", said)
    with style():
        figure = Figure(figsize=(9.5, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.axhspan(-2, 2, color=COLOURS[-1], alpha=0.25, lw=0)
        for z, bits, colour in zip(scores, BITS, COLOURS, strict=False):
            left.plot(range(1, len(z) + 1), z, "o", color=colour, label="ideal" if bits is None else f"{bits} bits")
        left.set(
            xlabel="weight", ylabel="mean − exact mean, in standard errors", title="concrete", yscale="symlog", ylim=(-20, 900)
        )
        left.legend(frameon=False, fontsize=8, ncols=2)
        for k, (name, colour) in enumerate(zip(("machine", "judge"), COLOURS, strict=False)):
            place = torch.arange(1.0, 11) + 0.25 * (k - 0.5)
            right.errorbar(place, moments[f"{name}_mean"], 2 * moments[f"{name}_std"], fmt="o", color=colour, ms=4, label=name)
        right.set(xlabel="weight", ylabel="mean ± 2 standard deviations", title="tumours")
        right.legend(frameon=False, fontsize=8)
    save_figure(figure, options.out / "bayesian_regression.svg")
    data = {"reads": options.reads, "concrete": rows, "tumours": summary, "tumours_z": moments["z"].tolist()}
    (options.out / "bayesian_regression.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"figure and data: {options.out}")


if __name__ == "__main__":
    main()
