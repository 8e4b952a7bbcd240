"""`heatbath sample`: draw from a Gaussian by reading a machine that holds its precision."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import console, mistakes

SHOWN = 12  # coordinates in the table
RELAXATIONS_BETWEEN, RELAXATIONS_BEFORE = 3.0, 12.0  # of the slowest mode, by default


def sample(
    precision: Annotated[Path, typer.Option(help="Symmetric positive definite matrix Λ, .npy or .csv.")],
    machine: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="A preset, or a file; it needs noise.")],
    potential: Annotated[Path | None, typer.Option(help="Vector b, .npy or .csv: the mean is Λ⁻¹b; by default 0.")] = None,
    bits: options.Bits = None,
    reads: Annotated[int, typer.Option(help="Samples of each chain.")] = 100,
    chains: Annotated[int, typer.Option(help="Copies of the machine side by side.")] = 4,
    interval: Annotated[
        float | None, typer.Option(help="Seconds between samples; by default three times the slowest relaxation.")
    ] = None,
    burn_in: Annotated[
        float | None, typer.Option(help="Seconds before the first; by default twelve times the slowest relaxation.")
    ] = None,
    serial: options.Serial = 0,
    seed: options.NoiseSeed = 0,
    out: Annotated[Path | None, typer.Option(help="Where to write the samples, FILE.npy: [reads, chains, n].")] = None,
) -> None:
    """Sample N(Λ⁻¹b, Λ⁻¹) on an emulated machine, and say how far the samples are from it and how many count."""
    with mistakes():
        import numpy as np
        import torch

        from heatbath.costs import h100, price
        from heatbath.experiments.arrays import load_array, load_matrix
        from heatbath.experiments.optimizers import machine_spec
        from heatbath.experiments.sampling import HEAD, sampling_rows
        from heatbath.experiments.solving_report import bill_table
        from heatbath.experiments.tables import text_table
        from heatbath.machines import Machine
        from heatbath.samplers import Gaussian, sample_gaussian, slowest_relaxation

        if out is not None and out.suffix != ".npy":
            raise ValueError(f"samples are written to a .npy file, got --out {out}")
        held = load_matrix(precision)
        drive = torch.zeros_like(held[0]) if potential is None else load_array(potential, "the potential", dimensions=1)
        gaussian, emulated = Gaussian(held, drive), Machine(machine_spec(machine, bits), serial=serial)
        slowest = slowest_relaxation(gaussian, emulated)
        draws = sample_gaussian(
            *(gaussian, emulated),
            reads=reads,
            interval=RELAXATIONS_BETWEEN * slowest if interval is None else interval,
            burn_in=RELAXATIONS_BEFORE * slowest if burn_in is None else burn_in,
            chains=chains,
            generator=torch.Generator().manual_seed(seed),
        )
        terminal, rows = console(), sampling_rows(gaussian, draws)
        title = f"{reads} samples of each of {chains} chains, slowest relaxation {slowest:.3g} s"
        terminal.print(text_table(HEAD, rows[:SHOWN], title=title))
        if len(rows) > SHOWN:
            terminal.print(f"… and {len(rows) - SHOWN} more coordinates", style="dim")
        if find_spec("arviz_stats") is None:
            terminal.print("effective samples, R-hat, errors: need arviz-stats, pip install 'heatbath[studies]'", markup=False)
        clips = ", ".join(f"{name} {count}" for name, count in draws.notes.items())
        terminal.print(f"clipped: {clips}", highlight=False)
        terminal.print(bill_table(price(draws.work, digital=h100(), machines={emulated.spec.name: emulated.spec})))
        if out is not None:
            np.save(out, draws.values.numpy())
            terminal.print(str(out), highlight=False, soft_wrap=True)
