"""Curvature of a trained network on a whole data set: Kronecker factors, and rows of the Jacobian of its outputs.

What an optimizer averages over steps is here summed over one pass through the data at fixed weights,

    Σ_n Jᵀ H J  ≈  B ⊗ A,    A = mean of a aᵀ over all rows,    B = Σ g gᵀ over all examples

so B ⊗ A is the Gauss–Newton matrix of the *sum* of all loss terms (Martens & Grosse 2015, arXiv 1503.05671; Ritter et al.
2018, openreview Skdvd2xAZ). A block's Jacobian of output c in an example is Σ_s g_s a_sᵀ, g the gradients that the unit
vector e_c brings when it is pulled back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from heatbath.curvature.capture import Capture, Site, attach_hooks, find_sites
from heatbath.curvature.factors.sums import FactorSums, Form
from heatbath.curvature.fisher import Fisher
from heatbath.layers import Rows, default_rules
from heatbath.operators import Kronecker
from heatbath.work import Work

JacobianRows = dict[Site, list[list[list[Rows]]]]  # by site, block, output, use of the layer


@dataclass(frozen=True, eq=False)
class SummedCurvature:
    """Curvature of a sum over a data set.

    Args:
        factors: of each site, one `Kronecker` with stack `[P]` for each block.
        examples: how many examples were seen.
        work: products that made the factors; passes through the model are not counted.
    """

    factors: dict[Site, tuple[Kronecker, ...]]
    examples: int
    work: Work


def named_sites(model: nn.Module, layers: Sequence[str] | None = None) -> list[Site]:
    """The layers of a model that have curvature, or those of given names.

    Raises:
        ValueError: names that are no such layers, or a model without any.
    """
    sites = find_sites(model, default_rules())
    known = [site.name for site in sites]
    if not sites:
        raise ValueError("this model has no layer with curvature of its own: give it layers of torch.nn that require gradients")
    unknown = [name for name in layers or () if name not in known]
    if unknown or (layers is not None and not layers):
        raise ValueError(
            f"no layer with curvature is named {', '.join(map(repr, unknown)) or '(none given)'}; there are {known}"
        )
    return [site for site in sites if layers is None or site.name in layers]


def sum_factors(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    fisher: Fisher,
    *,
    sites: Sequence[Site],
    generator: torch.Generator | None = None,
) -> SummedCurvature:
    """Kronecker factors of the Gauss–Newton matrix of a sum over batches, in one pass.

    Args:
        model: in evaluation mode; its `.grad` are not touched.
        batches: each (arguments of the model…, targets).
        fisher: exact or sampled.
        sites: from `named_sites`.
        generator: of sampled targets.

    Raises:
        ValueError: a model in training mode, a Fisher matrix that observes no outputs, no batches, or a site that none of
            them reached.
    """
    likelihood = fisher.likelihood
    if likelihood is None or not fisher.observes:
        raise ValueError(f"the curvature at a minimum needs ExactFisher or SampledFisher, got {type(fisher).__name__}")
    _check_mode(model)
    sums = _Sums({site: [_empty(site, k) for k in range(len(site.blocks))] for site in sites})
    examples = 0
    with _watching(model, sites, sums) as capture:
        for *inputs, targets in batches:
            outputs = _run(model, inputs)
            _pull_back(capture, outputs, fisher.vectors(likelihood.observe(outputs, targets), generator))
            examples += len(outputs)
    if not examples:
        raise ValueError("there are no batches: curvature needs the data the model was trained on")
    one = torch.ones(())
    factors: dict[Site, tuple[Kronecker, ...]] = {}
    for site, blocks in sums.of.items():
        collected = [block.collect(None, terms=one) for block in blocks]
        if not all(all(seen) for _, seen in collected):
            raise ValueError(f"no gradient reached the layer {site.name!r}: leave it out of layers")
        factors[site] = tuple(operator for operator, _ in collected)
    return SummedCurvature(factors, examples, sums.work)


def jacobian_rows(model: nn.Module, inputs: Sequence[Tensor], sites: Sequence[Site]) -> tuple[Tensor, JacobianRows]:
    """Outputs `[B, C]` of a batch, and the rows of every output's Jacobian.

    Args:
        model: in evaluation mode.
        inputs: arguments of the model.
        sites: from `named_sites`.

    Returns:
        The outputs, and for each site and block a list over outputs c = 1 … C of its rows: one for each use of the layer.

    Raises:
        ValueError: a model in training mode, or outputs that are not `[B, C]`.
    """
    _check_mode(model)
    record = _Record({site: [[] for _ in site.blocks] for site in sites})
    with _watching(model, sites, record) as capture:
        outputs = _run(model, inputs)
        if outputs.ndim != 2:
            raise ValueError(f"Jacobian rows need outputs [B, C], got shape {tuple(outputs.shape)}")
        for blocks in record.of.values():
            for kept in blocks:
                kept.extend([] for _ in range(outputs.shape[1]))
        columns = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        _pull_back(capture, outputs, (column.expand_as(outputs) for column in columns))
    return outputs.detach(), record.of


class _Sink:
    """What is told of rows."""

    capture: Capture

    def take(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        """The rows of one call of one layer."""
        raise NotImplementedError


@dataclass(eq=False)
class _Sums(_Sink):
    """Sums outer products."""

    of: dict[Site, list[FactorSums]]
    work: Work = field(default_factory=Work)

    def take(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        for block, part in zip(self.of[site], rows, strict=True):
            self.work = self.work + block.add(0, part, pass_number=pass_number, again=self.capture.pull > 0)


@dataclass(eq=False)
class _Record(_Sink):
    """Keeps rows."""

    of: JacobianRows

    def take(self, site: Site, pass_number: int, rows: tuple[Rows, ...]) -> None:
        for kept, part in zip(self.of[site], rows, strict=True):
            kept[self.capture.pull].append(part)


@contextmanager
def _watching(model: nn.Module, sites: Sequence[Site], sink: _Sink) -> Iterator[Capture]:
    """Hooks that tell a sink of pulled-back vectors alone, for as long as the context lasts."""
    capture = sink.capture = Capture(model, sites, listening=False)
    attach_hooks(capture, sink.take)
    try:
        yield capture
    finally:
        capture.detach()


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    with torch.enable_grad():
        outputs: Tensor = model(*inputs)
    return outputs


def _pull_back(capture: Capture, outputs: Tensor, vectors: Iterable[Tensor]) -> None:
    """To one small parameter of each site, which is as far as its rows need."""
    capture.pull_back(outputs, vectors, [min(site.parameters().values(), key=Tensor.numel) for site in capture.sites])


def _empty(site: Site, block: int) -> FactorSums:
    of = site.blocks[block]
    parameter = site.parameters()[of.parameters[0]]
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return FactorSums([of.places], Form(of, dtype, parameter.device))


def _check_mode(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first, so that dropout and batch norm stand still")
