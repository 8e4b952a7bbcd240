"""Sketches of PSD matrices against the matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heatbath.operators import Sketched, from_plain, random_basis, to_plain
from heatbath.operators.sketched import _gaussian, _mixed
from tests.laws import noise

N, R = 60, 12
CPU = torch.device("cpu")


def psd(rank: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = noise(rank, N, seed=seed)
    return (rows.mT @ rows / rank).to(dtype)


def sketch(matrix: Tensor, rank: int = R) -> Sketched:
    """By the definition: Y = AΩ, tr A."""
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return Sketched(matrix @ random_basis(N, rank, matrix.dtype, CPU), trace, torch.zeros_like(trace))


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 5, R])
def test_a_matrix_of_rank_up_to_r_comes_back(rank, dtype):
    """To rounding: ν = 16ε·tr C, C = ΩᵀAΩ, over the least eigenvalue of C that is not 0; A misses as much of itself."""
    matrix = psd(rank)
    omega = random_basis(N, R, torch.float64, CPU)
    values = torch.linalg.eigvalsh(omega.mT @ matrix @ omega)
    lost = 16 * torch.finfo(dtype).eps * float(values.sum() / values[-rank])
    assert error(sketch(matrix.to(dtype)).dense().double(), matrix) < 4 * lost


def test_the_trace_is_that_of_the_matrix_and_of_the_dense_form():
    matrix = psd(200)
    operator = sketch(matrix).shift(0.3)
    truth = matrix.trace() + 0.3 * N
    torch.testing.assert_close(operator.trace(), truth)
    torch.testing.assert_close(operator.dense().trace(), truth)


def test_a_sketch_is_psd_and_what_it_misses_is_psd():
    """0 ≤ Â ≤ A, τ aside."""
    matrix = psd(200)
    low = sketch(matrix).low_rank()
    inside = low.basis @ low.core @ low.basis.mT
    assert torch.linalg.eigvalsh(low.core).min() > 0
    assert low.rest > 0
    assert torch.linalg.eigvalsh(matrix - inside).min() > -1e-12 * matrix.norm()


def test_what_is_missing_is_within_the_bound_for_gaussian_test_matrices():
    """E tr(A − Â) ≤ (1 + p/(q − 1)) Σ_{j>p} λ_j, p + q = r. Averages over rotations of A, to which a fixed Ω is a Gaussian one.

    The mean of 40 is allowed three standard errors; the bound is within a factor 3 of it, so that it can fail.
    """
    values = torch.logspace(0, -4, N, dtype=torch.float64)
    missing = []
    for seed in range(40):
        rotation, upper = torch.linalg.qr(noise(N, N, seed=seed))
        rotation = rotation * upper.diagonal().sign()  # Haar
        low = sketch(rotation @ torch.diag(values) @ rotation.mT).low_rank()
        missing.append(float(low.rest) * (N - R))
    found = torch.tensor(missing)
    bound = min((1 + p / (R - p - 1)) * float(values[p:].sum()) for p in range(1, R - 1))
    assert found.mean() - 3 * found.std() / math.sqrt(40) <= bound
    assert bound < 3 * found.mean()
    assert found.min() >= float(values[R:].sum())  # no matrix of rank r misses less


def test_a_multiple_of_the_identity_comes_back():
    torch.testing.assert_close(sketch(2 * torch.eye(N).double()).dense(), 2 * torch.eye(N).double(), rtol=1e-12, atol=1e-12)


def test_sums_scales_and_shifts_of_sketches_are_sketches_of_the_same():
    a, b = psd(3), psd(4, seed=1)
    one, two, both = sketch(a), sketch(b), sketch(0.25 * a + 0.75 * b)
    torch.testing.assert_close(0.25 * one.sketch + 0.75 * two.sketch, both.sketch)
    torch.testing.assert_close(one.scaled(torch.tensor(3.0)).dense(), 3 * one.dense())
    torch.testing.assert_close(one.shift(0.5).dense(), one.dense() + 0.5 * torch.eye(N).double())
    torch.testing.assert_close(one.shift(0.5).scaled(torch.tensor(2.0)).dense(), 2 * one.dense() + torch.eye(N).double())


def test_stacks_are_their_members():
    a, b = psd(3), psd(200, seed=1)
    stacked = sketch(torch.stack((a, b)))
    assert (stacked.domain, stacked.stack, stacked.rank) == ((N,), (2,), R)
    torch.testing.assert_close(stacked.dense()[1], sketch(b).dense())
    x = noise(2, 5, N, seed=3)
    torch.testing.assert_close(stacked @ x, x @ stacked.dense())


def test_zeros_are_zeros_and_no_sketch_of_a_psd_matrix_is_nan():
    assert sketch(torch.zeros(N, N)).shift(0.1).dense().sub(0.1 * torch.eye(N)).abs().max() < 1e-9
    assert sketch(-psd(200)).dense().isnan().any()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_is_no_matter_in_float32(scale):
    matrix = psd(R)
    plain, scaled = sketch(matrix.float()).dense(), sketch((scale * matrix).float()).dense()
    assert error(scaled.double() / scale, matrix) < 2 * error(plain.double(), matrix)


def test_a_sketch_is_plain_and_back():
    operator = sketch(psd(5))
    torch.testing.assert_close(from_plain(to_plain(operator)).dense(), operator.dense())


def test_the_basis_is_orthonormal_fixed_and_made_once():
    omega = random_basis(N, R, torch.float64, CPU)
    torch.testing.assert_close(omega.mT @ omega, torch.eye(R).double(), rtol=0, atol=1e-14)
    assert random_basis(N, R, torch.float64, CPU) is omega
    torch.manual_seed(5)
    random_basis.cache_clear()
    assert torch.equal(random_basis(N, R, torch.float64, CPU), omega)


def test_the_basis_is_made_on_the_cpu_whatever_the_default_device():
    random_basis.cache_clear()
    with torch.device("meta"):
        omega = random_basis(N, R, torch.float64, CPU)
    random_basis.cache_clear()
    assert torch.equal(omega, random_basis(N, R, torch.float64, CPU))


def test_the_bits_are_those_of_splitmix64():
    """Its published first outputs for seed 0 (the reference C code of Vigna, prng.di.unimi.it/splitmix64.c)."""
    found = [int(bits) % 2**64 for bits in _mixed(torch.arange(1, 4))]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_numbers_are_normal():
    """Moments 1 to 4 of 100,001 numbers, within four standard errors: √(1, 2, 15, 96)/√n."""
    x = _gaussian(100_001)
    assert len(x) == 100_001
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(x.pow(power).mean()) - mean) < 4 * math.sqrt(variance / len(x))


def test_a_sketch_as_wide_as_the_matrix_is_refused():
    with pytest.raises(ValueError, match=r"a sketch is \[\*stack, n, r\] with r < n, got shape \(4, 4\)"):
        Sketched(noise(4, 4), torch.tensor(1.0), torch.tensor(0.0))
