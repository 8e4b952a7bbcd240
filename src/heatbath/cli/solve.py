"""`heatbath solve`: one linear system on one machine: how accurate, how long, how much energy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from heatbath.cli import options
from heatbath.cli.terminal import complain, console, mistakes, unused

UNUSABLE = 1  # exit code of a run whose outcome says that the value may not be used


def solve(
    matrix: Annotated[Path, typer.Option(help="Symmetric positive definite matrix M, .npy or .csv.")],
    rhs: Annotated[Path, typer.Option(help="Right-hand side b, .npy or .csv: n numbers, or rows of n numbers.")],
    machine: options.Machine = "tngd-2024",
    solver: Annotated[str, typer.Option(help="thermodynamic-solve, refined, or crossbar.")] = "thermodynamic-solve",
    bits: options.Bits = None,
    serial: options.Serial = 0,
    seed: options.NoiseSeed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for result and picture; by default runs/solve, numbered.")] = None,
) -> None:
    """Solve M x = b on an emulated machine, and say how accurate, how long and how costly that is, and why."""
    with mistakes(), _spoken():
        from heatbath.experiments.arrays import load_matrix, load_rows
        from heatbath.experiments.environment import command
        from heatbath.experiments.optimizers import known, machine_spec
        from heatbath.experiments.solving import MACHINE_SOLVERS, Task, settling
        from heatbath.experiments.solving import solve as solve_once
        from heatbath.experiments.solving_report import accuracy_table, bill_of, bill_table, headline, write_solution
        from heatbath.machines import Machine

        known(solver, MACHINE_SOLVERS, "machine solver")
        emulated = Machine(machine_spec(machine, bits), serial=serial)
        M = load_matrix(matrix)
        task = Task(emulated, solver, M, load_rows(rhs, M), seed)
        terminal = console()
        terminal.print(headline(task), style="bold", highlight=False)
        solved = solve_once(task)
        study, bill = settling(task), bill_of(task, solved)
        terminal.print(accuracy_table(task, solved, study))
        terminal.print(bill_table(bill))
        note = "the counted work on one NVIDIA H100 (scaling, measuring the residual) and one such machine; here it is emulated"
        terminal.print(note, style="dim")
        folder = out or unused(Path("runs") / "solve")
        for path in write_solution(folder, task, solved, study, bill, command=command()):
            terminal.print(str(path), highlight=False, soft_wrap=True)
        if not solved.result.solved:
            complain(f"the result is of no use: {'; '.join(solved.result.messages)}")
            raise typer.Exit(UNUSABLE)


@contextmanager
def _spoken() -> Iterator[None]:
    """Warnings of the library as messages, when they come: before the work they warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
        yield
