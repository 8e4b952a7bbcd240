"""`heatbath study runtime`: predicted time and energy of a training step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import console, mistakes


def runtime(
    networks: Annotated[list[str] | None, typer.Option("--network", help="One of the shapes. Default: all.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Also predict for the shapes of this recipe.")] = None,
    machine: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="What the machines are.")] = "tngd-2024",
    every: Annotated[list[int] | None, typer.Option(help="Steps between refreshes. Default 1, 10 and 100.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the counts.")] = Path("runs/runtime"),
    out: options.Page = None,
) -> None:
    """Time and energy of a step of SGD, Adam, K-FAC and thermodynamic K-FAC, from counted work; nothing is trained."""
    with mistakes():
        from heatbath.costs import h100, h100_bf16
        from heatbath.experiments.optimizers import known
        from heatbath.experiments.studies import Runtime, count_layers, runtime_page
        from heatbath.experiments.studies.networks import NETWORKS, shapes_of
        from heatbath.machines import load_machine
        from heatbath.recipes import recipes

        shapes, tasks = {network.name: network for network in NETWORKS}, recipes()
        chosen = [shapes[known(name, shapes, "network")] for name in networks or shapes]
        chosen += [shapes_of(tasks[known(name, tasks, "recipe")]) for name in recipe or ()]
        study = Runtime(chosen, load_machine(machine), h100(), h100_bf16(), tuple(every or (1, 10, 100)))
        terminal = console()

        def watch(name: str, fresh: bool) -> None:
            if fresh:
                terminal.print(f"counting {name}", style="dim", highlight=False)

        counted = study.run(runs, watch=watch)
        layers = count_layers(study, runs, watch=watch)
        page = runtime_page(study, counted, layers).write(out or runs / "page")
        terminal.print(f"page: {page}", highlight=False, soft_wrap=True)
