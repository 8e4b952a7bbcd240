"""`heatbath machines` and `heatbath recipes`: what there is to choose from."""

from __future__ import annotations

from heatbath.cli.terminal import console, mistakes


def machines() -> None:
    """List the preset machines with their source; a file with the same fields is a machine, too."""
    with mistakes():
        from heatbath.experiments.tables import machines_table
        from heatbath.machines import presets

        console().print(machines_table(presets().values()))


def recipes() -> None:
    """List the recipes with their data."""
    with mistakes():
        from heatbath import recipes as room
        from heatbath.experiments.tables import recipes_table

        console().print(recipes_table(room.recipes().values()))
