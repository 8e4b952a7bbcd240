"""A posterior for the weights of a trained network, from its Kronecker factors.

Around weights W* trained to a minimum, the posterior is taken as Gaussian (MacKay 1992, doi 10.1162/neco.1992.4.3.448), block
by block of a network's layers (Ritter et al. 2018, openreview Skdvd2xAZ):

    W ~ N(W*, Λ⁻¹),    Λ = B ⊗ A + δI = U (β αᵀ + δ) Uᵀ,    U = U_B ⊗ U_A

B ⊗ A is the Gauss–Newton matrix of the sum of all N training terms (N times that of their mean), δ the precision of the prior
N(0, I/δ); it is added exactly, in the eigenbasis. With λ the P eigenvalues of B ⊗ A over all blocks,

    log p(D) ≈ log p(D | W*) − ½ [ δ‖W*‖² − P log δ + Σ log(λ + δ) ]

has one maximum over δ: where δ‖W*‖² = γ, γ = Σ λ/(λ + δ) the number of parameters that data determine. Since d log γ/d log δ
lies between −1 and 0, the iteration δ ← √(δ γ(δ))/‖W*‖ halves the distance of log δ to it, at least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from heatbath.curvature import Fisher, Site, named_sites, sum_factors
from heatbath.operators import Kronecker, Shifted, map_tensors
from heatbath.solvers import Eigen
from heatbath.solvers.eigen import Spectrum
from heatbath.work import Work, elementwise, matmul

HALVINGS = 64  # of log δ's distance to the best: from e^±1000 to rounding


@dataclass(frozen=True, eq=False)
class PosteriorBlock:
    """The posterior of one block of a layer.

    Args:
        site: the layer.
        index: which of its blocks.
        mean: W*, `[P, O, I]`.
        curvature: B ⊗ A of the sum over the training set, stack `[P]`.
        spectrum: its eigenbases U_B, U_A and eigenvalues λ `[P, O, I]`.
        prior: δ.
    """

    site: Site
    index: int
    mean: Tensor
    curvature: Kronecker
    spectrum: Spectrum
    prior: float

    def precision(self) -> Shifted:
        """Λ, stack `[P]`."""
        return self.curvature.shift(self.prior)


@dataclass(frozen=True, eq=False)
class Laplace:
    """A Gaussian posterior of the treated layers' weights; all others stay where they are.

    Args:
        model: the network, at W*; it is not changed.
        blocks: the posterior of each block.
        examples: N.
        work: what fitting asked of hardware, passes through the model not counted.
    """

    model: nn.Module
    blocks: tuple[PosteriorBlock, ...]
    examples: int
    work: Work

    @property
    def layers(self) -> list[str]:
        """Names of the treated layers, in order."""
        return list(dict.fromkeys(block.site.name for block in self.blocks))

    @property
    def parameters(self) -> int:
        """P, how many parameters are treated."""
        return sum(block.mean.numel() for block in self.blocks)

    @property
    def priors(self) -> dict[str, float]:
        """δ of each layer."""
        return {block.site.name: block.prior for block in self.blocks}

    def with_prior(self, prior: float | Mapping[str, float]) -> Laplace:
        """The same with another δ, for all layers or by layer's name.

        Raises:
            ValueError: not positive, or names that are not those of the layers.
        """
        chosen = dict(prior) if isinstance(prior, Mapping) else dict.fromkeys(self.layers, prior)
        if sorted(chosen) != sorted(self.layers):
            raise ValueError(f"a prior by layer needs exactly the layers {self.layers}, got {sorted(chosen)}")
        for value in chosen.values():
            _check_prior(value)
        return replace(self, blocks=tuple(replace(block, prior=chosen[block.site.name]) for block in self.blocks))

    def effective_parameters(self) -> float:
        """γ = Σ λ/(λ + δ), how many parameters the data determine."""
        return sum(float((b.spectrum.values / (b.spectrum.values + b.prior)).sum()) for b in self.blocks)

    def log_evidence(self, log_likelihood: float) -> float:
        """Log p(D), in nats.

        Args:
            log_likelihood: log p(D | W*) of the training set, with all its constants if models are to be compared.
        """
        value = log_likelihood
        for b in self.blocks:
            values, delta = b.spectrum.values.double(), b.prior
            value -= 0.5 * float(delta * b.mean.double().square().sum() + torch.log1p(values / delta).sum())
        return value

    def tuned(self, *, by_layer: bool = False) -> Laplace:
        """The same with the δ of greatest evidence.

        Args:
            by_layer: one δ for each layer instead of one for all.

        Raises:
            ValueError: weights or curvature that are all zero: the evidence has no maximum.
        """
        groups = [[b for b in self.blocks if b.site.name == name] for name in self.layers] if by_layer else [list(self.blocks)]
        found: dict[str, float] = {}
        for group in groups:
            delta = _most_evident(group)
            found.update((block.site.name, delta) for block in group)
        return self.with_prior(found)


def fit_laplace(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    fisher: Fisher,
    *,
    prior: float = 1.0,
    layers: Sequence[str] | None = None,
    examples: int | None = None,
    generator: torch.Generator | None = None,
) -> Laplace:
    """Fit the posterior of a trained model, in one pass through its training set.

    Args:
        model: trained, in evaluation mode.
        batches: the training set, each (arguments of the model…, targets).
        fisher: `ExactFisher(likelihood)` or, for many outputs, `SampledFisher(likelihood)`. The likelihood is that of one
            target: `Gaussian(1/σ²)` for noise of standard deviation σ.
        prior: δ, precision of each weight before data.
        layers: names of the layers to treat; None: all that have curvature. The last layer alone is cheap and often enough.
        examples: N, where the batches are only a part of the training set; None: they are all of it.
        generator: of sampled targets.

    Raises:
        ValueError: a prior that is not positive, unknown layers, a model in training mode or with weights that are no
            numbers, no batches, or an N below the examples seen.
    """
    _check_prior(prior)
    sites = named_sites(model, layers)
    broken = [site.name for site in sites if not all(bool(torch.isfinite(p).all()) for p in site.parameters().values())]
    if broken:
        raise ValueError(f"the weights of {', '.join(broken)} hold NaN or inf: the model is not trained")
    summed = sum_factors(model, batches, fisher, sites=sites, generator=generator)
    if examples is not None and examples < summed.examples:
        raise ValueError(f"the batches hold {summed.examples} examples, more than the {examples} of the whole training set")
    weight = 1.0 if examples is None else examples / summed.examples
    blocks, work = [], summed.work
    for site, factors in summed.factors.items():
        means = site.rule.pack(site.module, {name: p.detach() for name, p in site.parameters().items()})
        for index, (mean, factor) in enumerate(zip(means, factors, strict=True)):
            scaled = _scaled(factor, weight)
            spectrum, used = Eigen().prepare(scaled)
            blocks.append(PosteriorBlock(site, index, mean.to(spectrum.values), scaled, spectrum, prior))
            work = work + used
    return Laplace(model, tuple(blocks), summed.examples if examples is None else examples, work)


@dataclass(frozen=True, eq=False)
class WeightDraws:
    """Samples of weights.

    Args:
        parameters: by the model's own names, each `[S, *shape]`.
        work: what drawing asked of hardware.
        notes: clip counts of a machine, by name; empty for digital draws.
    """

    parameters: dict[str, Tensor]
    work: Work
    notes: dict[str, int]


def sample_weights(posterior: Laplace, samples: int, *, generator: torch.Generator | None = None) -> WeightDraws:
    """Draw weights W* + U_B [ξ / √(λ + δ)] U_Aᵀ digitally.

    Args:
        posterior: from `fit_laplace`.
        samples: S.
        generator: source of randomness, on the model's device.

    Raises:
        ValueError: no samples.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    drawn, work = [], Work()
    for block in posterior.blocks:
        spectrum, (places, out, inputs) = block.spectrum, block.mean.shape
        noise = torch.empty(samples, *block.mean.shape, dtype=block.mean.dtype, device=block.mean.device)
        noise.normal_(generator=generator)
        drawn.append(block.mean + turn_back(spectrum, noise * (spectrum.values + block.prior).rsqrt()))
        work = work + Work.of(elementwise(noise.numel(), 2))
        work = (
            work + Work.of(matmul(out, out, inputs), samples * places) + Work.of(matmul(out, inputs, inputs), samples * places)
        )
    return WeightDraws(unpack_draws(posterior, drawn), work, {})


