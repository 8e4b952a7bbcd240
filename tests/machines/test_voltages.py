"""Samples of a machine's voltages against the Ornstein–Uhlenbeck law they follow."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from heatbath.machines import Machine, MachineSpec, Schedule, SettledApproximation, load_machine

NOISY = MachineSpec(name="noisy", tau=1e-6, noise_volts_rms=0.1)
SETTLED = {"interval": 40e-6, "burn_in": 60e-6}


def matrix(n: int = 5) -> torch.Tensor:
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return root @ root.mT / n + 0.3 * torch.eye(n, dtype=torch.float64)


def drive(n: int = 5) -> torch.Tensor:
    return torch.linspace(-1.0, 1.5, n, dtype=torch.float64)


def whitened(samples: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lᵀ(x − A⁻¹b), A = LLᵀ: standard normal if x follows N(A⁻¹b, A⁻¹)."""
    return (samples - torch.linalg.solve(a, b)) @ torch.linalg.cholesky(a)


def test_settled_voltages_follow_the_gaussian_with_this_precision():
    """4,000 independent chains: Kolmogorov–Smirnov on whitened coordinates, χ² on their square length."""
    a, b, machine = matrix(), drive(), Machine(NOISY)
    reading = machine.read_samples(
        machine.program(a), b, reads=1, chains=4000, generator=torch.Generator().manual_seed(0), **SETTLED
    )
    white = whitened(reading.samples[0], a, b)
    assert min(stats.kstest(white[:, i].numpy(), "norm").pvalue for i in range(5)) > 1e-3
    assert stats.kstest(white.square().sum(-1).numpy(), "chi2", args=(5,)).pvalue > 1e-3


def test_reads_of_one_chain_are_correlated_as_the_law_says():
    """In the mode λ of Â the correlation at lag t is e^{−λt/τ}; z-score over independent chains."""
    a, machine = matrix(), Machine(NOISY)
    lag, chains = 0.7e-6, 4000
    reading = machine.read_samples(
        machine.program(a),
        reads=2,
        chains=chains,
        interval=lag,
        burn_in=60e-6,
        generator=torch.Generator().manual_seed(1),
    )
    values, vectors = torch.linalg.eigh(a)
    modes = (reading.samples @ vectors) * values.sqrt()  # unit variance
    r = torch.exp(-values / a.abs().max() * lag / 1e-6)
    products = modes[0] * modes[1]
    z = (products.mean(0) - r) / ((1 + r**2) / chains).sqrt()  # var(xy) = 1 + r² for jointly normal x, y
    assert float(z.abs().max()) < 4


def test_a_cold_start_is_not_the_stationary_law():
    """After a tenth of τ the variance is far below that of the posterior: burn-in is emulated, not assumed."""
    a, machine = matrix(), Machine(NOISY)
    reading = machine.read_samples(
        machine.program(a),
        reads=1,
        chains=2000,
        interval=1e-6,
        burn_in=1e-7,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(whitened(reading.samples[0], a, torch.zeros(5).double()).var()) < 0.5


def test_converters_bound_the_error_of_each_sample():
    """Same noise, 6 read bits: every sample moves by at most half a step of the range it was read in."""
    a, b = matrix(), drive()
    kinds = [Machine(NOISY), Machine(replace(NOISY, read_bits=6))]
    runs = [
        m.read_samples(m.program(a), b, reads=3, chains=50, generator=torch.Generator().manual_seed(0), **SETTLED)
        for m in kinds
    ]
    change = (runs[0].samples - runs[1].samples).abs().amax((0, -1))
    largest = float(runs[0].samples.abs().max())
    assert bool((change > 0).all())
    assert float(change.max()) <= 2 * 1.25 * largest / 31 / 2 * 1.001  # range: below twice 1.25 times the largest
    assert runs[1].work.conversions == 50 * (5 + 15)


def test_a_drive_above_full_scale_clips_and_is_counted():
    spec = replace(NOISY, drive_bits=8, noise_volts_rms=0.5)
    machine = Machine(spec)
    reading = machine.read_samples(machine.program(matrix()), 50 * drive(), reads=1, **SETTLED)
    assert int(reading.drive_clipped) > 0


def test_a_stack_is_a_fleet():
    a = torch.stack((matrix(), 2 * matrix()))
    machine = Machine(NOISY)
    b = torch.stack((drive(), drive()))
    reading = machine.read_samples(
        machine.program(a), b, reads=1, chains=3000, generator=torch.Generator().manual_seed(0), **SETTLED
    )
    assert reading.samples.shape == (2, 1, 3000, 5)
    for member in range(2):
        white = whitened(reading.samples[member, 0], a[member], b[member])
        assert stats.kstest(white.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (load_machine("ideal"), {}, "has no noise to read"),
        (NOISY, {"reads": 0}, "reads >= 1 and an interval"),
        (NOISY, {"chains": 0}, "chains >= 1 and burn_in > 0 s"),
        (NOISY, {"interval": 0.0}, "an interval > 0 s"),
        (NOISY, {"drive": torch.ones(4).double()}, "drive"),
    ],
)
def test_what_cannot_be_sampled_is_refused(spec, arguments, message):
    machine = Machine(spec)
    programmed = machine.program(matrix())
    settings = {"reads": 1, **SETTLED, **arguments}
    given = settings.pop("drive", None)
    with pytest.raises(ValueError, match=message):
        machine.read_samples(programmed, given, **settings)


def test_the_settled_approximation_has_no_samples_of_short_intervals():
    """A law chosen for one long average would be wrong here."""
    machine = Machine(NOISY)
    programmed = machine.program(matrix(), schedule=Schedule(1e-3, 1e-3), circuit=SettledApproximation)
    with pytest.raises(ValueError, match="the settled approximation was chosen for"):
        machine.read_samples(programmed, reads=2, interval=1e-7, burn_in=1e-6)
