"""Quadratic programs against OSQP, closed forms and the conditions of optimality."""

import pytest
import torch
from sklearn.datasets import load_digits

from heatbath.machines import Machine, load_machine, with_bits
from heatbath.samplers import QuadraticProgram, Status, solve_quadratic_program
from heatbath.solvers import Cholesky, ConjugateGradient, Guarded, ThermodynamicInverse, ThermodynamicSolve


def portfolio(n: int = 30, seed: int = 0) -> QuadraticProgram:
    """Markowitz: covariance of a factor model, weights that sum to 1, nothing short."""
    g = torch.Generator().manual_seed(seed)
    loadings = 0.1 * torch.randn(n, 6, generator=g, dtype=torch.float64)
    covariance = loadings @ loadings.mT + torch.diag(0.01 * torch.rand(n, generator=g, dtype=torch.float64) + 0.001)
    returns = 0.05 * torch.randn(n, generator=g, dtype=torch.float64)
    one, identity = torch.ones(1, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    return QuadraticProgram(2 * covariance, -returns, one, one[:, 0], -identity, torch.zeros(n, dtype=torch.float64))


def support_vectors(n: int = 60) -> QuadraticProgram:
    """The dual of a soft-margin support-vector machine that tells threes from eights, C = 1."""
    images, labels = load_digits(return_X_y=True)
    chosen = (labels == 3) | (labels == 8)
    x = torch.tensor(images[chosen][:n] / 16)
    y = torch.tensor(labels[chosen][:n] == 3).double() * 2 - 1
    kernel = torch.exp(-(torch.cdist(x, x) ** 2) / 20) * y[:, None] * y
    identity = torch.eye(n, dtype=torch.float64)
    bounds = torch.cat((torch.ones(n), torch.zeros(n))).double()
    return QuadraticProgram(
        kernel, -torch.ones(n).double(), y[None], torch.zeros(1).double(), torch.cat((identity, -identity)), bounds
    )


def osqp_solution(p: QuadraticProgram) -> torch.Tensor:
    osqp = pytest.importorskip("osqp")
    import numpy as np
    from scipy import sparse

    rows = sparse.csc_matrix(torch.cat((p.equalities, p.inequalities)).numpy())
    lower = np.concatenate((p.equal_to.numpy(), np.full(len(p.at_most), -np.inf)))
    upper = np.concatenate((p.equal_to.numpy(), p.at_most.numpy()))
    model = osqp.OSQP()
    settings = {"eps_abs": 1e-11, "eps_rel": 1e-11, "max_iter": 500_000, "polishing": True, "verbose": False}
    model.setup(sparse.csc_matrix(np.triu(p.quadratic.numpy())), p.linear.numpy(), rows, lower, upper, **settings)
    result = model.solve(raise_error=True)
    return torch.from_numpy(result.x)


def kkt_error(p: QuadraticProgram, best) -> float:
    """The conditions of optimality, written out: stationarity, feasibility, signs, complementarity."""
    gx = p.inequalities @ best.x - p.at_most
    parts = [
        p.quadratic @ best.x + p.linear + p.equalities.mT @ best.y + p.inequalities.mT @ best.z,
        p.equalities @ best.x - p.equal_to,
        gx.clamp_min(0),
        best.z.clamp_max(0),
        best.z * gx,
    ]
    return max(float(v.abs().max()) for v in parts if v.numel())


def machine(bits: int) -> Machine:
    return Machine(with_bits(load_machine("tngd-2024"), matrix=bits, drive=bits, read=bits))


@pytest.mark.parametrize("problem", [portfolio, support_vectors])
def test_optimum_equals_osqp(problem):
    program = problem()
    best = solve_quadratic_program(program, tolerance=1e-10)
    assert best.status is Status.OPTIMAL
    assert kkt_error(program, best) < 1e-8
    # both have a duality gap ≤ 1e-8, and a strongly convex objective: ‖x − x*‖² ≤ 2 gap / λ_min(P)
    weakest = float(torch.linalg.eigvalsh(program.quadratic)[0])
    assert float((best.x - osqp_solution(program)).norm()) < 2 * (2e-8 / weakest) ** 0.5


@pytest.mark.parametrize(
    "solver",
    [
        Cholesky(),
        ConjugateGradient(iterations=100),
        Guarded(ThermodynamicSolve(machine(8))),
        Guarded(ThermodynamicInverse(machine(8))),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("problem", [portfolio, support_vectors])
def test_every_solver_reaches_the_same_optimum(problem, solver):
    """An inaccurate direction costs iterations, not accuracy: residuals are digital."""
    program = problem()
    best = solve_quadratic_program(
        program, solver=solver, regularization=0.03, tolerance=1e-7, generator=torch.Generator().manual_seed(0)
    )
    assert best.status is Status.OPTIMAL, best.history
    exact = solve_quadratic_program(program, tolerance=1e-11)
    assert abs(best.objective - exact.objective) < 1e-6 * (1 + abs(exact.objective))


def test_box_projection_is_a_clamp():
    """min ½‖x − c‖² with l ≤ x ≤ u is c clamped."""
    c = torch.linspace(-3, 2.9, 25, dtype=torch.float64)
    identity = torch.eye(25, dtype=torch.float64)
    program = QuadraticProgram(identity, -c, None, None, torch.cat((identity, -identity)), torch.ones(50).double())
    best = solve_quadratic_program(program, tolerance=1e-10)
    torch.testing.assert_close(best.x, c.clamp(-1, 1), atol=1e-8, rtol=0)
    torch.testing.assert_close(best.z[:25] - best.z[25:], c - c.clamp(-1, 1), atol=1e-6, rtol=0)


def test_without_inequalities_the_optimum_is_a_linear_solve():
    g = torch.Generator().manual_seed(0)
    root, a = torch.randn(6, 6, generator=g).double(), torch.randn(2, 6, generator=g).double()
    p, q, b = root @ root.mT + torch.eye(6), torch.randn(6, generator=g).double(), torch.tensor([1.0, -1.0]).double()
    best = solve_quadratic_program(QuadraticProgram(p, q, a, b), tolerance=1e-11)
    kkt = torch.cat((torch.cat((p, a.mT), 1), torch.cat((a, torch.zeros(2, 2)), 1)))
    truth = torch.linalg.solve(kkt, torch.cat((-q, b)))
    torch.testing.assert_close(torch.cat((best.x, best.y)), truth, rtol=1e-7, atol=1e-9)


def test_linear_program_ends_in_its_vertex():
    rows = torch.tensor([[1.0, 2.0], [3.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).double()
    program = QuadraticProgram(
        torch.zeros(2, 2).double(), -torch.ones(2).double(), None, None, rows, torch.tensor([4.0, 6, 0, 0]).double()
    )
    best = solve_quadratic_program(program, tolerance=1e-9)
    torch.testing.assert_close(best.x, torch.tensor([1.6, 1.2]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("delta", [1e-6, 1e-1])
def test_an_infeasible_program_is_reported_with_a_farkas_proof(delta):
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double()
    program = QuadraticProgram(
        torch.eye(2).double(), torch.ones(2).double(), None, None, rows, torch.tensor([-1.0, -1.0]).double()
    )
    result = solve_quadratic_program(program, regularization=delta)
    assert result.status is Status.INFEASIBLE
    assert bool((result.z >= 0).all())
    assert float((program.inequalities.mT @ result.z).abs().max()) < 1e-7
    assert float(program.at_most @ result.z) < -0.1


@pytest.mark.parametrize("delta", [1e-6, 1e-1])
def test_an_unbounded_program_is_reported_with_a_direction(delta):
    p = torch.diag(torch.tensor([1.0, 0.0, 2.0])).double()
    program = QuadraticProgram(
        p, torch.tensor([0.3, -1.0, 0.1]).double(), None, None, -torch.eye(3).double(), torch.zeros(3).double()
    )
    result = solve_quadratic_program(program, regularization=delta)
    assert result.status is Status.UNBOUNDED
    assert float((p @ result.x).abs().max()) < 1e-7
    assert float(program.linear @ result.x) < -0.1
    assert bool((result.x >= -1e-7).all())


def test_a_machine_too_coarse_for_the_problem_is_reported_as_stalled():
    best = solve_quadratic_program(
        portfolio(),
        solver=ThermodynamicSolve(machine(3)),
        regularization=1e-6,
        max_iterations=200,
        generator=torch.Generator().manual_seed(0),
    )
    assert best.status is Status.STALLED
    assert "bits" in best.status.value


def test_the_machine_is_programmed_once_an_iteration_and_driven_twice():
    best = solve_quadratic_program(
        portfolio(),
        solver=ThermodynamicSolve(machine(8)),
        regularization=1e-2,
        generator=torch.Generator().manual_seed(0),
    )
    assert best.work.programmings == best.iterations
    assert (
        sum(count * job.drives for job, count in best.work.jobs.items()) == 2 * best.iterations - 1
    )  # the start is driven once


def test_a_limit_of_iterations_is_said():
    assert solve_quadratic_program(portfolio(), max_iterations=2).status is Status.UNFINISHED


ONE = torch.ones(1, dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-EYE, ONE.expand(2)), ValueError, "positive semi-definite"),
        ((EYE[:1], ONE), ValueError, "square"),
        ((EYE.expand(3, 2, 2), ONE.expand(2)), ValueError, "one matrix"),
        ((EYE, ONE), ValueError, r"linear must have shape \(2,\)"),
        ((EYE, ONE.expand(2).float()), TypeError, "linear must be a tensor of torch.float64"),
        ((EYE, ONE.expand(2) * torch.nan), ValueError, "linear holds NaN"),
        ((EYE, ONE.expand(2), EYE), ValueError, "equalities and equal_to belong together, got only equalities"),
        ((EYE, ONE.expand(2), None, None, None, ONE), ValueError, "only at_most"),
        ((EYE, ONE.expand(2), EYE, ONE), ValueError, "equal_to must have shape"),
        ((EYE, ONE.expand(2), None, None, torch.eye(3).double(), ONE), ValueError, "inequalities must have shape"),
        ((EYE, ONE.expand(2), None, None, EYE, ONE.expand(2) * torch.inf), ValueError, "leave a bound that does not exist out"),
    ],
)
def test_what_is_no_convex_program_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        QuadraticProgram(*arguments)


@pytest.mark.parametrize("name", ["tolerance", "regularization", "max_iterations", "patience"])
def test_settings_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        solve_quadratic_program(QuadraticProgram(EYE, ONE.expand(2)), **{name: 0})
