"""Quadratic programming: an interior point on the digital side, its linear systems on any solver, a machine included.

    minimise ½ xᵀPx + qᵀx   subject to   Ax = b,  Gx ≤ h                          P positive semi-definite

With multipliers y of the equalities, z ≥ 0 of the inequalities and slacks s = h − Gx ≥ 0, the conditions of optimality are

    Px + q + Aᵀy + Gᵀz = 0,   Ax = b,   Gx + s = h,   s∘z = 0                      (r_x, r_y, r_z, r_s: what is left of each)

A Newton step towards s∘z = σμ, with proximal terms ρ on x and δ on y and z (Schwan et al. 2023, arXiv 2304.00290), comes down
to one symmetric positive definite system of the size of x, which is what a thermodynamic machine solves (Bartosik et al. 2024,
arXiv 2411.14224):

    (P + ρI + AᵀA/δ + Gᵀ diag(1/(s/z + δ)) G) dx = −r_x − Aᵀr_y/δ − Gᵀ((r_z − r_s/z)/(s/z + δ))

and dy, dz, ds follow from dx by products. Residuals are taken digitally in every iteration, so a solver with a relative error
of a few per cent costs iterations, not accuracy; one with an error near 1 stalls. δ bounds the condition number of the
system, whatever the distance to the optimum: few bits ask for a large δ. Predictor and corrector (Mehrotra 1992) share one
`prepare`: a machine is programmed once an iteration and driven twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from heatbath.operators import Dense, check_symmetric
from heatbath.solvers import Cholesky, Solver
from heatbath.work import Work, elementwise, matmul


class Status(Enum):
    """How a quadratic program ended; the value is the message."""

    OPTIMAL = "optimal to the tolerance"
    INFEASIBLE = "no x satisfies the constraints; y and z are a proof (Farkas): Aᵀy + Gᵀz = 0, bᵀy + hᵀz < 0"
    UNBOUNDED = "the objective falls without end along x: Px = 0, Ax = 0, Gx ≤ 0, qᵀx < 0"
    STALLED = (
        "the solver's directions are too inaccurate to go further: raise its bits, `regularization`, or wrap it in Refined"
    )
    UNFINISHED = "the limit of iterations was reached"


@dataclass(frozen=True, eq=False)
class QuadraticProgram:
    """minimise ½ xᵀPx + qᵀx subject to Ax = b and Gx ≤ h.

    Args:
        quadratic: P, `[n, n]`, symmetric, positive semi-definite.
        linear: q, `[n]`.
        equalities: A, `[m, n]`; None: none.
        equal_to: b, `[m]`.
        inequalities: G, `[p, n]`; None: none.
        at_most: h, `[p]`.

    Raises:
        TypeError: not tensors of one floating dtype.
        ValueError: shapes that do not fit, NaN or inf, P not symmetric or not semi-definite, half a constraint.
    """

    quadratic: Tensor
    linear: Tensor
    equalities: Tensor | None = None
    equal_to: Tensor | None = None
    inequalities: Tensor | None = None
    at_most: Tensor | None = None

    def __post_init__(self) -> None:
        check_symmetric(self.quadratic, "quadratic")
        n = self.quadratic.shape[-1]
        if self.quadratic.ndim != 2:
            raise ValueError(f"quadratic must be one matrix [n, n], got shape {tuple(self.quadratic.shape)}")
        _check(self.linear, "linear", (n,), self.quadratic)
        pairs = (("equalities", "equal_to"), ("inequalities", "at_most"))
        for matrix, bound in pairs:
            rows, values = getattr(self, matrix), getattr(self, bound)
            if (rows is None) != (values is None):
                raise ValueError(f"{matrix} and {bound} belong together, got {'only ' + (bound if rows is None else matrix)}")
            if rows is not None:
                _check(rows, matrix, (rows.shape[0] if getattr(rows, "ndim", 0) else 0, n), self.quadratic)
                _check(values, bound, (rows.shape[0],), self.quadratic)
        values = torch.linalg.eigvalsh(self.quadratic)
        if float(values[0]) < -1e-10 * max(float(values[-1]), 1.0) - 10 * torch.finfo(values.dtype).eps * float(values[-1]):
            raise ValueError(
                f"quadratic must be positive semi-definite, its smallest eigenvalue is {float(values[0]):.3g}: "
                "the problem is not convex"
            )

    def objective(self, x: Tensor) -> Tensor:
        """½ xᵀPx + qᵀx."""
        return 0.5 * x @ (self.quadratic @ x) + self.linear @ x


@dataclass(frozen=True, eq=False)
class Optimum:
    """What became of a quadratic program.

    Args:
        x: `[n]`; for an unbounded program a direction.
        y: multipliers of the equalities, `[m]`.
        z: multipliers of the inequalities, `[p]`, ≥ 0; y and z are a proof for an infeasible program.
        status: how it ended.
        objective: ½ xᵀPx + qᵀx.
        iterations: programmings of the solver.
        history: relative KKT error (the largest of primal and dual residual and gap) of every iterate.
        work: what it asked of hardware.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    status: Status
    objective: float
    iterations: int
    history: tuple[float, ...] = ()
    work: Work = field(default_factory=Work)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """The problem with constraints of unit norm and a P of unit mean diagonal: it gives δ one meaning for all problems.

    The original's y and z are `unit` times these, over the norms of the rows.
    """

    P: Tensor
    q: Tensor
    A: Tensor
    b: Tensor
    G: Tensor
    h: Tensor
    unit: float
    norms: tuple[Tensor, Tensor]

    @staticmethod
    def of(p: QuadraticProgram) -> _Scaled:
        none, nothing = p.quadratic.new_zeros(0, p.linear.shape[0]), p.quadratic.new_zeros(0)
        a, b = (none if p.equalities is None else p.equalities), (nothing if p.equal_to is None else p.equal_to)
        g, h = (none if p.inequalities is None else p.inequalities), (nothing if p.at_most is None else p.at_most)
        row_a, row_g = _norms(a), _norms(g)
        unit = float(p.quadratic.diagonal().mean()) or _size(p.linear) or 1.0
        scaled = (p.quadratic / unit, p.linear / unit, a / row_a[:, None], b / row_a, g / row_g[:, None], h / row_g)
        return _Scaled(*scaled, unit, (row_a, row_g))


