"""What docs/laplace.md says of laplace-torch: recomputed by dense algebra of our own, and equal to the benchmark's results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heatbath as hb
from heatbath.samplers import fit_laplace, predict_linearized

ROOT = Path(__file__).parents[1]


def as_it_is(a: Tensor) -> Tensor:
    return a


def constant(a: Tensor) -> Tensor:
    return a.new_ones(1)


def with_one(a: Tensor) -> Tensor:
    return torch.cat([a, constant(a)])


def dense(model: nn.Sequential, x: Tensor, further: Tensor, prior: float, *, joint: bool) -> tuple[Tensor, float]:
    """Covariances J Λ⁻¹ Jᵀ of further outputs, and Σ log det(Λ/δ), from Kronecker factors formed example by example.

    Args:
        model: linear layers with tanh between them.
        x: inputs, [N, I].
        further: whose outputs, [M, I].
        prior: δ.
        joint: a bias belongs to its weight, as the column of a constant input 1; else it has the block B + δI of its own.
    """
    layers = [part for part in model if isinstance(part, nn.Linear)]

    def run(inputs: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        rows, sums = [], []
        for part in model:
            if isinstance(part, nn.Linear):
                rows.append(inputs)
                inputs = part(inputs)
                sums.append(inputs)
            else:
                inputs = torch.tanh(inputs)
        return rows, sums, inputs

    def gradients(inputs: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        rows, sums, out = run(inputs)
        slopes = [torch.autograd.grad(out[k], sums, retain_graph=True) for k in range(len(out))]
        return [row.detach() for row in rows], [torch.stack(each) for each in zip(*slopes, strict=True)], out.detach()

    covariances = [torch.zeros(4, 4).double() for _ in further]
    determinant = 0.0
    seen = [gradients(one) for one in x]
    later = [gradients(one) for one in further]
    for i, layer in enumerate(layers):
        kinds = [as_it_is] if layer.bias is None else [with_one] if joint else [as_it_is, constant]
        for inputs in kinds:
            a = sum(torch.outer(inputs(rows[i]), inputs(rows[i])) for rows, _, _ in seen) / len(x)
            b = sum(
                slopes[i].mT @ (torch.diag(p) - torch.outer(p, p)) @ slopes[i]
                for _, slopes, out in seen
                for p in [torch.softmax(out, 0)]
            )
            precision = torch.kron(b, a) + prior * torch.eye(len(a) * len(b)).double()
            determinant += float(torch.logdet(precision / prior))
            for k, (rows, slopes, _) in enumerate(later):
                jacobian = torch.stack([torch.outer(slope, inputs(rows[i])).flatten() for slope in slopes[i]])
                covariances[k] = covariances[k] + jacobian @ torch.linalg.solve(precision, jacobian.mT)
    return torch.stack(covariances), determinant


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import posteriors

    return posteriors


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("bias", [False, True], ids=["without biases", "with biases"])
def test_the_comparison_with_laplace_torch_is_of_two_posteriors_and_not_of_two_priors(cases, bias):
    """heatbath is the dense posterior with joint biases; laplace-torch, by its stored results, the one with separate biases."""
    told = json.loads((ROOT / "benchmarks" / "results" / "posteriors.json").read_text())[f"with{'' if bias else 'out'} biases"]
    model, x, y, further = cases.network(bias=bias)
    posterior = fit_laplace(model, [(x, y)], hb.ExactFisher(hb.Categorical()), prior=cases.PRIOR)
    found = predict_linearized(posterior, further).covariance.detach()
    joint, determinant = dense(model, x, further, cases.PRIOR, joint=True)
    separate, other = dense(model, x, further, cases.PRIOR, joint=False)
    assert difference(found, joint) < 1e-12
    # the data matter: their curvature is of the prior's size, and the prior alone is far off
    curvature = [float(block.spectrum.values.max()) for block in posterior.blocks]
    assert max(curvature) > cases.PRIOR
    assert told["largest_curvature"] == pytest.approx(curvature, rel=1e-9)
    prior = predict_linearized(posterior.with_prior(1e9 * cases.PRIOR), further).covariance.detach() * 1e9
    assert difference(prior, joint) > 0.2
    # laplace-torch: equal without biases, and with them off by as much as separate biases are
    likelihood = -len(x) * float(F.cross_entropy(model(x), y).detach())
    size = sum(float(p.detach().square().sum()) for p in model.parameters())
    evidences = [likelihood - (cases.PRIOR * size + value) / 2 for value in (determinant, other)]
    assert posterior.log_evidence(likelihood) == pytest.approx(evidences[0], rel=1e-12)
    assert told["log_evidence"]["here"] == pytest.approx(evidences[0], rel=1e-9)
    assert told["log_evidence"]["laplace-torch"] == pytest.approx(evidences[1], rel=1e-9)
    assert told["covariance_relative_difference"] == pytest.approx(difference(joint, separate), rel=1e-6, abs=1e-12)
    assert told["tuned_prior"]["here"] == pytest.approx(posterior.tuned().priors["0"], rel=1e-9)
