"""What a Laplace posterior predicts: outputs with their uncertainty.

Linearized about W* (Immer et al. 2021, arXiv 2008.08400), outputs z ∈ R^C of one input are Gaussian,

    z ~ N(z*, Σ),    Σ = Σ_blocks J Λ⁻¹ Jᵀ = Σ_blocks Σ_oi J̃ J̃ᵀ / (λ + δ),    J̃ = U_Bᵀ J U_A

which is what the Gauss–Newton matrix is the curvature of; for a model that is linear it is exact. Where a layer is used once
an example, J is g aᵀ and the sum over o, i costs O·I. Weights can also be drawn and run through the network itself; with
the Gauss–Newton matrix of an overparametrized network this underfits (the same paper). Class probabilities by the
probit approximation (MacKay 1992, doi 10.1162/neco.1992.4.5.720) are softmax(z*/√(1 + π Σ_cc/8)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature import jacobian_rows, restored
from heatbath.layers import OneHot, Rows
from heatbath.samplers.laplace import Laplace, PosteriorBlock, turn


@dataclass(frozen=True, eq=False)
class OutputPosterior:
    """Outputs of a network with their uncertainty.

    Args:
        mean: z*, `[B, C]`.
        covariance: Σ, `[B, C, C]`, of the outputs; noise of targets is not in it.
    """

    mean: Tensor
    covariance: Tensor

    def probit(self) -> Tensor:
        """Class probabilities by the probit approximation, `[B, C]`."""
        variance = self.covariance.diagonal(dim1=-2, dim2=-1)
        return torch.softmax(self.mean / (1 + math.pi / 8 * variance).sqrt(), -1)

    def sample(self, samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Outputs `[S, B, C]`."""
        values, basis = torch.linalg.eigh(self.covariance)
        noise = torch.empty(samples, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)
        noise.normal_(generator=generator)
        return self.mean + (basis @ (values.clamp_min(0).sqrt() * noise).unsqueeze(-1)).squeeze(-1)


def predict_linearized(posterior: Laplace, inputs: Tensor, *, chunk: int = 256) -> OutputPosterior:
    """Predict outputs by linearizing the network at W*.

    Args:
        posterior: from `fit_laplace`.
        inputs: `[B, …]`, the one argument of the model.
        chunk: examples at a time; memory grows with it, and where layers are reused with the number of their weights, too.

    Raises:
        ValueError: outputs that are not `[B, C]`, or a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    sites = list(dict.fromkeys(block.site for block in posterior.blocks))
    means, covariances = [], []
    for part in inputs.split(chunk):
        outputs, rows = jacobian_rows(posterior.model, (part,), sites)
        lists = [by_output for site in sites for by_output in rows[site]]
        covariance = sum(_variance(block, uses) for block, uses in zip(posterior.blocks, lists, strict=True) if uses[0])
        means.append(outputs)
        covariances.append(torch.as_tensor(covariance, dtype=outputs.dtype, device=outputs.device))
    return OutputPosterior(torch.cat(means), torch.cat(covariances))


def most_predictive(
    posterior: Laplace, inputs: Tensor, labels: Tensor, *, lowest: float = 1e-2, highest: float = 1e6, count: int = 33
) -> Laplace:
    """The posterior with the δ, one for all layers, under which held-out labels are most probable.

    To be used where W* is no mode of a posterior (trained without a prior), so that the evidence misleads.

    Args:
        posterior: from `fit_laplace`.
        inputs: held out, `[B, …]`.
        labels: their classes, int64 `[B]`.
        lowest: smallest δ that is tried.
        highest: largest.
        count: how many, evenly in log δ.

    Raises:
        ValueError: bounds that are not 0 < lowest < highest, fewer than two, or no held-out examples.
    """
    if not 0 < lowest < highest or count < 2 or not len(labels):
        raise ValueError(
            f"priors are tried between 0 < lowest < highest on one or more examples, got {lowest}, {highest}, {count} priors, "
            f"{len(labels)} examples"
        )

    def loss(prior: float) -> float:
        return float(F.nll_loss(predict_linearized(posterior.with_prior(prior), inputs).probit().log(), labels))

    tried = torch.logspace(math.log10(lowest), math.log10(highest), count, dtype=torch.float64).tolist()
    return posterior.with_prior(min(tried, key=loss))


def predict_sampled(model: nn.Module, inputs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Outputs of a network with drawn weights, `[S, B, C]`.

    Args:
        model: the network.
        inputs: `[B, …]`.
        parameters: `WeightDraws.parameters`, `[S, *shape]` by name; the others are the model's own.
    """

    def run(drawn: Mapping[str, Tensor]) -> Tensor:
        outputs: Tensor = torch.func.functional_call(model, dict(drawn), (inputs,))
        return outputs

    with torch.no_grad(), restored(model):
        return torch.vmap(run)(dict(parameters))


def _variance(block: PosteriorBlock, uses: Sequence[Sequence[Rows]]) -> Tensor:
    """J Λ⁻¹ Jᵀ of one block, `[B, C, C]`, from the rows of each output."""
    spectrum = block.spectrum
    inverse = (spectrum.values + block.prior).reciprocal()  # [P, O, I]
    kind, first = block.site.blocks[block.index], uses[0]
    if len(first) == 1 and first[0].outputs.shape[2] == 1 and not kind.diagonal_inputs and not kind.gradient_inputs:
        a = _inputs(first[0])[:, :, 0]  # [P, B, I], the same for every output
        g = torch.stack([rows.outputs[:, :, 0] for (rows,) in uses], 1)  # [P, C, B, O]
        a = a if spectrum.right is None else a @ spectrum.right
        g = g if spectrum.left is None else g @ spectrum.left.unsqueeze(1)
        weight = a.square() @ inverse.mT  # [P, B, O]
        return torch.einsum("pcbo,pdbo,pbo->bcd", g, g, weight)
    columns = [sum(torch.einsum("pbso,pbsi->bpoi", r.outputs, _inputs(r)) for r in rows) for rows in uses]
    jacobian = turn(spectrum, torch.stack([torch.as_tensor(c) for c in columns], 1))  # [B, C, P, O, I]
    flat = (jacobian * inverse.sqrt()).flatten(2)
    return flat @ flat.mT


def _inputs(rows: Rows) -> Tensor:
    """A `[P, B, S, I]`."""
    if not isinstance(rows.inputs, OneHot):
        return rows.inputs
    indices = rows.inputs.indices
    return (F.one_hot(indices.clamp_min(0), rows.inputs.size) * (indices >= 0).unsqueeze(-1)).to(rows.outputs.dtype)
