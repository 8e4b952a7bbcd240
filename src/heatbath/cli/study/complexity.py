"""`heatbath study complexity`: measured exponents beside claimed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import console, mistakes


def complexity(
    seeds: Annotated[int, typer.Option(help="Random matrices for each point.")] = 4,
    machine: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="Whose bits and drives are counted.")] = "tngd-2024",
    runs: Annotated[Path, typer.Option(help="Folder of counts and measurements.")] = Path("runs/complexity"),
    out: options.Page = None,
) -> None:
    """How work and machine time grow with size, condition number and drives, next to what was claimed."""
    with mistakes():
        from heatbath.costs import h100
        from heatbath.experiments.studies import Complexity, Runtime, complexity_page
        from heatbath.machines import load_machine

        terminal = console()

        def watch(name: str, fresh: bool) -> None:
            if fresh:
                terminal.print(f"measuring {name}", style="dim", highlight=False)

        study = Complexity(Runtime([], load_machine(machine), h100()), seeds=seeds)
        page = complexity_page(study, study.run(runs, watch=watch)).write(out or runs / "page")
        terminal.print(f"page: {page}", highlight=False, soft_wrap=True)