@dataclass(frozen=True)
class _Point:
    """An iterate: x `[n]`, y `[m]`, z and s `[p]`."""

    x: Tensor
    y: Tensor
    z: Tensor
    s: Tensor

    def move(self, step: _Point, length: float) -> _Point:
        return _Point(*(a + length * b for a, b in zip(vars(self).values(), vars(step).values(), strict=True)))

    def gap(self) -> Tensor:
        """Complementarity μ = sᵀz / p."""
        return self.s @ self.z / max(len(self.s), 1)


def solve_quadratic_program(
    program: QuadraticProgram,
    *,
    solver: Solver[Any] | None = None,  # Any: any state
    tolerance: float = 1e-8,
    regularization: float = 1e-6,
    max_iterations: int = 100,
    patience: int = 20,
    generator: torch.Generator | None = None,
) -> Optimum:
    """Solve a convex quadratic program by a proximal interior-point method.

    Args:
        program: the problem.
        solver: for the Newton systems (`Dense` operators); None: `Cholesky()`.
        tolerance: relative KKT error at which to stop.
        regularization: ρ = δ. Small: fewer iterations, systems of condition up to 1/δ. Machines of 8 bits like 0.1 and more.
        max_iterations: programmings at most.
        patience: iterations without a tenth of improvement after which it counts as stalled.
        generator: source of randomness for solvers that have noise.

    Returns:
        An `Optimum`; what could not be solved is told by its status, never raised.

    Raises:
        ValueError: a tolerance, regularization, limit or patience that is not positive.

    >>> import torch
    >>> best = solve_quadratic_program(QuadraticProgram(torch.eye(2), torch.tensor([-1.0, -3.0]), None, None,
    ...                                torch.eye(2), torch.tensor([2.0, 2.0])), tolerance=1e-5)
    >>> best.status.name, [round(v, 3) for v in best.x.tolist()]
    ('OPTIMAL', [1.0, 2.0])
    """
    for name, value in (
        ("tolerance", tolerance),
        ("regularization", regularization),
        ("max_iterations", max_iterations),
        ("patience", patience),
    ):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    scaled = _Scaled.of(program)
    newton = _Newton(scaled, solver or Cholesky(), regularization, generator)
    point, history, best, best_error, since = newton.start(), [], None, torch.inf, 0
    status = Status.UNFINISHED
    for _ in range(max_iterations):
        error = _error(scaled, point)
        history.append(error)
        since = since + 1 if error > 0.9 * best_error else 0
        if best is None or error < best_error:
            best, best_error = point, error
        if error <= tolerance or not error < torch.inf or since >= patience:
            status = Status.OPTIMAL if error <= tolerance else Status.STALLED
            break
        step, length = newton.step(point)
        proof = _certificate(scaled, point, step, max(tolerance, 1e-9))
        if proof is not None:
            status, best = proof
            break
        if not bool(torch.isfinite(step.x).all()):
            status = Status.STALLED
            break
        point = point.move(step, length)
    assert best is not None  # the first iterate is kept
    y, z = (scaled.unit * v / norms for v, norms in zip((best.y, best.z), scaled.norms, strict=True))
    return Optimum(best.x, y, z, status, float(program.objective(best.x)), newton.iterations, tuple(history), newton.work)


