"""`heatbath qp`: a convex quadratic program, its linear systems on a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import complain, console, mistakes

UNSOLVED = 1  # exit code where there is no optimum


def quadratic_program(
    quadratic: Annotated[Path, typer.Option(help="P, [n, n], positive semi-definite, .npy or .csv.")],
    linear: Annotated[Path, typer.Option(help="q, [n].")],
    equalities: Annotated[Path | None, typer.Option(help="A, [m, n]; needs --equal-to.")] = None,
    equal_to: Annotated[Path | None, typer.Option(help="b, [m].")] = None,
    inequalities: Annotated[Path | None, typer.Option(help="G, [p, n]; needs --at-most.")] = None,
    at_most: Annotated[Path | None, typer.Option(help="h, [p].")] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.toml", help="Solve on this machine; by default digitally, by Cholesky.")
    ] = None,
    bits: options.Bits = None,
    regularization: Annotated[
        float | None, typer.Option(help="Proximal term δ; by default 1e-6 digitally and 0.03 on a machine.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Relative KKT error at which to stop.")] = 1e-7,
    seed: options.NoiseSeed = 0,
    out: Annotated[Path | None, typer.Option(help="Where to write x, FILE.npy.")] = None,
) -> None:
    """Minimise ½xᵀPx + qᵀx subject to Ax = b and Gx ≤ h; infeasible and unbounded problems are reported as such."""
    with mistakes():
        import numpy as np
        import torch

        from heatbath.costs import h100, price
        from heatbath.experiments.arrays import load_array
        from heatbath.experiments.optimizers import machine_spec
        from heatbath.machines import Machine
        from heatbath.samplers import QuadraticProgram, Status, solve_quadratic_program
        from heatbath.solvers import Cholesky, Guarded, ThermodynamicSolve

        if machine is None and bits is not None:
            raise ValueError("--bits are those of a machine: say which with --machine")
        if out is not None and out.suffix != ".npy":
            raise ValueError(f"x is written to a .npy file, got --out {out}")
        parts = ((equalities, "A", 2), (equal_to, "b", 1), (inequalities, "G", 2), (at_most, "h", 1))
        program = QuadraticProgram(
            load_array(quadratic, "P", dimensions=2),
            load_array(linear, "q", dimensions=1),
            *(None if path is None else load_array(path, name, dimensions=n) for path, name, n in parts),
        )
        emulated = None if machine is None else Machine(machine_spec(machine, bits))
        best = solve_quadratic_program(
            program,
            solver=Cholesky() if emulated is None else Guarded(ThermodynamicSolve(emulated)),
            regularization=(1e-6 if emulated is None else 0.03) if regularization is None else regularization,
            tolerance=tolerance,
            generator=torch.Generator().manual_seed(seed),
        )
        bill = price(best.work, digital=h100(), machines=None if emulated is None else {emulated.spec.name: emulated.spec})
        terminal = console()
        terminal.print(f"{best.status.name.lower()}: {best.status.value}", style="bold", highlight=False)
        terminal.print(
            f"objective {best.objective:.9g}, relative KKT error {min(best.history):.2e}, {best.iterations} linear systems, "
            f"predicted {bill.seconds:.3g} s",
            highlight=False,
        )
        terminal.print(
            f"x = {[float(f'{v:.6g}') for v in best.x[:12].tolist()]}{' …' if len(best.x) > 12 else ''}", highlight=False
        )
        if out is not None:
            np.save(out, best.x.numpy())
            terminal.print(str(out), highlight=False, soft_wrap=True)
        if best.status is not Status.OPTIMAL:
            complain(f"there is no optimum to report: {best.status.name.lower()}")
            raise typer.Exit(UNSOLVED)
