"""Normalization layers: y = γ_f x̂_f + β_f, feature by feature.

Given x̂, the output is linear in (γ_f, β_f), so the gradient of one example is the pair (Σ_s g_s x̂_s, Σ_s g_s). Each of the F
features is a place of its own with two numbers, and the row *is* the per-example gradient, its output a constant 1. The
factor A = E[∇ ∇ᵀ] is then the exact 2 × 2 Fisher block of a feature (1 × 1 where only γ or only β is trained), and features
are taken as independent of one another (unit-wise natural gradient; Osawa et al. 2020, arXiv 2002.06015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from heatbath.layers.affine import Affine, AffineRule, batched, check_gradient, is_plain, trained_name
from heatbath.layers.base import Call, Rows

CHANNEL_KINDS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
TRAILING_KINDS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class NormRule(AffineRule):
    """LayerNorm, RMSNorm, BatchNorm, GroupNorm and InstanceNorm: one block `[F, 1, 2]`.

    Positions are summed into the row of their example (`Rows.summed`). `nn.SyncBatchNorm` is not supported: x̂ would need
    the statistics of other processes.
    """

    def supports(self, module: nn.Module) -> bool:
        return any(is_plain(module, kind) for kind in CHANNEL_KINDS + TRAILING_KINDS)

    def positionwise(self, module: nn.Module) -> bool:
        return isinstance(module, TRAILING_KINDS)

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        weight = getattr(module, "weight", None)
        features = 0 if weight is None else weight.numel()
        return (Affine(trained_name(module, "weight"), trained_name(module, "bias"), (features, 1, 1), gradients=True),)

    def rows(self, module: nn.Module, call: Call, grad: Tensor) -> tuple[Rows, ...]:
        affines = self.trained(module)
        if not affines:
            return ()
        x = call.argument(0, "input").detach()
        check_gradient(module, grad, x.shape)
        training = module.training if call.training is None else call.training
        parts = {affines[0].weight: grad * _normalized(module, x, training), affines[0].bias: grad}
        sums = [_example_sums(module, part) for name, part in parts.items() if name]
        gradients = torch.stack(sums, dim=-1).transpose(0, 1).unsqueeze(2)
        ones = gradients.new_ones(()).expand(*gradients.shape[:-1], 1)
        return (Rows(gradients, ones, summed=x.numel() // max(sums[0].numel(), 1)),)


def _normalized(module: nn.Module, x: Tensor, training: bool) -> Tensor:
    """x̂, the input as the layer normalizes it before γ and β."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    assert isinstance(module, _BatchNorm | _InstanceNorm)
    of_batch = training or module.running_mean is None
    mean, variance = (None, None) if of_batch else (module.running_mean, module.running_var)
    if isinstance(module, _BatchNorm):
        return F.batch_norm(x, mean, variance, training=of_batch, eps=module.eps)
    examples = batched(x, module._get_no_batch_dim() + 1)
    return F.instance_norm(examples, mean, variance, use_input_stats=of_batch, eps=module.eps).reshape(x.shape)


def _example_sums(module: nn.Module, tensor: Tensor) -> Tensor:
    """Sum over the positions of each example: to `[B, F]`."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        features = math.prod(module.normalized_shape)
        batch = tensor.shape[0] if tensor.ndim > len(module.normalized_shape) else 1
        return tensor.reshape(batch, tensor.numel() // max(batch * features, 1), features).sum(1)
    if isinstance(module, _InstanceNorm):
        tensor = batched(tensor, module._get_no_batch_dim() + 1)
    return tensor.reshape(*tensor.shape[:2], math.prod(tensor.shape[2:])).sum(2)