class _Newton:
    """Newton directions of one problem, and the work they took."""

    def __init__(self, program: _Scaled, solver: Solver[Any], delta: float, generator: torch.Generator | None) -> None:
        self.program, self.solver, self.delta, self.generator = program, solver, delta, generator
        self.work, self.iterations = Work(), 0
        self.state: Any = None  # Any: state of any solver

    def start(self) -> _Point:
        """Mehrotra's start: the solution without signs, shifted until slacks and multipliers are positive."""
        p, h = self.program, self.program.h
        zero = _Point(torch.zeros_like(p.q), torch.zeros_like(p.b), torch.zeros_like(h), torch.zeros_like(h))
        if not len(h):
            return zero
        self._prepare(torch.ones_like(h))
        x = self._solve(-p.q + p.A.mT @ p.b / self.delta + p.G.mT @ h / (1 + self.delta))
        x = torch.where(torch.isfinite(x), x, 0.0)
        s = h - p.G @ x
        z = -s
        s, z = s + max(-1.5 * float(s.min()), 0.0) + 1e-2, z + max(-1.5 * float(z.min()), 0.0) + 1e-2
        product = s @ z
        return _Point(x, zero.y, z + 0.5 * product / s.sum(), s + 0.5 * product / z.sum())

    def step(self, point: _Point) -> tuple[_Point, float]:
        """A direction and how far it may be followed."""
        ratio = point.s / point.z
        self._prepare(ratio)
        mu = point.gap()
        affine = self._direction(point, ratio, point.s * point.z)
        if not len(point.s):
            return affine, 1.0
        after = point.move(affine, _room(point, affine)).gap()
        centre = (after / mu).clamp(0.0, 1.0) ** 3 * mu
        full = self._direction(point, ratio, point.s * point.z + affine.s * affine.z - centre)
        return full, 0.99 * _room(point, full)

    def _direction(self, point: _Point, ratio: Tensor, r_s: Tensor) -> _Point:
        p, weight = self.program, 1 / (ratio + self.delta)
        r_x, r_y, r_z = _residuals(p, point)
        rest = weight * (r_z - r_s / point.z)
        dx = self._solve(-r_x - p.A.mT @ r_y / self.delta - p.G.mT @ rest)
        dz = weight * (p.G @ dx) + rest
        return _Point(dx, (p.A @ dx + r_y) / self.delta, dz, -(r_s + point.s * dz) / point.z)

    def _prepare(self, ratio: Tensor) -> None:
        p, g = self.program, self.program.G
        n, m = p.q.shape[0], p.A.shape[0] + g.shape[0]
        system = p.P + p.A.mT @ p.A / self.delta + g.mT @ (g / (ratio + self.delta)[:, None])
        system.diagonal().add_(self.delta)
        self.state, work = self.solver.prepare(Dense(0.5 * (system + system.mT)), previous=self.state, generator=self.generator)
        self.work = self.work + work + Work.of(matmul(n, max(m, 1), n)) + Work.of(elementwise(n * n, 3))
        self.iterations += 1

    def _solve(self, rhs: Tensor) -> Tensor:
        solution = self.solver.solve(self.state, rhs, generator=self.generator)
        p = self.program
        rows = p.q.shape[0] + p.A.shape[0] + p.G.shape[0]
        self.work = self.work + solution.work + Work.of(matmul(4, p.q.shape[0], rows))
        return solution.value


