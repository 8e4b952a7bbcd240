"""Products with a layer's weight that come from differentiating it in its input.

Where a loss contains input derivatives of a network (physics-informed losses, gradient penalties), a layer z = W a + b takes
part several times: forward, z = W a; in a derivative, v_a = Wᵀ v_z; in a derivative of that, ż = W ȧ; and so on, in turn. With
bars for the gradients of the loss, each is a use of W of its own, and its rows belong to the same block:

    use            input     gradient
    z = W a + b    [a; 1]    z̄
    ż = W ȧ        [ȧ; 0]    gradient at ż
    v_a = Wᵀ v_z   [v̄_a; 0]  v_z

Together they give the whole gradient of an example, Σ g aᵀ. Rows of the first two kinds are those of K-FAC for such losses
(Dangel, Müller & Zeinhofer 2024, arXiv 2405.15603), which there come from forward-mode derivatives. The third comes of
derivatives by `torch.autograd.grad`. It is right up to a factor s on one side and 1/s on the other, and v̄_a carries the scale
of the loss. We choose s, row by row, so that the input is as long as [a; 1] of the same row: then that scale stays with the
gradients, and a batch cut in parts or doubled gives the same factors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heatbath.layers.affine import AffineRule
from heatbath.layers.base import Call, LayerRule, Rows


def product_rows(
    rule: LayerRule, module: nn.Module, inputs: Tensor, grad: Tensor, *, like: Call | None = None
) -> tuple[Rows, ...]:
    """Rows of a product with the weight alone.

    Args:
        rule: one whose `is_bilinear` holds.
        module: the layer.
        inputs: shaped like the layer's input.
        grad: shaped like its output.
        like: the layer's own call, to whose rows those of a transposed product are stretched; None: they are left alone.
    """
    assert isinstance(rule, AffineRule)  # what is bilinear is affine
    rows = rule.rows(module, Call((inputs,)), grad)
    found = []
    for index, (affine, row) in enumerate(zip(rule.trained(module), rows, strict=True)):
        assert isinstance(row.inputs, Tensor)
        a, g = row.inputs, row.outputs
        if affine.bias:
            a = torch.cat((a[..., :-1], a.new_zeros(()).expand(*a.shape[:-1], 1)), dim=-1)
        if like is not None:
            forward = rule.rows(module, like, grad)[index].inputs
            assert isinstance(forward, Tensor)
            a, g = _stretched(a, g, forward if affine.bias else torch.cat((forward, torch.ones_like(forward[..., :1])), -1))
        found.append(Rows(a, g, summed=row.summed, empty=row.empty))
    return tuple(found)


def trains_weight(rule: LayerRule, module: nn.Module) -> bool:
    """Whether a bilinear layer trains more than a bias, which has no part in derivatives."""
    assert isinstance(rule, AffineRule)
    return any(affine.weight for affine in rule.trained(module))


def _stretched(a: Tensor, g: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The same outer products g aᵀ with each a as long as its row of `like`; all `[P, B, S, ·]`."""
    length = like.norm(dim=-1, keepdim=True)
    own = a.norm(dim=-1, keepdim=True)
    return a * (length / own.clamp_min(torch.finfo(a.dtype).tiny)), g * (own / length)
