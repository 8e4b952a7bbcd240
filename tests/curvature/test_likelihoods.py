"""Likelihoods against Hessians of PyTorch's own losses, and their samples against their Hessians."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import hessian

from heatbath.curvature import Bernoulli, Categorical, Gaussian, Likelihood, Observation, Poisson, Reduction
from tests.laws import fresh, noise

POS = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
CLASS = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)
COUNTS = torch.tensor([[0, 3, 1], [2, 0, 5], [1, 1, 0], [4, 0, 2]])
BITS = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]], dtype=torch.float64)
HOLES = torch.where(torch.arange(12).reshape(4, 3) % 5 == 0, torch.nan, BITS)
LABELS = torch.tensor([3, 0, -100, 1])
GRID = torch.tensor([[0, 1, -100], [2, 3, 1]])
TARGETS = noise(4, 3, seed=2)
SOFT = F.softmax(noise(4, 4, seed=9), dim=1)

# name → (likelihood, outputs, targets for observe, mean loss of outputs)
CASES = {
    "mse": (Gaussian(), noise(4, 3), None, lambda z: F.mse_loss(z, TARGETS)),
    "gaussian with variance ½": (Gaussian(2.0), noise(4, 3), None, lambda z: (z - 1).square().mean()),
    "mse, positions": (Gaussian(), noise(2, 3, 2), None, lambda z: F.mse_loss(z, torch.zeros_like(z))),
    "cross-entropy": (Categorical(), noise(4, 4), None, lambda z: F.cross_entropy(z, LABELS.clamp_min(0))),
    "label smoothing": (
        Categorical(label_smoothing=0.3),
        noise(4, 4),
        None,
        lambda z: F.cross_entropy(z, LABELS.clamp_min(0), label_smoothing=0.3),
    ),
    "ignore_index": (Categorical(), noise(4, 4), LABELS, lambda z: F.cross_entropy(z, LABELS)),
    "another ignore_index": (
        Categorical(ignore_index=3),
        noise(4, 4),
        LABELS.clamp_min(0),
        lambda z: F.cross_entropy(z, LABELS.clamp_min(0), ignore_index=3),
    ),
    "class weights": (Categorical(weight=CLASS), noise(4, 4), LABELS, lambda z: F.cross_entropy(z, LABELS, weight=CLASS)),
    "class weights, smoothed": (
        Categorical(weight=CLASS, label_smoothing=0.2),
        noise(4, 4),
        LABELS,
        lambda z: F.cross_entropy(z, LABELS, weight=CLASS, label_smoothing=0.2),
    ),
    "probabilities as targets": (
        Categorical(weight=CLASS, label_smoothing=0.2),
        noise(4, 4),
        SOFT,
        lambda z: F.cross_entropy(z, SOFT, weight=CLASS, label_smoothing=0.2),
    ),
    "classes second": (Categorical(1), noise(2, 4, 3), GRID, lambda z: F.cross_entropy(z, GRID)),
    "classes last": (Categorical(-1), noise(2, 3, 4), GRID, lambda z: F.cross_entropy(z.transpose(1, 2), GRID)),
    "pixels": (Categorical(1), noise(2, 4, 3, 1), GRID[..., None], lambda z: F.cross_entropy(z, GRID[..., None])),
    "binary": (Bernoulli(), noise(4, 3), None, lambda z: F.binary_cross_entropy_with_logits(z, BITS)),
    "binary with weights": (
        Bernoulli(POS),
        noise(4, 3),
        BITS,
        lambda z: F.binary_cross_entropy_with_logits(z, BITS, pos_weight=POS),
    ),
    "binary with missing labels": (
        Bernoulli(),
        noise(4, 3),
        HOLES,
        lambda z: F.binary_cross_entropy_with_logits(z[~HOLES.isnan()], HOLES[~HOLES.isnan()]),
    ),
    "counts": (Poisson(), noise(4, 3), None, lambda z: F.poisson_nll_loss(z, COUNTS)),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def dense(observation: Observation, vectors: list[Tensor]) -> Tensor:
    """Σ v vᵀ over vectors shaped like the outputs, only within each row, `[n, n]`."""
    examples, positions, _ = observation.rows.shape
    owner = observation.as_outputs(
        torch.arange(examples * positions).reshape(examples, positions, 1).expand(observation.rows.shape)
    )
    same = owner.flatten()[:, None] == owner.flatten()
    stacked = torch.stack([v.flatten() for v in vectors])
    return (stacked.mT @ stacked) * same


@every
def test_columns_of_the_root_make_the_hessian_of_the_loss(case):
    likelihood, outputs, targets, loss = case
    seen = likelihood.observe(outputs, targets)
    columns = [seen.as_outputs(seen.weights.sqrt() * column) for column in likelihood.columns(seen.rows)]
    truth = hessian(loss)(outputs).reshape(outputs.numel(), -1)
    torch.testing.assert_close(dense(seen, columns) / seen.terms, truth, rtol=1e-10, atol=1e-13)


@every
def test_the_hessian_is_applied_row_by_row(case):
    likelihood, outputs, targets, loss = case
    seen = likelihood.observe(outputs, targets)
    tangent = noise(*outputs.shape, seed=7)
    got = seen.as_outputs(seen.hessian(seen.as_rows(tangent))) / seen.terms
    truth = (hessian(loss)(outputs).reshape(outputs.numel(), -1) @ tangent.flatten()).reshape(outputs.shape)
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("likelihood", [Gaussian(3.0), Categorical(), Bernoulli(), Poisson()], ids=lambda x: type(x).__name__)
def test_law_14_sampled_gradients_have_the_hessian_as_second_moment(likelihood):
    """Every entry of the mean of v vᵀ over n draws lies within 5 standard errors of H, by the draws' own variance."""
    n, size = 40_000, 3
    row = noise(1, size, seed=3)
    v = likelihood.sample(row.expand(n, 1, size), fresh(5))[:, 0]
    products = v[:, :, None] * v[:, None, :]
    truth = torch.stack([likelihood.hessian(row[None], e[None, None])[0, 0] for e in torch.eye(size, dtype=row.dtype)])
    error = products.std(0) / n**0.5
    z = (products.mean(0) - truth) / error.clamp_min(1e-12)
    assert z.abs().max() < 5
    assert abs(v.mean(0) / v.std(0) * n**0.5).max() < 5  # the mean gradient is zero
    assert error.max() < 0.05 * truth.abs().max()  # so that the test can fail


