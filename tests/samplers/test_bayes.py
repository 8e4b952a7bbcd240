"""Posteriors sampled on a machine against closed forms, quadrature and importance sampling."""

import math

import pytest
import torch
from scipy import integrate, stats

from heatbath.experiments.data.uci import load_breast_cancer, load_table
from heatbath.machines import Machine, MachineSpec
from heatbath.samplers import (
    Gaussian,
    LogisticRegression,
    diagnose,
    langevin,
    linear_regression,
    sample_gaussian,
    slowest_relaxation,
)

NOISY = MachineSpec(name="noisy", tau=1e-6, noise_volts_rms=0.05)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regression(n: int = 60, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, d, generator=noise(1), dtype=torch.float64)
    return x, x @ torch.arange(1.0, d + 1).double() + 0.5 * torch.randn(n, generator=noise(2), dtype=torch.float64)


def test_posterior_of_linear_regression_is_bayes_rule():
    """Mean and covariance by conditioning the joint Gaussian of weights and targets: another formula, no precision in it."""
    x, y = regression(12)
    posterior = linear_regression(x, y, noise=0.5, prior=2.0)
    joint = 4.0 * x @ x.mT + 0.25 * torch.eye(12, dtype=torch.float64)
    gain = 4.0 * x.mT @ torch.linalg.inv(joint)
    torch.testing.assert_close(posterior.mean(), gain @ y, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(posterior.covariance(), 4.0 * torch.eye(4).double() - 4.0 * gain @ x, rtol=1e-8, atol=1e-12)


def test_machine_samples_are_the_posterior_of_linear_regression():
    """2,000 independent chains, whitened by the exact posterior: KS on coordinates, χ² on lengths."""
    x, y = regression()
    posterior = linear_regression(x, y, noise=0.5, prior=2.0)
    draws = sample_gaussian(posterior, Machine(NOISY), reads=1, interval=1e-4, burn_in=1e-4, chains=2000, generator=noise())
    white = (draws.values[0] - posterior.mean()) @ torch.linalg.cholesky(posterior.precision)
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(white.square().sum(-1).numpy(), "chi2", args=(4,)).pvalue > 1e-3
    assert draws.notes["drive_clipped"] == draws.notes["read_clipped"] == 0


def test_samples_on_a_real_table_agree_with_the_exact_posterior():
    pytest.importorskip("arviz_stats")
    train = load_table("concrete").train
    posterior = linear_regression(*train.tensors, noise=0.6, prior=1.0)
    root = posterior.precision.diagonal().rsqrt()
    slowest = 1e-6 / float(torch.linalg.eigvalsh(root[:, None] * posterior.precision * root)[0])  # relaxation time, s
    times = {"interval": 2 * slowest, "burn_in": 20 * slowest}
    draws = sample_gaussian(posterior, Machine(NOISY), reads=400, chains=4, generator=noise(), **times)
    found = diagnose(draws.values)
    assert max(found.r_hat) < 1.02
    z = (draws.values.mean((0, 1)) - posterior.mean()) / torch.tensor(found.error)
    assert float(z.abs().max()) < 4


def logistic(d: int = 2) -> LogisticRegression:
    x = torch.randn(25, d, generator=noise(5), dtype=torch.float64)
    p = torch.sigmoid(x @ torch.tensor([1.5, -1.0, 0.5]).double()[:d])
    return LogisticRegression(x, (torch.rand(25, generator=noise(6), dtype=torch.float64) < p).double(), prior=1.5)


def test_energy_gradient_and_hessian_of_logistic_regression_are_consistent():
    model, w = logistic(3), torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(model.gradient(w), torch.func.grad(model.energy)(w))
    torch.testing.assert_close(model.hessian(w), torch.func.hessian(model.energy)(w))
    p = torch.sigmoid(model.inputs @ w)
    likelihood = torch.where(model.labels == 1, p, 1 - p).log().sum()
    prior = torch.distributions.Normal(0.0, 1.5).log_prob(w).sum()
    constant = 3 * math.log(1.5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(model.energy(w), -likelihood - prior - constant)


def test_laplace_is_the_gaussian_at_the_mode():
    model = logistic(3)
    gaussian = model.laplace()
    assert float(model.gradient(gaussian.mean()).norm()) < 1e-6
    torch.testing.assert_close(gaussian.precision, torch.func.hessian(model.energy)(gaussian.mean()))


@pytest.mark.slow
def test_langevin_samples_the_posterior_of_logistic_regression():
    """Mean and variance of two weights against quadrature; z-scores of 3,000 independent chains plus the scheme's h² bias.

    The bias is measured, not guessed: the same at twice the step is four times as large.
    """
    model = logistic(2)
    mode = model.laplace()
    scale = float(torch.linalg.eigvalsh(mode.precision)[-1]) ** -0.5  # unit: largest curvature at the mode is 1

    def density(a: float, b: float) -> float:
        return math.exp(float(mode_energy - model.energy(torch.tensor([a, b], dtype=torch.float64))))

    mode_energy = model.energy(mode.mean())
    (m0, m1), (s0, s1) = mode.mean().tolist(), mode.covariance().diagonal().sqrt().tolist()
    box = (m0 - 8 * s0, m0 + 8 * s0, m1 - 8 * s1, m1 + 8 * s1)
    moments = [
        integrate.dblquad(lambda b, a, f=f: f(a, b) * density(a, b), *box, epsabs=1e-5)[0]
        for f in (lambda a, b: 1.0, lambda a, b: a, lambda a, b: b, lambda a, b: a * a, lambda a, b: b * b)
    ]
    z0, mean = moments[0], torch.tensor(moments[1:3]) / moments[0]
    variance = torch.tensor(moments[3:5]) / z0 - mean**2

    def sampled(step: float) -> tuple[torch.Tensor, torch.Tensor]:
        draws = langevin(
            lambda x: scale * model.gradient(scale * x),
            torch.zeros(3000, 2, dtype=torch.float64),
            spec=NOISY,
            upload_bits=25 * 2 * 8,
            reads=1,
            interval=1e-6,
            burn_in=20e-6,
            step=step,
            generator=noise(),
        )
        w = scale * draws.values[0]
        return w.mean(0), w.var(0)

    (mean_h, variance_h), (mean_2h, variance_2h) = sampled(0.1), sampled(0.2)
    bias_mean, bias_variance = (mean_2h - mean_h).abs() / 3, (variance_2h - variance_h).abs() / 3
    assert bool(((mean_h - mean).abs() < 4 * (variance / 3000).sqrt() + bias_mean).all())
    assert bool(((variance_h - variance).abs() < 5 * variance * (2 / 3000) ** 0.5 + bias_variance).all())


def test_langevin_of_a_quadratic_energy_has_the_exact_variance():
    """Leimkuhler–Matthews is exact in the variance of a Gaussian, at any stable step: z-score of 4,000 chains."""
    curvature = torch.tensor([1.0, 0.3], dtype=torch.float64)
    draws = langevin(
        lambda x: curvature * x,
        torch.zeros(4000, 2, dtype=torch.float64),
        spec=NOISY,
        upload_bits=1.0,
        reads=1,
        interval=1e-6,
        burn_in=40e-6,
        step=0.5,
        generator=noise(),
    )
    z = (draws.values[0].square().mean(0) * curvature - 1) / (2 / 4000) ** 0.5
    assert float(z.abs().max()) < 4


def quadratic(spec: MachineSpec, chains: int = 4000) -> torch.Tensor:
    draws = langevin(
        lambda x: x,
        torch.zeros(chains, 1, dtype=torch.float64),
        spec=spec,
        upload_bits=1.0,
        reads=1,
        interval=1e-6,
        burn_in=20e-6,
        step=0.5,
        generator=noise(),
    )
    if spec.read_bits is not None and spec.noise > 0.05:
        assert draws.notes["read_clipped"] > 0
    return draws.values[0, :, 0]


def test_readings_of_langevin_lie_on_the_levels_of_the_read_converter():
    """Volts = x · 0.1; 5 bits have the step 1/15, so x has the step 10/15 and rounding adds step²/12 to the variance."""
    values = quadratic(MachineSpec(name="coarse", tau=1e-6, noise_volts_rms=0.1, read_bits=5))
    step = 10 / 15
    torch.testing.assert_close(values / step, (values / step).round(), rtol=0, atol=1e-9)
    z = (values.square().mean() / (1 + step**2 / 12) - 1) / (2 / 4000) ** 0.5
    assert abs(float(z)) < 4


def test_readings_of_langevin_carry_read_noise_and_clip_at_full_scale():
    noisy = quadratic(MachineSpec(name="hiss", tau=1e-6, noise_volts_rms=0.1, read_noise_volts_rms=0.1))
    assert abs(float(noisy.square().mean() / 2 - 1)) < 4 * (2 / 4000) ** 0.5
    narrow = quadratic(MachineSpec(name="narrow", tau=1e-6, noise_volts_rms=0.5, read_bits=12))
    assert float(narrow.abs().max()) == pytest.approx(2.0)


def test_a_machine_of_few_bits_holds_other_inputs():
    model = logistic(3)
    step = float(model.inputs.abs().max()) / 7
    held = model.rounded(4)
    assert float((held.inputs - model.inputs).abs().max()) <= step / 2 * (1 + 1e-9)
    torch.testing.assert_close(held.inputs / step, (held.inputs / step).round())
    with pytest.raises(ValueError, match="at least 2 bits"):
        model.rounded(1)


def test_breast_cancer_is_separated_by_posterior_samples():
    """A real table: the Laplace posterior sampled on the machine predicts held-out tumours."""
    data = load_breast_cancer()
    model = LogisticRegression(*data.train.tensors, prior=1.0)
    draws = sample_gaussian(model.laplace(), Machine(NOISY), reads=50, interval=1e-4, burn_in=1e-3, generator=noise())
    x, y = data.test.tensors
    probability = torch.sigmoid(draws.values.flatten(0, 1) @ x.mT).mean(0)
    assert float(((probability > 0.5) == (y == 1)).double().mean()) > 0.93


def test_diagnostics_know_independent_from_stuck_chains():
    pytest.importorskip("arviz_stats")
    independent = torch.randn(500, 4, 1, generator=noise(), dtype=torch.float64)
    good, bad = diagnose(independent), diagnose(independent * 0.1 + torch.arange(4.0)[:, None])
    assert good.r_hat[0] < 1.01 < bad.r_hat[0]
    assert good.effective[0] > 1500
    assert good.error[0] == pytest.approx(independent.std().item() / 2000**0.5, rel=0.2)


EYE = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Gaussian(EYE[:1], EYE[0]), ValueError, "square"),
        (lambda: Gaussian(EYE.expand(2, 2, 2), EYE[0]), ValueError, "one matrix"),
        (lambda: Gaussian(EYE, EYE[0].float()), TypeError, "potential must be a tensor of torch.float64"),
        (lambda: Gaussian(EYE, torch.full((2,), torch.nan).double()), ValueError, "2 finite numbers"),
        (lambda: linear_regression(EYE, EYE[0], noise=0.0, prior=1.0), ValueError, "must be positive"),
        (lambda: linear_regression(EYE, torch.ones(3).double(), noise=1.0, prior=1.0), ValueError, "must fit"),
        (lambda: LogisticRegression(EYE, torch.tensor([0.0, 0.5]).double()), ValueError, "0 or 1"),
        (lambda: LogisticRegression(EYE, torch.zeros(3).double()), ValueError, "must fit"),
        (lambda: LogisticRegression(EYE, torch.zeros(2).double(), prior=0.0), ValueError, "must be positive"),
        (lambda: diagnose(torch.zeros(3, 2, 1)), ValueError, "reads >= 4"),
        (
            lambda: sample_gaussian(Gaussian(-EYE, EYE[0]), Machine(NOISY), reads=1, interval=1e-6, burn_in=1e-6),
            ValueError,
            "positive diagonal",
        ),
    ],
)
def test_what_makes_no_posterior_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_precision_that_rounding_made_indefinite_is_refused():
    tight = torch.full((3, 3), 0.99).double() + 0.01 * EYE.new_ones(3).diag()
    coarse = Machine(MachineSpec(name="coarse", tau=1e-6, noise_volts_rms=0.1, matrix_bits=2, write_noise=0.2))
    with pytest.raises(ValueError, match="times the energy of equilibrium: they run away"):
        sample_gaussian(
            Gaussian(tight, torch.zeros(3).double()), coarse, reads=5, interval=5e-5, burn_in=2e-4, generator=noise()
        )


