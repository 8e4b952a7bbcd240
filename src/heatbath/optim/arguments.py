"""Arguments of optimizers: plain names are turned into values, wrong kinds are refused before any work."""

from __future__ import annotations

from typing import Any

from heatbath.curvature import Reduction
from heatbath.solvers import Cholesky, ConjugateGradient, Eigen, Jacobi, NewtonSchulz, Solver

SOLVERS: dict[str, type[Solver[Any]]] = {
    "cholesky": Cholesky,
    "conjugate-gradient": ConjugateGradient,
    "eigen": Eigen,
    "jacobi": Jacobi,
    "newton-schulz": NewtonSchulz,
}


def check_kind(name: str, value: object, kind: type | None, instead: str) -> None:
    """Refuse a value of another kind, and a class in the place of its instance.

    Args:
        name: of the argument.
        value: what was given.
        kind: what it must be an instance of; None: anything that can be called.
        instead: what to write.

    Raises:
        TypeError: the message names the argument, what was got, and `instead`.
    """
    fits = callable(value) if kind is None else isinstance(value, kind)
    if isinstance(value, type):
        raise TypeError(f"{name} must be a value, got the class {value.__name__}: write {instead}")
    if not fits:
        raise TypeError(f"{name} cannot be of type {type(value).__name__}: write {instead}")


def as_solver(solver: object) -> Solver[Any]:
    """A solver, given itself or by its name, in any case, with "-" or "_" between words.

    Raises:
        TypeError: it is no solver.
        ValueError: an unknown name.
    """
    if isinstance(solver, str):
        found = SOLVERS.get(solver.lower().replace("_", "-"))
        if found is None:
            raise ValueError(
                f"solver {solver!r} is unknown: use {', '.join(SOLVERS)}, or a solver such as "
                "Cholesky() or ThermodynamicSolve(machine)"
            )
        return found()
    instead = "a solver such as Cholesky(), or ThermodynamicSolve(machine) to solve on a machine"
    if isinstance(solver, type) and issubclass(solver, Solver):
        instead = f"{solver.__name__}(…)"
    check_kind("solver", solver, Solver, instead)
    assert isinstance(solver, Solver)
    return solver


def as_reduction(reduction: object) -> Reduction | None:
    """A reduction, given itself, by its name in any case, or as None.

    Raises:
        TypeError: it is no reduction.
        ValueError: an unknown name, or "mean", which may mean either of two.
    """
    names = {each.name.lower(): each for each in Reduction}
    if isinstance(reduction, str):
        found = names.get(reduction.lower())
        if found is None:
            what = "is ambiguous" if reduction.lower() == "mean" else "is unknown"
            raise ValueError(
                f"reduction {reduction!r} {what}: write 'examples' for a mean over examples, 'rows' "
                "for one over examples and positions (all tokens of a batch), 'sum' for a sum"
            )
        return found
    if reduction is not None:
        check_kind("reduction", reduction, Reduction, "one of Reduction.EXAMPLES, ROWS and SUM")
    assert reduction is None or isinstance(reduction, Reduction)
    return reduction