@pytest.mark.parametrize("shape,dim", [((4, 3), 1), ((2, 5, 3), -1), ((2, 5, 3), 1), ((2, 5, 3, 4), 1), ((2, 5, 3, 4), -1)])
def test_rows_and_outputs_are_two_views_of_one_tensor(shape, dim):
    z = noise(*shape)
    seen = Categorical(dim).observe(z)
    assert seen.rows.shape == (shape[0], z.numel() // shape[0] // shape[dim], shape[dim])
    assert torch.equal(seen.as_outputs(seen.rows), z)
    assert torch.equal(seen.as_rows(z), seen.rows)
    torch.testing.assert_close(seen.rows.sum(-1), z.sum(dim).reshape(shape[0], -1), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "likelihood,outputs,targets,reduction,terms",
    [
        (Gaussian(), noise(4, 5, 3), None, None, 60),
        (Gaussian(), noise(4, 5, 3), None, Reduction.ROWS, 20),
        (Gaussian(), noise(4, 5, 3), None, Reduction.EXAMPLES, 4),
        (Gaussian(), noise(4, 5, 3), None, Reduction.SUM, 4),
        (Categorical(), noise(4, 4), LABELS, None, 3),
        (Categorical(), noise(4, 4), LABELS, Reduction.EXAMPLES, 3),
        (Categorical(weight=CLASS), noise(4, 4), LABELS, None, 6.5),
        (Categorical(-1), noise(2, 3, 4), GRID, None, 5),
        (Categorical(-1), noise(2, 3, 4), GRID, Reduction.ROWS, 5),
        (Categorical(-1), noise(2, 3, 4), GRID, Reduction.EXAMPLES, 2),
        (Bernoulli(), noise(4, 3), HOLES, None, 9),
    ],
)
def test_terms_are_what_the_loss_is_divided_by(likelihood, outputs, targets, reduction, terms):
    assert likelihood.observe(outputs, targets, reduction=reduction).terms.item() == terms


@pytest.mark.parametrize("likelihood", [Categorical(-1), Bernoulli(), Gaussian(), Poisson()], ids=lambda x: type(x).__name__)
def test_a_mask_takes_terms_out_of_weights_and_count(likelihood: Likelihood):
    z = noise(2, 3, 4)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    mask = mask if likelihood.whole_rows else mask[..., None].expand(z.shape)
    seen, whole = likelihood.observe(z, mask=mask), likelihood.observe(z)
    assert seen.terms == mask.sum()
    assert torch.equal(seen.weights, whole.weights * seen.weights)
    assert seen.weights[0, 1].max() == 0


def test_half_precision_outputs_are_seen_in_float32():
    assert Gaussian().observe(noise(4, 3).half()).rows.dtype == torch.float32


@pytest.mark.parametrize(
    "call,kind,message",
    [
        (lambda: Gaussian(0.0), ValueError, "the weight of a squared error must be positive, got 0.0"),
        (lambda: Categorical(label_smoothing=1.5), ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
        (
            lambda: Gaussian().observe((noise(2, 3),)),
            TypeError,
            "observe takes the tensor the loss is computed from, got tuple",
        ),
        (lambda: Gaussian().observe(torch.ones(2, 3, dtype=torch.long)), TypeError, "observe takes the tensor"),
        (
            lambda: Gaussian().observe(noise(3)),
            ValueError,
            r"outputs need a batch and a feature dimension \[B, …, C\], got shape \[3\]",
        ),
        (
            lambda: Categorical().observe(noise(2, 3, 4)),
            ValueError,
            r"outputs \[2, 3, 4\] have more than two dimensions: say which",
        ),
        (
            lambda: Categorical(weight=CLASS).observe(noise(2, 4)),
            ValueError,
            "with class weights the curvature depends on the targets",
        ),
        (lambda: Bernoulli(POS).observe(noise(2, 3)), ValueError, "with pos_weight the curvature depends on the targets"),
        (
            lambda: Categorical().observe(noise(4, 4), LABELS[:2]),
            ValueError,
            r"targets should have shape \[4, 4\] or, as class indices, \[4\], got \[2\]",
        ),
        (
            lambda: Bernoulli().observe(noise(4, 3), BITS[:2]),
            ValueError,
            r"targets should have shape \[4, 3\], got \[2, 3\] of torch.float64",
        ),
        (
            lambda: Gaussian().observe(noise(4, 3), mask=BITS[:, 0] > 0),
            ValueError,
            r"mask should have shape \[4, 3\], one entry for each",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
