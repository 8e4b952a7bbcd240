"""Multi-head attention: four linear layers around a function without parameters.

    q = W_q x_q + b_q,   k = W_k x_k + b_k,   v = W_v x_v + b_v,   c = attend(q, k, v),   y = W_o c + b_o

`nn.MultiheadAttention` computes all of it in one call, so hooks see x and y only. The call is run again: q, k and v are
projected here, PyTorch's own attention turns them into c (its projections replaced by identities, so masks, causality and
dropout mean exactly what they mean there), and the gradients at q, k and v are vector–Jacobian products from ∂L/∂c = W_oᵀ ∂L/∂y
and, where the loss uses them, from the gradients at the attention weights.

Dropout on the attention weights is repeated if the call's random state was recorded, else left out of the second run:
then the rows are those of the network without this dropout. `bias_k` and `bias_v` are left to the fallback.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.layers.affine import Affine, AffineRule, check_gradient, is_plain, trained_name
from heatbath.layers.base import Call, Rows
from heatbath.layers.replay import as_gradients, pull_back, replaying

NAMES = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v")
SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)


@dataclass(frozen=True)
class AttentionRule(AffineRule):
    """`nn.MultiheadAttention`, batch first or not, batched or not, self- or cross-attention.

    The three input projections are one block `[3, E, E + 1]`; with `kdim` or `vdim` of their own they are three blocks and
    their biases a fourth. The output projection, whose parameters belong to a child module, is the last.
    """

    def supports(self, module: nn.Module) -> bool:
        plain = is_plain(module, nn.MultiheadAttention, NAMES)
        return plain and is_plain(module.get_submodule("out_proj"), nn.Linear)

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        assert isinstance(module, nn.MultiheadAttention)
        size = module.embed_dim
        bias = trained_name(module, "in_proj_bias")
        outer = (trained_name(module, "out_proj.weight"), trained_name(module, "out_proj.bias"))
        if module._qkv_same_embed_dim:
            inner = [Affine(trained_name(module, "in_proj_weight"), bias, (3, size, size))]
        else:
            widths = {"q_proj_weight": size, "k_proj_weight": module.kdim, "v_proj_weight": module.vdim}
            inner = [Affine(trained_name(module, name), None, (1, size, width)) for name, width in widths.items()]
            inner.append(Affine(None, bias, (3, size, 0)))
        return (*inner, Affine(*outer, (1, size, size)))

    def outputs(self, module: nn.Module, output: Any) -> tuple[Tensor, ...]:  # Any: as in the base class
        return tuple(tensor for tensor in output if tensor is not None and tensor.requires_grad)

    def reuses(self, module: nn.Module, index: int) -> bool:
        return index > 0  # weights of each head are a view of those that weigh the values

    def draws(self, module: nn.Module) -> bool:
        assert isinstance(module, nn.MultiheadAttention)
        return module.dropout > 0

    def rows(self, module: nn.Module, call: Call, grad: Any) -> tuple[Rows, ...]:  # Any: as in the base class
        assert isinstance(module, nn.MultiheadAttention)
        bound = SIGNATURE.bind(module, *call.args, **call.kwargs)
        bound.apply_defaults()
        given = bound.arguments
        flip = module.batch_first and given["query"].ndim == 3
        inputs = [_sequence_first(given[name].detach(), flip) for name in ("query", "key", "value")]
        training = module.training if call.training is None else call.training
        dropping = training and call.random is not None
        output_grad, *weight_grad = as_gradients(grad)
        if output_grad is not None:
            check_gradient(module, output_grad, given["query"].shape)
        with replaying(call.random, inputs[0].device):
            projected = [x.requires_grad_() for x in _project(module, inputs)]
            context, weights = _attend(module, projected, given, training=dropping)
            outer = torch.zeros_like(context) if output_grad is None else _sequence_first(output_grad, flip).to(context.dtype)
            back = outer @ module.out_proj.weight.detach()
            inner = pull_back([context, weights], [back, *weight_grad], projected)
        return self._pair(module, inputs, [context.detach()], inner, [outer.detach()])

    def _pair(
        self, module: nn.Module, inputs: list[Tensor], context: list[Tensor], inner: Sequence[Tensor], outer: list[Tensor]
    ) -> tuple[Rows, ...]:
        """Rows of each block with something to train."""
        *first, last = self.maps(module)
        if len(first) == 1:
            paired = [(first[0], inputs, inner)]
        else:
            paired = [(affine, [x], [g]) for affine, x, g in zip(first[:3], inputs, inner, strict=True)]
            paired.append((first[3], [x[..., :0] for x in inputs], inner))
        paired.append((last, context, outer))
        return tuple(_rows(affine, a, g) for affine, a, g in paired if affine.parameters)


def _sequence_first(tensor: Tensor, flip: bool) -> Tensor:
    """`[T, B, E]` (or `[T, E]`, unbatched), whatever `batch_first` says."""
    return tensor.transpose(0, 1) if flip else tensor


def _project(module: nn.MultiheadAttention, inputs: Sequence[Tensor]) -> list[Tensor]:
    """q, k and v."""
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.detach().chunk(3)
    else:
        weights = tuple(w.detach() for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight))
    bias = module._parameters["in_proj_bias"]
    biases = (None,) * 3 if bias is None else bias.detach().chunk(3)
    return [F.linear(x.to(w.dtype), w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]


def _attend(
    module: nn.MultiheadAttention, projected: Sequence[Tensor], given: Mapping[str, Any], *, training: bool
) -> tuple[Tensor, Tensor | None]:
    """From q, k and v to c and the attention weights, by PyTorch's own function with identities for projections."""
    q, k, v = projected
    identity = torch.eye(module.embed_dim, dtype=q.dtype, device=q.device)
    bias_k, bias_v = (None if b is None else b.detach() for b in (module.bias_k, module.bias_v))
    return F.multi_head_attention_forward(
        q,
        k,
        v,
        embed_dim_to_check=module.embed_dim,
        num_heads=module.num_heads,
        in_proj_weight=None,
        in_proj_bias=None,
        bias_k=bias_k,
        bias_v=bias_v,
        add_zero_attn=module.add_zero_attn,
        dropout_p=module.dropout,
        out_proj_weight=identity,
        out_proj_bias=None,
        training=training,
        key_padding_mask=given["key_padding_mask"],
        need_weights=given["need_weights"],
        attn_mask=given["attn_mask"],
        use_separate_proj_weight=True,
        q_proj_weight=identity,
        k_proj_weight=identity,
        v_proj_weight=identity,
        average_attn_weights=given["average_attn_weights"],
        is_causal=given["is_causal"],
    )


def _rows(affine: Affine, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Rows:
    """Rows from `[T, B, ·]` tensors, one per place; shorter sequences are filled up with zeros."""
    longest = max(x.shape[0] for x in inputs)
    a = [_place(affine.homogeneous(x), longest) for x in inputs]
    g = [_place(gradient, longest) for gradient in gradients]
    empty = tuple((longest - x.shape[0]) * row.shape[0] for x, row in zip(inputs, a, strict=True))
    return Rows(torch.stack(a), torch.stack(g), empty=empty if any(empty) else ())


def _place(tensor: Tensor, length: int) -> Tensor:
    """`[T, B, ·]` or `[T, ·]` as `[B, length, ·]`."""
    tensor = tensor.transpose(0, 1) if tensor.ndim == 3 else tensor.unsqueeze(0)
    return F.pad(tensor, (0, 0, 0, length - tensor.shape[1]))
