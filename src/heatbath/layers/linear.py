"""Linear layers: y = W x + b at every position of the input.

An input `[B, *positions, I]` is B examples with S = ∏ positions uses of the same weight; a 2-D input has S = 1 and a
1-D input is one example. The per-example gradient is Σ_s g_s [x_s; 1]ᵀ (Martens & Grosse 2015, arXiv 1503.05671).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from heatbath.layers.affine import Affine, AffineRule, check_gradient, is_plain, trained_name
from heatbath.layers.base import Call, Rows


@dataclass(frozen=True)
class LinearRule(AffineRule):
    """`nn.Linear` with any leading dimensions: one block `[1, O, I]`.

    The output projection of `nn.MultiheadAttention` is left alone: attention reads its weight without ever calling it.
    """

    def supports(self, module: nn.Module) -> bool:
        return is_plain(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)

    def positionwise(self, module: nn.Module) -> bool:
        return True

    def maps(self, module: nn.Module) -> tuple[Affine, ...]:
        assert isinstance(module, nn.Linear)
        shape = (1, module.out_features, module.in_features)
        return (Affine(trained_name(module, "weight"), trained_name(module, "bias"), shape),)

    def rows(self, module: nn.Module, call: Call, grad: Tensor) -> tuple[Rows, ...]:
        x = call.argument(0, "input").detach()
        return tuple(Rows(affine.homogeneous(positions(x)), _outputs(module, x, grad)) for affine in self.trained(module))


def positions(x: Tensor) -> Tensor:
    """`[B, *positions, I]` (or `[I]`, one example) as `[1, B, S, I]`."""
    batch = x.shape[0] if x.ndim > 1 else 1
    return x.reshape(1, batch, math.prod(x.shape[1:-1]), x.shape[-1])


def _outputs(module: nn.Module, x: Tensor, grad: Tensor) -> Tensor:
    """Output gradients as `[1, B, S, O]`."""
    assert isinstance(module, nn.Linear)
    check_gradient(module, grad, (*x.shape[:-1], module.out_features))
    return positions(grad)
