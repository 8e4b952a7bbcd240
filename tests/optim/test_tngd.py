"""TNGD: from gradient descent to natural gradient descent as the machine is given time."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import Categorical, EmpiricalFisher, ExactFisher, Gaussian, SampledFisher
from heatbath.machines import Fault, FaultInjector, Machine, MachineSpec, with_bits
from heatbath.optim import NGD, TNGD, JointPolicy, Start, TNGDPolicy
from heatbath.optim.tngd import LIMIT
from tests.curvature.test_jacobian import close, gauss_newton, mlp
from tests.laws import fresh, noise
from tests.optim.joint_loops import flat, goes_on_bit_equal, gradient, steps
from tests.zoo import EIGHT, IDEAL, MACHINES, TAU

EXACT = ExactFisher(Categorical())
DAMPING = 0.05


def batch() -> tuple[Tensor, Tensor]:
    return noise(9, 4, seed=1), torch.arange(9) % 3


def system(model: nn.Module) -> tuple[Tensor, Tensor, float]:
    """Â = (G + λI)/s, g and s by dense truths, where the model stands."""
    x, y = batch()
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    matrix = gauss_newton(model, x, lambda z: F.cross_entropy(z, y))
    matrix = matrix + DAMPING * torch.eye(len(matrix), dtype=matrix.dtype)
    scale = matrix.abs().max().item()
    return matrix / scale, gradient(model), scale


def after(model: nn.Module, time: float, *, start: Start = Start.RESET) -> Tensor:
    """What one step of lr 1 on an ideal machine takes off the parameters."""
    policy = TNGDPolicy(start=start)
    known = {"machine": IDEAL, "fisher": EXACT, "damping": DAMPING, "policy": policy}
    optimizer = TNGD(model, time=time, lr=1.0, generator=fresh(1), **known)
    before = flat(model)
    steps(model, optimizer, *batch(), loss=F.cross_entropy)
    return before - flat(model)


def relaxed(matrix: Tensor, drive: Tensor, start: Tensor, taus: float) -> Tensor:
    """x(t) of τ dx = −(Âx − b)dt by the matrix exponential."""
    settled = torch.linalg.solve(matrix, drive)
    return settled + torch.linalg.matrix_exp(-matrix * taus) @ (start - settled)


# --- the two limits and what lies between --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", Start)
def test_given_time_an_ideal_machine_takes_the_step_of_ngd(start):
    model = mlp()
    natural = NGD(model, fisher=EXACT, lr=1.0, damping=DAMPING)
    before = flat(model)
    steps(model, natural, *batch(), loss=F.cross_entropy)
    close(after(mlp(), 0.1, start=start), before - flat(model), rtol=1e-10)


def test_a_short_time_is_a_short_step_of_gradient_descent():
    """x(t) = t/sτ · g up to a relative ‖Â‖t/2τ."""
    matrix, g, scale = system(mlp())
    taus = 1e-5
    step = after(mlp(), taus * TAU)
    bound = torch.linalg.matrix_norm(matrix, 2) * taus / 2
    assert (step - taus / scale * g).norm() <= 1.01 * bound * (taus / scale * g).norm()


def test_no_time_at_all_from_the_gradient_is_gradient_descent():
    _, g, _ = system(mlp())
    close(after(mlp(), 0.0, start=Start.GRADIENT), g)


@pytest.mark.parametrize("taus", [0.3, 5.0, 10.0, 20.0, 50.0])
@pytest.mark.parametrize("start", [Start.RESET, Start.GRADIENT], ids=lambda s: s.name)
def test_in_between_the_machine_obeys_its_law(taus, start):
    matrix, g, scale = system(mlp())
    initial = g if start is Start.GRADIENT else torch.zeros_like(g)
    close(after(mlp(), taus * TAU, start=start), relaxed(matrix, g / scale, initial, taus), rtol=1e-10)


def test_the_distance_to_the_natural_gradient_falls_with_time():
    matrix, g, scale = system(mlp())
    natural = torch.linalg.solve(matrix * scale, g)
    distances = [(after(mlp(), t * TAU) - natural).norm() for t in (5, 10, 20, 50)]
    slowest = torch.linalg.eigvalsh(matrix)[0]
    assert all(late < early for early, late in itertools.pairwise(distances))
    assert distances[-1] <= math.exp(-50 * slowest) * natural.norm()


@pytest.mark.parametrize("delay", [0.0, 3.0])
def test_voltages_are_carried_over_in_units_of_the_present_range(delay):
    """Three steps by hand: each starts where the last one, a delay later, has left the cells."""
    model, time = mlp(), 4.0
    policy = TNGDPolicy(start=Start.CARRIED, delay=delay * TAU)
    optimizer = TNGD(model, machine=IDEAL, fisher=EXACT, time=time * TAU, lr=0.5, damping=DAMPING, policy=policy)
    volts = torch.zeros(len(flat(model)), dtype=torch.float64)
    for _ in range(3):
        matrix, g, scale = system(model)
        before = flat(model)
        top = g.abs().max()
        read = relaxed(matrix, g / top, volts, time)
        volts = relaxed(matrix, g / top, volts, time + delay)
        steps(model, optimizer, *batch(), loss=F.cross_entropy)
        close(before - flat(model), 0.5 * read * top / scale, rtol=1e-9)


def test_carried_voltages_remember_as_momentum_does():
    """At a constant gradient and a short time, two steps add up; cells that are reset take the same one twice."""
    x = noise(9, 4, seed=1)

    def two(start: Start) -> list[Tensor]:
        model = nn.Linear(4, 2).double()
        model.weight.data.zero_(), model.bias.data.zero_()
        options = {"machine": IDEAL, "fisher": ExactFisher(Gaussian()), "policy": TNGDPolicy(start=start)}
        optimizer = TNGD(model, time=1e-4 * TAU, lr=1e-9, damping=1.0, **options)
        moves, before = [], flat(model)
        for _ in range(2):
            steps(model, optimizer, x, torch.ones(9, 2))
            moves.append(before - flat(model))
            before = flat(model)
        return moves

    reset, carried = two(Start.RESET), two(Start.CARRIED)
    torch.testing.assert_close(reset[1], reset[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(carried[1], 2 * carried[0], rtol=1e-3, atol=0)


def test_tngd_adam_is_adam_with_the_reading_for_a_gradient():
    model, twin = mlp(), mlp()
    policy = TNGDPolicy(start=Start.RESET, adam=True)
    groups = [{"params": model.parameters(), "weight_decay": 0.1, "betas": (0.8, 0.9)}]
    optimizer = TNGD(model, groups, machine=IDEAL, fisher=EXACT, time=5 * TAU, lr=0.01, damping=DAMPING, policy=policy)
    adam = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    for _ in range(3):
        matrix, g, scale = system(twin)
        reading = relaxed(matrix, g / scale, torch.zeros_like(g), 5.0)
        for p, v in zip(twin.parameters(), reading.split([p.numel() for p in twin.parameters()]), strict=True):
            p.grad = v.view_as(p)
        adam.step()
        steps(model, optimizer, *batch(), loss=F.cross_entropy)
        close(flat(model), flat(twin), rtol=1e-9)


# --- a machine that is not ideal -----------------------------------------------------------------------------------------


def test_noise_has_no_bias_and_the_variance_of_the_law():
    """One reading at t: variance (1 − e^{−2λt})/βλ by mode, here by the matrix; 400 draws of each of n numbers."""
    noisy = Machine(MachineSpec(name="loud", tau=TAU, noise_volts_rms=0.05))
    matrix, g, scale = system(mlp())
    draws, taus = 400, 10.0
    mean = relaxed(matrix, g / scale, torch.zeros_like(g), taus)
    eye = torch.eye(len(g), dtype=torch.float64)
    unit = g.abs().max() / scale
    covariance = 0.05**2 * unit**2 * torch.linalg.solve(matrix, eye - torch.linalg.matrix_exp(-2 * taus * matrix))
    model, samples = mlp(), []
    policy = TNGDPolicy(start=Start.RESET)
    optimizer = TNGD(
        model, machine=noisy, fisher=EXACT, time=taus * TAU, lr=1.0, damping=DAMPING, policy=policy, generator=fresh(7)
    )
    state, _ = optimizer.solver.prepare(_gram(matrix * scale))
    for _ in range(draws):
        samples.append(optimizer.solver.solve(state, g, generator=optimizer.generator).value)
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, (torch.stack(samples) - mean).T, upper=False)
    count = white.numel()
    assert abs(white.mean(1) * draws**0.5).max() < 5  # n z-scores of the mean
    assert abs(white.square().mean() - 1) < 5 * (2 / count) ** 0.5


def _gram(matrix: Tensor):
    from heatbath.operators import DenseRoot, Gram

    return Gram(DenseRoot(torch.linalg.cholesky(matrix).mT), torch.tensor(0.0, dtype=matrix.dtype))


def test_eight_bits_still_lower_the_loss():
    model, (x, y) = mlp(), batch()
    optimizer = TNGD(model, machine=EIGHT, fisher=EXACT, lr=0.5, damping=DAMPING, generator=fresh(1))
    losses = steps(model, optimizer, x, y, 10, F.cross_entropy)
    assert losses[-1] < 0.5 * losses[0]


def test_a_matrix_that_few_bits_made_indefinite_is_counted():
    coarse = Machine(with_bits(MACHINES["ideal"], matrix=3))
    model, (x, y) = mlp(), batch()
    optimizer = TNGD(model, machine=coarse, fisher=EXACT, lr=0.1, damping=1e-6, generator=fresh(1))
    steps(model, optimizer, x, y, 3, F.cross_entropy)
    report = optimizer.report()
    assert report["solve.fell_back"] == 3  # its readings are wild, which is all that can be seen
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(("every", "count"), [(2, "retried"), (1, "fell_back")])
def test_a_machine_that_answers_late_is_driven_again_then_falls_back_and_is_counted(every, count):
    late = Machine(FaultInjector(IDEAL.device, Fault.LATE, every=every))
    model, (x, y) = mlp(), batch()
    optimizer = TNGD(model, machine=late, fisher=EXACT, time=1.0, lr=0.1, damping=DAMPING)
    steps(model, optimizer, x, y, 4, F.cross_entropy)
    assert optimizer.report()[f"solve.{count}"] >= 2


@pytest.mark.parametrize("fisher", [SampledFisher(Categorical(), 3), EmpiricalFisher()], ids=lambda f: type(f).__name__)
def test_other_fishers_train_too(fisher):
    model, (x, y) = mlp(), batch()
    optimizer = TNGD(model, machine=IDEAL, fisher=fisher, time=20 * TAU, lr=0.3, damping=0.2, generator=fresh(2))
    losses = steps(model, optimizer, x, y, 15, F.cross_entropy)
    assert losses[-1] < losses[0]


# --- what it costs, and its state ----------------------------------------------------------------------------------------


def test_a_step_programs_n_by_n_numbers_drives_once_and_takes_time_and_delay():
    spec = replace(MACHINES["tngd-2024"], name="counted")
    model, n = mlp(), len(flat(mlp()))
    policy = TNGDPolicy(delay=2 * TAU)
    optimizer = TNGD(model, machine=Machine(spec), fisher=EXACT, time=5 * TAU, damping=DAMPING, policy=policy)
    steps(model, optimizer, *batch(), count=3, loss=F.cross_entropy)
    work = optimizer.work
    assert work.programmings == 3
    assert work.analog_seconds == pytest.approx(3 * 7 * TAU)
    uploads = [job for job in work.jobs if job.upload_bits]
    drives = [job for job in work.jobs if job.drives]
    assert [(job.cells, job.upload_bits) for job in uploads] == [(n, 16.0 * n * n)]
    assert sum(work.jobs[job] * job.drives for job in drives) == 3
    assert {(job.drive_bits, job.read_bits) for job in drives} == {(16.0 * n, 16.0 * n)}
    products = 28 * n * n * 2  # one of them is the residual by which readings are judged
    assert sum(k.flops * c for k, c in work.kernels.items() if k.name == "matmul") == 3 * products


def test_the_stated_time_to_converge_is_the_default():
    model = mlp()
    optimizer = TNGD(model, machine=Machine(MACHINES["tngd-2024"]), fisher=EXACT, damping=DAMPING)
    steps(model, optimizer, *batch(), loss=F.cross_entropy)
    assert optimizer.work.analog_seconds == pytest.approx(50 * TAU)


@pytest.mark.parametrize("adam", [False, True])
def test_a_checkpoint_carries_the_voltages(adam):
    (x, y), noisy = batch(), Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=1e-2))

    def make() -> tuple[nn.Module, TNGD]:
        model = mlp()
        policy = TNGDPolicy(adam=adam)
        options = {"lr": 0.01, "damping": DAMPING, "policy": policy, "generator": fresh(3)}
        return model, TNGD(model, machine=noisy, fisher=EXACT, time=3 * TAU, **options)

    goes_on_bit_equal(make, x, y)


# --- at the door -----------------------------------------------------------------------------------------------------------


def make(model=None, **options):
    return TNGD(model or mlp(), **{"machine": IDEAL, "fisher": EXACT, **options})


def test_what_is_no_model_or_machine_is_refused():
    with pytest.raises(TypeError, match=r"TNGD takes the model itself, not its parameters: expected nn\.Module, got list"):
        make([torch.ones(2)])
    with pytest.raises(TypeError, match="machine must be a Machine, got MachineSpec: Machine"):
        make(machine=MACHINES["ideal"])


def test_more_parameters_than_cells_are_refused():
    with pytest.raises(ValueError, match="machine 'spu-2023' has 8 cells, TNGD needs one for each of 43: train"):
        make(machine=Machine(MACHINES["spu-2023"]))


def test_more_parameters_than_can_be_emulated_are_refused():
    with pytest.raises(ValueError, match=rf"TNGD is emulated up to {LIMIT} parameters, 4160 are to be trained"):
        make(nn.Linear(64, 64))


@pytest.mark.parametrize("time", [-1e-6, math.inf, math.nan])
def test_a_time_that_is_none_is_refused(time):
    with pytest.raises(ValueError, match="time must be a finite number of seconds, 0 or more, got"):
        make(time=time)


@pytest.mark.parametrize("damping", [0.0, -1.0])
def test_damping_must_be_positive(damping):
    with pytest.raises(ValueError, match="damping must be positive, got"):
        make(damping=damping)


@pytest.mark.parametrize("delay", [-1e-6, math.inf])
def test_a_delay_that_is_none_is_refused(delay):
    with pytest.raises(ValueError, match="delay must be a finite number of seconds, 0 or more, got"):
        TNGDPolicy(delay=delay)


def test_the_policy_of_ngd_is_not_enough():
    with pytest.raises(TypeError, match="policy cannot be of type JointPolicy: write TNGDPolicy"):
        make(policy=JointPolicy())


def test_a_pickled_pair_goes_on_bit_equal():
    """Voltages included; the machine draws from torch's global generator."""
    model = mlp()
    optimizer = TNGD(model, machine=EIGHT, fisher=EXACT, time=5 * TAU, damping=DAMPING)
    steps(model, optimizer, *batch(), loss=F.cross_entropy)
    other, twin = pickle.loads(pickle.dumps((model, optimizer)))
    for m, opt in ((model, optimizer), (other, twin)):
        torch.manual_seed(0)
        steps(m, opt, *batch(), 2, loss=F.cross_entropy)
    assert torch.equal(flat(other), flat(model))