def test_langevin_refuses_a_machine_without_noise():
    with pytest.raises(ValueError, match="no noise to sample"):
        quadratic(MachineSpec(name="silent", tau=1e-6))


@pytest.mark.parametrize(("step", "message"), [(0.0, "step > 0"), (5.0, "ran away")])
def test_langevin_refuses_bad_steps(step, message):
    with pytest.raises(ValueError, match=message):
        langevin(
            lambda x: x,
            torch.ones(2, 1).double(),
            spec=NOISY,
            upload_bits=1.0,
            reads=1,
            interval=1e-2,
            burn_in=1e-2,
            step=step,
        )


def test_slowest_relaxation_is_that_of_the_scaled_precision():
    """The correlation of neighbours in the slowest mode is 1/e after that time: from the law, at an ideal machine."""
    gaussian = Gaussian(torch.tensor([[4.0, 1.8], [1.8, 1.0]]).double(), torch.zeros(2).double())
    seconds = slowest_relaxation(gaussian, Machine(NOISY))
    draws = sample_gaussian(gaussian, Machine(NOISY), reads=2, interval=seconds, burn_in=1e-3, chains=4000, generator=noise())
    root = gaussian.precision.diagonal().rsqrt()
    slow = torch.linalg.eigh(root[:, None] * gaussian.precision * root).eigenvectors[:, 0]
    first, second = (draws.values / root) @ slow
    r = float(torch.corrcoef(torch.stack((first, second)))[0, 1])
    assert abs(math.atanh(r) - math.atanh(math.exp(-1))) < 4 / 4000**0.5  # Fisher's z
    with pytest.raises(ValueError, match="not positive definite"):
        slowest_relaxation(Gaussian(-EYE, EYE[0]), Machine(NOISY))