def turn_back(spectrum: Spectrum, x: Tensor) -> Tensor:
    """U_B x U_Aᵀ, `[…, P, O, I]`: from the eigenbasis."""
    x = x if spectrum.left is None else spectrum.left @ x
    return x if spectrum.right is None else x @ spectrum.right.mT


def turn(spectrum: Spectrum, x: Tensor) -> Tensor:
    """U_Bᵀ x U_A, `[…, P, O, I]`: into the eigenbasis."""
    x = x if spectrum.left is None else spectrum.left.mT @ x
    return x if spectrum.right is None else x @ spectrum.right


def unpack_draws(posterior: Laplace, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
    """Draws of every block `[S, P, O, I]` as parameters `[S, *shape]` by the model's own names."""
    names = {id(parameter): name for name, parameter in posterior.model.named_parameters()}
    found: dict[str, Tensor] = {}
    for site in dict.fromkeys(block.site for block in posterior.blocks):
        packed = [x for block, x in zip(posterior.blocks, drawn, strict=True) if block.site is site]
        tensors = torch.vmap(lambda *blocks, of=site: of.rule.unpack(of.module, blocks))(*packed)
        for key, parameter in site.parameters().items():
            found[names[id(parameter)]] = tensors[key].to(parameter.dtype)
    return found


def _scaled(factor: Kronecker, weight: float) -> Kronecker:
    """The product times a number."""
    return factor if weight == 1.0 else Kronecker(map_tensors(lambda b: weight * b, factor.left), factor.right)


def _most_evident(blocks: Sequence[PosteriorBlock]) -> float:
    """δ where δ‖W*‖² = γ."""
    values = torch.cat([b.spectrum.values.double().flatten() for b in blocks])
    size = sum(float(b.mean.double().square().sum()) for b in blocks)
    if not size > 0 or not bool((values > 0).any()):
        raise ValueError("weights or curvature are all zero, so no prior has the greatest evidence: train the model first")
    delta = 1.0
    for _ in range(HALVINGS):
        delta = (delta * float((values / (values + delta)).sum()) / size) ** 0.5
    return delta


def _check_prior(prior: float) -> None:
    if not 0 < prior < float("inf"):
        raise ValueError(f"prior is a precision δ and must be positive and finite, got {prior}")
