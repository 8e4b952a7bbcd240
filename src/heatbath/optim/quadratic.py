"""Learning rate and momentum from the exact quadratic model (Martens & Grosse 2015, arXiv 1503.05671, §6.4 and §7).

With natural gradient v, last step's direction m, gradient g and the Gauss–Newton matrix G = (1/D) Σ Jᵀ H J of the present
batch, the step δ = −(αv + μm) minimizes

    M(δ) = gᵀδ + ½ δᵀ(G + λI)δ,    that is    Q (α, μ)ᵀ = (gᵀv, gᵀm)ᵀ,    Q_ij = d_iᵀ(G + λI)d_j,  d = (v, m).

Only J v and J m are needed. They come from the graph of the outputs, without running the model again: w ↦ Jᵀw is linear, so
differentiating it gives J ("double backward"). That costs a second backward pass in `observe`, and two more in `step`.

Deviation from the paper: one factored damping is used, where the paper tries several γ and keeps the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from heatbath.curvature import Likelihood, Observation


@dataclass(frozen=True)
class QuadraticModel:
    """Choose learning rate and momentum at every step; it takes the place of momentum and trust.

    `lr` then multiplies the step and is best left at 1; `opt.observe(outputs)` is needed at every step. It suits large batches,
    deep autoencoders and physics-informed networks; together with `LevenbergMarquardt` it is the paper's own method.

    Args:
        likelihood: what the loss is the negative logarithm of.
    """

    likelihood: Likelihood


@dataclass(frozen=True, eq=False)
class Linearization:
    """w ↦ Jᵀw at the parameters of one forward pass.

    Args:
        observation: the outputs.
        seed: w, shaped like the outputs.
        pulled: Jᵀw with its graph, by parameter id.
    """

    observation: Observation
    seed: Tensor
    pulled: dict[int, Tensor]

    def push(self, parameters: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
        """J d as rows `[B, R, C]`, for a direction d given parameter by parameter."""
        pairs = [(self.pulled[id(p)], d) for p, d in zip(parameters, directions, strict=True) if id(p) in self.pulled]
        if not pairs:
            return torch.zeros_like(self.observation.rows)
        values = [d.to(g.dtype) for g, d in pairs]
        (pushed,) = torch.autograd.grad([g for g, _ in pairs], self.seed, values, retain_graph=True)
        return self.observation.as_rows(pushed)


def linearize(outputs: Tensor, observation: Observation, parameters: Sequence[Tensor]) -> Linearization:
    """Prepare J for some parameters from the graph of the outputs, which stays usable.

    Args:
        outputs: with their graph.
        observation: of these outputs.
        parameters: those that J is wanted for.
    """
    wanted = [p for p in parameters if p.requires_grad]
    seed = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, wanted, seed, create_graph=True, allow_unused=True)
    found = {id(p): g for p, g in zip(wanted, pulled, strict=True) if g is not None and g.requires_grad}
    return Linearization(observation, seed, found)


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the model is least.

    Args:
        weights: α and μ, `[2]`.
        depth: −2 M there, 0-d.
    """

    weights: Tensor
    depth: Tensor


def minimize(
    linear: Sequence[Linearization],
    axes: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    slopes: Tensor,
    ridge: Tensor,
    shared: bool,
) -> Minimum:
    """The minimum of the model over the plane of two directions.

    Args:
        linear: one for each forward pass of the batch.
        axes: parameters and directions of v and m.
        slopes: gᵀv and gᵀm, `[2]`.
        ridge: λ times the products of v and m, `[2, 2]`.
        shared: add up over the processes of a data-parallel run.

    Raises:
        ValueError: nothing was observed.
    """
    if not linear:
        raise ValueError("the quadratic model needs the outputs at every step: call opt.observe(outputs) before the loss")
    likelihood_sum = slopes.new_zeros(2, 2)
    terms = slopes.new_zeros(())
    with torch.enable_grad():
        pushed = [[each.push(*axis).detach() for axis in axes] for each in linear]
    for each, (first, second) in zip(linear, pushed, strict=True):
        seen = each.observation
        bent = [seen.hessian(u) for u in (first, second)]
        likelihood_sum = likelihood_sum + torch.stack([(u * b).sum() for u in (first, second) for b in bent]).reshape(2, 2).to(
            slopes
        )
        terms = terms + seen.terms.to(slopes)
    if shared:
        packed = torch.cat((likelihood_sum.flatten(), terms.reshape(1)))
        dist.all_reduce(packed)
        likelihood_sum, terms = packed[:4].reshape(2, 2), packed[4]
    matrix = likelihood_sum / terms + ridge
    weights = _solve(matrix, slopes)
    return Minimum(weights, slopes @ weights)


def _solve(matrix: Tensor, rhs: Tensor) -> Tensor:
    """Solve a 2 × 2 PSD system, along the first axis alone where the second adds nothing to it."""
    (a, b), (_, d) = matrix
    determinant = a * d - b * b
    alone = torch.stack((rhs[0] / a, torch.zeros_like(a)))
    both = torch.stack((d * rhs[0] - b * rhs[1], a * rhs[1] - b * rhs[0])) / determinant
    singular = determinant <= 10 * torch.finfo(matrix.dtype).eps * a * d
    return torch.where(singular, alone, both)
