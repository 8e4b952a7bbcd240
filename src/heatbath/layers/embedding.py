"""Embeddings: linear layers whose inputs are one-hot vectors.

y = W e_i with W the transposed table `[D, V]`. The input factor A = E[e_i e_iᵀ] = diag(counts)/N is diagonal, so it is held
as V numbers and never as V × V, and rows are held as indices. A bag sums (or averages, or weights) the embeddings of its
members: y = W Σ_s w_s e_{i_s}. Its members are kept as shared positions with gradients w_s g, which gives the exact gradient
and a diagonal A; which words occur together in a bag is not seen by A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heatbath.layers.affine import Affine, AffineRule, check_gradient, is_plain, trained_name
from heatbath.layers.base import Call, OneHot, Rows
from heatbath.layers.linear import positions


@dataclass(frozen=True)
class EmbeddingRule(AffineRule):
    """`nn.Embedding`: one block `[1, D, V]` with a diagonal input factor.

    Rows of `padding_idx` are zeros on both sides: a gradient that reaches no weight does not belong in a factor.
    A table with `scale_grad_by_freq` is not supported: its gradient is not a sum over examples.
    """

    def supports(self, module: nn.Module) -> bool:
        return is_plain(module, nn.Embedding, ("weight",)) and not module.scale_grad_by_freq

    def positionwise(self, module: nn.Module) -> bool:
        return True

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        return (_table(module),)

    def rows(self, module: nn.Module, call: Call, grad: Tensor) -> tuple[Rows, ...]:
        assert isinstance(module, nn.Embedding)
        if not self.trained(module):
            return ()
        indices = call.argument(0, "input")
        check_gradient(module, grad, (*indices.shape, module.embedding_dim))
        g = positions(grad)
        indices = _without_padding(indices.reshape(g.shape[:3]), module.padding_idx)
        if module.padding_idx is not None:
            g = g * (indices >= 0)[..., None]
        return (Rows(OneHot(indices, module.num_embeddings), g),)


@dataclass(frozen=True)
class EmbeddingBagRule(AffineRule):
    """`nn.EmbeddingBag` in modes "sum" and "mean": a bag is an example, its members are shared positions.

    Mode "max" is not supported: each of its outputs picks a member of its own. Bags given by offsets are padded to the
    longest, whose length is read back from the device once per call.
    """

    def supports(self, module: nn.Module) -> bool:
        plain = is_plain(module, nn.EmbeddingBag, ("weight",))
        return plain and module.mode in ("sum", "mean") and not module.scale_grad_by_freq

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        return (_table(module),)

    def rows(self, module: nn.Module, call: Call, grad: Tensor) -> tuple[Rows, ...]:
        assert isinstance(module, nn.EmbeddingBag)
        if not self.trained(module):
            return ()
        members, weights = call.argument(0, "input"), call.argument(2, "per_sample_weights")
        empty = 0
        if members.ndim == 1:
            count, offsets = len(members), call.argument(1, "offsets")
            where = _bag_places(members, offsets, include_last_offset=module.include_last_offset)
            members = _spread(members, where, fill=-1)
            weights = None if weights is None else _spread(weights.detach(), where, fill=0)
            empty = members.numel() - count
        check_gradient(module, grad, (members.shape[0], module.embedding_dim))
        members = _without_padding(members, module.padding_idx)
        g = grad[:, None].expand(-1, members.shape[1], -1)
        if empty or module.padding_idx is not None:
            g = g * (members >= 0)[..., None]
        if weights is not None:
            g = g * weights.detach()[..., None]
        if module.mode == "mean":
            g = g / (members >= 0).sum(1).clamp_min(1)[:, None, None]
        return (Rows(OneHot(members[None], module.num_embeddings), g[None], empty=(empty,) if empty else ()),)


def _table(module: nn.Module) -> Affine:
    """The map of an embedding table stored `[V, D]`, input first."""
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    shape = (1, module.embedding_dim, module.num_embeddings)
    return Affine(trained_name(module, "weight"), None, shape, kernel=1, one_hot=True)


def _without_padding(indices: Tensor, padding_idx: int | None) -> Tensor:
    """Indices with those of the padding, which gets no gradient, replaced by −1."""
    indices = indices.long()
    return indices if padding_idx is None else indices.masked_fill(indices == padding_idx, -1)


def _bag_places(members: Tensor, offsets: Tensor, *, include_last_offset: bool) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """For each member its bag and its place therein, and the shape (bags, longest bag)."""
    starts = offsets[:-1] if include_last_offset else offsets
    order = torch.arange(len(members), device=members.device)
    bag = torch.searchsorted(starts, order.to(starts.dtype), right=True) - 1
    place = order - starts[bag]
    longest = int(place.max()) + 1 if len(members) else 0
    return bag, place, (len(starts), longest)


def _spread(values: Tensor, where: tuple[Tensor, Tensor, tuple[int, int]], *, fill: int) -> Tensor:
    """Members in a row as a table `[bags, longest bag]`."""
    bag, place, shape = where
    table = values.new_full(shape, fill)
    table[bag, place] = values
    return table