def _residuals(p: _Scaled, at: _Point) -> tuple[Tensor, Tensor, Tensor]:
    r_x = p.P @ at.x + p.q + p.A.mT @ at.y + p.G.mT @ at.z
    return r_x, p.A @ at.x - p.b, p.G @ at.x + at.s - p.h


def _error(p: _Scaled, at: _Point) -> float:
    """The largest of the relative primal residual, dual residual and duality gap."""
    r_x, r_y, r_z = _residuals(p, at)
    px, gx = p.P @ at.x, p.G @ at.x
    primal = _size(r_y, r_z) / (1 + max(_size(p.b), _size(p.h), _size(gx)))
    dual = _size(r_x) / (1 + max(_size(px), _size(p.q), _size(p.G.mT @ at.z)))
    value = float(at.x @ px + p.q @ at.x)
    gap = abs(value + float(p.b @ at.y + p.h @ at.z)) / (1 + abs(value))
    return max(primal, dual, gap)


def _room(at: _Point, step: _Point) -> float:
    """How far s and z stay non-negative, at most 1."""
    limits = [torch.where(d < 0, -v / d, torch.inf).min() for v, d in ((at.s, step.s), (at.z, step.z))]
    return min(1.0, float(torch.stack(limits).min()))


def _certificate(p: _Scaled, at: _Point, step: _Point, eps: float) -> tuple[Status, _Point] | None:
    """A proof that there is no solution, from the iterates or their differences, which grow along one where it exists."""
    if not len(p.b) and not len(p.h) and not bool((p.q != 0).any()):
        return None
    for y, z in ((at.y, at.z), (step.y, step.z.clamp_min(0.0))):
        size = _size(y, z)
        if size > 0 and float(p.b @ y + p.h @ z) < -10 * eps * size and _size(p.A.mT @ y + p.G.mT @ z) <= eps * size:
            return Status.INFEASIBLE, replace(at, y=y / size, z=z / size)
    for x in (at.x, step.x):
        size = _size(x)
        if size > 0 and float(p.q @ x) < -10 * eps * size:
            rises = (p.G @ x).clamp_min(0.0)
            if _size(p.P @ x, p.A @ x, rises) <= eps * size:
                return Status.UNBOUNDED, replace(at, x=x / size)
    return None


def _norms(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=-1)
    return torch.where(norms > 0, norms, 1.0)


def _size(*parts: Tensor) -> float:
    """The largest magnitude, 0 for nothing."""
    return max((float(v.abs().max()) for v in parts if v.numel()), default=0.0)


def _check(value: Tensor, name: str, shape: tuple[int, ...], like: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype != like.dtype:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of {like.dtype} like quadratic, got {got}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} holds NaN or inf; leave a bound that does not exist out instead")
