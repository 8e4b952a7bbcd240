"""`heatbath max-cut GRAPH`: cut a graph in two with probabilistic bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import console, mistakes


def max_cut(
    graph: Annotated[Path, typer.Argument(help="Edges, .csv: two names and, if not 1, a weight a line; or weights, .npy.")],
    machine: Annotated[str, typer.Option(help="A preset of probabilistic bits, or ideal.")] = "z1-2026",
    sweeps: Annotated[int, typer.Option(help="Updates of every bit; more find larger cuts.")] = 500,
    chains: Annotated[int, typer.Option(help="Annealings; the best counts.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=options.LARGEST_SEED, help="Seed of the bits.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to write the sides, FILE.csv: a name and −1 or 1 a line.")] = None,
) -> None:
    """Find a large cut of a graph by cooling a network of probabilistic bits, and what that would cost."""
    with mistakes():
        import torch

        from heatbath.costs import h100, price
        from heatbath.experiments.arrays import load_graph
        from heatbath.experiments.optimizers import known
        from heatbath.machines import PbitMachine, PbitSpec, pbit_presets
        from heatbath.samplers import max_cut as anneal

        specs = {**pbit_presets(), "ideal": PbitSpec("ideal")}
        spec = specs[known(machine, specs, "machine of probabilistic bits")]
        names, weights = load_graph(graph)
        if chains < 1:
            raise ValueError(f"--chains must be at least 1, got {chains}")
        cut = anneal(weights, PbitMachine(spec), sweeps=sweeps, chains=chains, generator=torch.Generator().manual_seed(seed))
        terminal, total = console(), float(weights.triu().sum())
        terminal.print(
            f"{len(names)} nodes, {int((weights.triu() != 0).sum())} edges of total weight {total:g}", highlight=False
        )
        reached = int((cut.values == cut.values.max()).sum())
        terminal.print(
            f"cut {cut.value:g}: best of {chains} chains, {reached} of which reach it; mean {float(cut.values.mean()):.4g}",
            style="bold",
            highlight=False,
        )
        bill = price(cut.work, digital=h100(), machines={spec.name: spec})
        joules = ", ".join(f"{part} {value:.3g} J" for part, value in bill.joules_by_part.items())
        terminal.print(f"predicted energy: {joules or 'not stated'}", highlight=False)
        terminal.print("a cut found is a lower bound: that there is no larger one is not shown", style="dim")
        sides = cut.sides.tolist()
        if out is not None:
            out.write_text("".join(f"{name},{int(side)}\n" for name, side in zip(names, sides, strict=True)), encoding="utf-8")
            terminal.print(str(out), highlight=False, soft_wrap=True)
