"""Which Fisher matrix the factors are made of.

With J the Jacobian of the outputs, H the Hessian of the loss terms at the outputs and D the number of terms, the Gauss–Newton
matrix is G = (1/D) Σ Jᵀ H J, equal to the Fisher matrix for the likelihoods of `heatbath.curvature.likelihoods` (Martens
2020, arXiv 1412.1193). A layer's rows g are obtained by pulling vectors at the outputs back through the network:

    empirical   the gradient of the loss itself, from the ordinary backward pass (free, but no approximation of G:
                Kunstner, Balles & Hennig 2019, arXiv 1905.12558)
    sampled     gradients at targets drawn from the model's own distribution; G in expectation
    exact       the columns of a root of H; G itself, one pass for each
    input-only  no gradients at all: B = I (FOOF; Benzing 2022, arXiv 2201.12250)

A position's term does not mix with another's in G. So where an example has R positions, the exact form pulls back one position
at a time, R · C passes; in a network that treats positions alike and apart they may go together, C passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.curvature.likelihoods import Likelihood, Observation


class Fisher:
    """A choice of Fisher matrix; this one, the base of all, takes the rows of the ordinary backward pass.

    Attributes:
        likelihood: what the loss is the negative logarithm of, as far as it is known: it counts the terms of the loss.
    """

    likelihood: Likelihood | None = None

    @property
    def observes(self) -> bool:
        """Whether rows come from vectors at observed outputs, rather than from the ordinary backward pass."""
        return False

    @property
    def inputs_only(self) -> bool:
        """Whether output gradients are left out: B = I."""
        return False

    def vectors(self, observation: Observation, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Vectors v at the outputs, shaped like them, with Σ v vᵀ = the Hessian of all terms (or its mean)."""
        return iter(())


@dataclass(frozen=True)
class EmpiricalFisher(Fisher):
    """Gradients of the loss as the ordinary backward pass brings them; costs nothing more and needs no line of code.

    Rows are then scaled by how many terms the loss has, which shapes cannot always tell. A likelihood
    can: it says which dimension of the outputs holds classes, and with
    `opt.observe(outputs, targets)` it counts the terms that the loss ignores (`ignore_index`, a
    mask). Without it, a loss that leaves out a share of its positions has a curvature that is too
    large by one over the share that is left, and steps that are too short.

    Args:
        likelihood: counts the terms of the loss; None: shapes of outputs and inputs do.
    """

    likelihood: Likelihood | None = None


@dataclass(frozen=True)
class InputOnly(Fisher):
    """B = I: gradients are preconditioned by the layer's inputs alone (FOOF). Half the memory and half the solves.

    Normalization layers keep their exact block, which has no input side.

    Args:
        likelihood: as for `EmpiricalFisher`.
    """

    likelihood: Likelihood | None = None

    @property
    def inputs_only(self) -> bool:
        return True


@dataclass(frozen=True)
class SampledFisher(Fisher):
    """Gradients at sampled targets: the Gauss–Newton matrix in expectation, for one extra backward pass a sample.

    It needs `opt.observe(outputs)` between forward and loss. Targets are drawn with the optimizer's generator; without one,
    with PyTorch's global one, which dropout shares.

    Args:
        likelihood: what the loss is the negative logarithm of.
        samples: draws for each capture, at least 1; the variance falls as 1/samples.

    Raises:
        ValueError: samples below 1.
    """

    likelihood: Likelihood
    samples: int = 1

    @property
    def observes(self) -> bool:
        return True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def vectors(self, observation: Observation, generator: torch.Generator | None) -> Iterator[Tensor]:
        root = (observation.weights / self.samples).sqrt()
        for _ in range(self.samples):
            yield observation.as_outputs(root * self.likelihood.sample(observation.rows, generator))


@dataclass(frozen=True)
class ExactFisher(Fisher):
    """The Gauss–Newton matrix itself (type 2), for one backward pass per feature and position.

    It needs `opt.observe(outputs)` between forward and loss. Use it where outputs are few; `SampledFisher` for vocabularies.

    Args:
        likelihood: what the loss is the negative logarithm of.
        together: pull all positions of an example back at once: R times fewer passes, exact only where the network does not
            mix positions (no attention, no convolution, no recurrence).
    """

    likelihood: Likelihood
    together: bool = False

    @property
    def observes(self) -> bool:
        return True

    def vectors(self, observation: Observation, generator: torch.Generator | None) -> Iterator[Tensor]:
        root = observation.weights.sqrt()
        positions = observation.rows.shape[1]
        for column in self.likelihood.columns(observation.rows):
            column = root * column
            if self.together or positions == 1:
                yield observation.as_outputs(column)
                continue
            for r in range(positions):
                one = torch.zeros_like(column)
                one[:, r] = column[:, r]
                yield observation.as_outputs(one)
