"""`heatbath spice`: the machine that holds a small matrix, as a circuit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import mistakes


def spice(
    matrix: Annotated[Path, typer.Option(help="Symmetric positive definite matrix, .npy or .csv, up to 64 × 64.")],
    machine: options.Machine = "tngd-2024",
    rhs: Annotated[
        Path | None,
        typer.Option(help="Right-hand side, .npy or .csv; by default the first unit vector."),
    ] = None,
    bits: options.Bits = None,
    noise: Annotated[bool, typer.Option(help="With the machine's noise sources.")] = True,
    settle: Annotated[
        float | None, typer.Option(help="Seconds before the measurement; by default four fifths of the machine's stated time.")
    ] = None,
    average: Annotated[
        float | None, typer.Option(help="Seconds that are averaged, 0 for one read; by default the last fifth.")
    ] = None,
    serial: options.Serial = 0,
    seed: Annotated[
        int, typer.Option(min=0, max=options.LARGEST_SEED, help="Seed of the noise sources and of random rounding.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="The netlist, FILE.cir; by default it is printed.")] = None,
) -> None:
    """Write a SPICE netlist of the analog network that holds a matrix: resistors, integrators, drives, noise sources."""
    with mistakes():
        import torch

        from heatbath.experiments.arrays import load_matrix, load_rows
        from heatbath.experiments.optimizers import machine_spec
        from heatbath.machines import Machine, Schedule, netlist, resonator_netlist
        from heatbath.solvers import default_schedule

        emulated = Machine(machine_spec(machine, bits), serial=serial)
        held = load_matrix(matrix)
        drive = torch.eye(len(held), dtype=held.dtype)[0] if rhs is None else load_rows(rhs, held)
        stated = default_schedule(emulated)
        burn_in = stated.burn_in if settle is None else settle
        duration = stated.duration if average is None else average
        schedule = Schedule(burn_in, duration, reads=1 if duration == 0 else None)
        generator = torch.Generator().manual_seed(seed)
        programmed = emulated.program(held, generator=generator)
        random = seed + 1  # ngspice wants a positive seed
        if emulated.spec.coupling is not None:
            if rhs is not None:
                raise ValueError(f"{emulated.spec.name} holds the matrix in capacitances and has no drive; leave out --rhs")
            circuit = resonator_netlist(emulated, programmed, schedule=schedule, noisy=noise, seed=random)
        else:
            circuit = netlist(emulated, programmed, drive, schedule=schedule, noisy=noise, seed=random, generator=generator)
        if out is None:
            typer.echo(circuit.text, nl=False)
            return
        out.write_text(circuit.text, encoding="ascii")
        typer.echo(
            f"{out}: {len(held)} cells of {emulated.spec.name}, {circuit.seconds:.3g} s in steps of {circuit.step:.3g} s"
        )
        typer.echo(f"run it with: ngspice -b {out}")
