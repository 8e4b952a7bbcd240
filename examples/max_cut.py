"""Cutting real graphs in two with probabilistic bits, and what it would cost on a published chip.

    python examples/max_cut.py --out docs/figures

The largest cut is the ground state of antiferromagnetic spins. A network of probabilistic bits is cooled slowly; the slower,
the larger the cut. The judge is an integer program (HiGHS) where it ends in time, else a local search (networkx).
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import networkx
import numpy as np
import torch
from networkx.algorithms.approximation import one_exchange
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from heatbath.costs import h100, price
from heatbath.machines import PbitMachine, pbit_presets
from heatbath.samplers import max_cut

SWEEPS = (10, 30, 100, 300, 1000)
CHAINS = 32
GRAPHS = {
    "karate club": (networkx.karate_club_graph, None),  # 34 people, 78 friendships: Zachary 1977
    "Les Misérables": (networkx.les_miserables_graph, "weight"),  # 77 characters, weighted by shared scenes: Knuth 1993
}


def integer_program(weights: torch.Tensor, seconds: float) -> tuple[float, float]:
    """Best cut found and upper bound: maximise Σ w e with e ≤ x_i + x_j, e ≤ 2 − x_i − x_j, x in {0, 1}."""
    edges = torch.triu(weights).nonzero().tolist()
    n, m = len(weights), len(edges)
    rows = lil_matrix((2 * m, n + m))
    for k, (i, j) in enumerate(edges):
        rows[2 * k, [i, j, n + k]] = [-1, -1, 1]
        rows[2 * k + 1, [i, j, n + k]] = [1, 1, 1]
    cost = np.concatenate((np.zeros(n), [-float(weights[i, j]) for i, j in edges]))
    bounds = Bounds(np.zeros(n + m), np.concatenate(([0.0], np.ones(n + m - 1))))
    limits = LinearConstraint(rows.tocsr(), ub=np.tile([0.0, 2.0], m))
    result = milp(cost, constraints=limits, integrality=np.ones(n + m), bounds=bounds, options={"time_limit": seconds})
    return -result.fun, -result.mip_dual_bound


def main() -> None:
    """Cut every graph with more and more sweeps; print, draw, keep the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/max-cut"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    machine = PbitMachine(pbit_presets()["z1-2026"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    data = []
    for name, (graph, weight) in GRAPHS.items():
        weights = torch.tensor(networkx.to_numpy_array(graph(), weight=weight))
        best, bound = integer_program(weights, seconds=60)
        local, _ = one_exchange(graph(), weight=weight, seed=0)
        print(f"{name}: integer program {best:g} (at most {bound:g}), local search {local:g}")
        for sweeps in SWEEPS:
            cut = max_cut(weights, machine, sweeps=sweeps, chains=CHAINS, generator=torch.Generator().manual_seed(0))
            bill = price(cut.work, digital=h100())
            row = {
                "graph": name,
                "sweeps": sweeps,
                "best": cut.value,
                "mean": float(cut.values.mean()),
                "reached": float((cut.values == cut.value).double().mean()),
                "integer_program": best,
                "bound": bound,
                "local_search": local,
                "joules": dict(bill.joules_by_part),
            }
            data.append(row)
            print(f"  {sweeps:5d} sweeps: best of {CHAINS} {cut.value:g}, mean {row['mean']:.1f}, {bill.joules:.2e} J")
        rows = [row for row in data if row["graph"] == name]
        left.semilogx(SWEEPS, [row["mean"] / best for row in rows], "o-", label=f"{name}, mean of {CHAINS} chains")
        left.semilogx(SWEEPS, [row["best"] / best for row in rows], "s--", label=f"{name}, best")
        if name == "Les Misérables":
            for part, words in (("upload", "writing"), ("settle", "updates"), ("read", "reading")):
                right.loglog(SWEEPS, [row["joules"][part] for row in rows], "o-", label=words)
    left.axhline(1.0, color="black", lw=0.8)
    left.set(xlabel="sweeps", ylabel="cut / cut of the integer program")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="sweeps", ylabel="joules", title=f"Les Misérables on {machine.spec.name}, {CHAINS} chains")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(out / "max_cut.svg", metadata={"Date": None})
    (out / "max_cut.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"figure and data: {out}")


if __name__ == "__main__":
    main()
