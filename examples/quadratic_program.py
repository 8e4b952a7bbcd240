"""A support-vector machine and a portfolio, solved on an emulated thermodynamic machine.

    python examples/quadratic_program.py --out docs/figures

Both are convex quadratic programs. An interior-point method on the digital side sends its linear systems to a solver, Cholesky
or a machine of a few bits. The figure shows the error of every iterate; the table what the machine's converters do to it.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import heatbath as hb
from heatbath.costs import h100
from heatbath.samplers import Optimum, QuadraticProgram, solve_quadratic_program

BITS = (4, 6, 8, 10, 12)
DELTA = 0.03  # proximal regularization: bounds the condition number the machine sees


def support_vectors(n: int = 120) -> tuple[QuadraticProgram, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The dual of a soft-margin machine (C = 1, Gaussian kernel) that tells threes from eights.

    minimise ½ αᵀQα − 1ᵀα with 0 ≤ α ≤ 1 and yᵀα = 0, Q = (y yᵀ)∘K. Returns it with kernels of the test images, labels of both.
    """
    images, digits = load_digits(return_X_y=True)
    chosen = (digits == 3) | (digits == 8)
    x = torch.tensor(images[chosen] / 16)
    y = torch.tensor(digits[chosen] == 3).double() * 2 - 1
    kernel = torch.exp(-(torch.cdist(x, x[:n]) ** 2) / 20)
    q, one = kernel[:n] * y[:n, None] * y[:n], torch.eye(n, dtype=torch.float64)
    box = torch.cat((torch.ones(n), torch.zeros(n))).double()
    program = QuadraticProgram(q, -torch.ones(n).double(), y[None, :n], torch.zeros(1).double(), torch.cat((one, -one)), box)
    return program, kernel[n:], y[:n], y[n:]


def portfolio(n: int = 60) -> QuadraticProgram:
    """Markowitz: minimise wᵀΣw − μᵀw with w ≥ 0, Σw = 1; Σ and μ of a synthetic six-factor market, seeded."""
    g = torch.Generator().manual_seed(0)
    loadings = 0.1 * torch.randn(n, 6, generator=g, dtype=torch.float64)
    covariance = loadings @ loadings.mT + torch.diag(0.01 * torch.rand(n, generator=g, dtype=torch.float64) + 0.001)
    returns = 0.05 * torch.randn(n, generator=g, dtype=torch.float64)
    one = torch.ones(1, n, dtype=torch.float64)
    return QuadraticProgram(2 * covariance, -returns, one, one[0, :1], -torch.eye(n).double(), torch.zeros(n).double())


def accuracy(best: Optimum, kernel: torch.Tensor, y: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of test images on the right side: f(x) = Σ α_i y_i k(x_i, x) + b, where b is the equality's multiplier."""
    score = kernel @ (best.x * y) + best.y
    return float((score.sign() == truth).double().mean())


def solve(program: QuadraticProgram, bits: int | None) -> Optimum:
    """On a machine of `bits` bits, or digitally."""
    if bits is None:
        return solve_quadratic_program(program, regularization=DELTA, tolerance=1e-7)
    machine = hb.Machine(hb.with_bits(hb.load_machine("tngd-2024"), matrix=bits, drive=bits, read=bits))
    solver = hb.Guarded(hb.ThermodynamicSolve(machine))
    noise = torch.Generator().manual_seed(0)
    return solve_quadratic_program(program, solver=solver, regularization=DELTA, tolerance=1e-7, generator=noise)


def main() -> None:
    """Solve both problems with every number of bits; print a table, draw a figure, keep the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quadratic-program"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    svm, kernel, y, truth = support_vectors()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    data = []
    for axis, name, program in zip(axes, ("support vectors", "portfolio"), (svm, portfolio()), strict=True):
        exact = solve_quadratic_program(program, tolerance=1e-10)
        table = Table("solver", "status", "iterations", "KKT error", "objective − optimum", "predicted seconds", title=name)
        for bits in (None, *BITS):
            best = solve(program, bits)
            label = "Cholesky" if bits is None else f"{bits} bits"
            axis.semilogy(best.history, label=label, color="black" if bits is None else None, lw=1.2)
            row = {
                "problem": name,
                "solver": label,
                "status": best.status.name.lower(),
                "iterations": best.iterations,
                "kkt_error": min(best.history),
                "excess": best.objective - exact.objective,
                "predicted_seconds": hb.price(
                    best.work, digital=h100()
                ).seconds,  # kernels on an H100, jobs on one such machine
                "history": best.history,
            }
            if program is svm:
                row["test_accuracy"] = accuracy(best, kernel, y, truth)
            data.append(row)
            cells = (f"{row['kkt_error']:.1e}", f"{row['excess']:.1e}", f"{row['predicted_seconds']:.2e}")
            table.add_row(label, row["status"], str(best.iterations), *cells)
        Console().print(table)
        axis.set(title=name, xlabel="iteration (one programming, two drives)")
    print(
        "support vectors, test accuracy:",
        {row["solver"]: round(row["test_accuracy"], 4) for row in data if "test_accuracy" in row},
    )
    axes[0].set_ylabel("relative KKT error")
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(out / "quadratic_program.svg", metadata={"Date": None})
    (out / "quadratic_program.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"figure and data: {out}")


if __name__ == "__main__":
    main()
